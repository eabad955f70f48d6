"""What the tests ask of engines beside the adapter, over plain HTTP."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field

from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import BaseObserver, Call, Reply, State, Transition


def url(process: LoopbackProcess, **options: object) -> str:
    """The engine's URL for a fleet."""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"loopback://127.0.0.1:{process.port}" + (f"?{query}" if query else "")


def generate(process: LoopbackProcess, text: str, tokens: int = 8) -> list[int]:
    """The ids that the engine generates greedily."""
    return post(process, "/generate", {"text": text, "sampling_params": {"max_new_tokens": tokens}})["output_ids"]


def post(process: LoopbackProcess, path: str, body: dict[str, object], timeout_s: float = 20.0) -> dict[str, list[int]]:
    """The JSON answer to a POST."""
    request = urllib.request.Request(process.url + path, json.dumps(body).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        raw = response.read()
    return json.loads(raw) if raw else {}


async def generating(process: LoopbackProcess, text: str, tokens: int) -> list[int]:
    """`generate`, beside other things."""
    return await asyncio.to_thread(generate, process, text, tokens)


@dataclass
class Recorder(BaseObserver):
    """Remembers every call and every state entered, in order."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    states: list[tuple[str, State]] = field(default_factory=list)

    def transition(self, record: Transition) -> None:
        """A state was entered."""
        self.states.append((record.engine, record.dest))

    def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
        """A call ended."""
        self.calls.append((engine, call.name))

    def sent(self, *names: str) -> list[tuple[str, str]]:
        """The calls of these names."""
        return [(engine, name) for engine, name in self.calls if name in names]


@dataclass
class KillAt(BaseObserver):
    """Kills the engine's processes the moment it enters a state."""

    state: State
    engine: str
    process: LoopbackProcess
    killed: bool = False

    def transition(self, record: Transition) -> None:
        """SIGKILL, once."""
        if not self.killed and record.engine == self.engine and record.dest is self.state:
            self.killed = True
            self.process.kill()


def names(records: Sequence[Transition]) -> list[str]:
    """The engines of these records."""
    return [record.engine for record in records]
