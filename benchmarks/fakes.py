"""Starts fake SGLang engines in another process, and asks what was asked of them.

The library looks for the processes behind an address of this host, and refuses two engines that share one. Engines that
share a process therefore listen on 127.0.0.2, which it takes for another host: it knows no process of theirs, and
measures no memory. `POLICY` accepts their word for it. Those that have a process each (`apart`) listen on 127.0.0.1,
with memory that a release gives back where `tag_mib` is given (`MEASURED`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

from lifecycle import Grade, Policy

SERVER = Path(__file__).with_name("fake_sglang.py")
#: No process is known, so that what a release gives back is only acknowledged.
_UNSEEN = ("tags_unmapped", "memory_returned", "weights_mapped", "kv_mapped")
POLICY = Policy(accept=dict.fromkeys(_UNSEEN, Grade.ACKNOWLEDGED), unprovable="warn")
#: Of small processes, whose memory is measured.
MEASURED = Policy(residual_threshold_gib=0.02, visible_bytes=1 << 20, visible_fraction=0.01)


@dataclass(frozen=True, slots=True)
class Request:
    """One request that an engine was sent, and when, on the clock of `time.monotonic`."""

    engine: int
    at_s: float
    method: str
    target: str
    body: str
    new_connection: bool

    @property
    def name(self) -> str:
        """Method and path."""
        return f"{self.method} {self.target.partition('?')[0]}"


@dataclass(frozen=True, slots=True)
class Log:
    """What was asked of the engines since it was asked for last. `run_until` and `flush_from` are by engine."""

    requests: tuple[Request, ...] = ()
    calls: dict[str, int] = field(default_factory=dict)
    connections: int = 0
    run_until: tuple[float, ...] = ()
    flush_from: tuple[float, ...] = ()
    dead: int = 0

    @property
    def total(self) -> int:
        """Requests of all engines."""
        return sum(self.calls.values())


@dataclass(slots=True)
class Fakes:
    """Running fake engines."""

    host: str
    ports: tuple[int, ...]
    pids: tuple[int, ...]
    apart: bool
    _process: subprocess.Popen[str]

    @classmethod
    def start(cls, count: int, *, apart: bool = False, tag_mib: int = 0, backup: bool = False) -> Self:
        """Starts so many engines, and returns once all of them listen."""
        host = "127.0.0.1" if apart else "127.0.0.2"
        command = [sys.executable, str(SERVER), f"--count={count}", f"--host={host}", f"--tag-mib={tag_mib}"]
        command += ["--apart"] * apart + ["--backup"] * backup
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fake engines did not start ({' '.join(command)})")
        said = json.loads(line)
        return cls(host, tuple(said["ports"]), tuple(said["pids"]), apart, process)

    @property
    def urls(self) -> list[str]:
        """What a fleet connects to."""
        return [f"sglang://{self.host}:{port}?name=e{number}" for number, port in enumerate(self.ports)]

    @property
    def bases(self) -> list[str]:
        """What an HTTP client connects to."""
        return [f"http://{self.host}:{port}" for port in self.ports]

    def set(self, *, engines: dict[int, Any] | None = None, engine: dict[str, Any] | None = None, **host: Any) -> None:
        """Changes how the engines behave; what is said of each engine but not repeated ends."""
        self._control("/_fake/set", {"host": host, "engine": engine or {}, "engines": engines or {}})

    def log(self) -> Log:
        """What was asked of all engines since the last time this was called."""
        found = self._control("/_fake/log", {})
        calls: dict[str, int] = {}
        for each in found:
            for name, count in each["calls"].items():
                calls[name] = calls.get(name, 0) + count
        states = [state for each in found for state in each["engines"]]
        return Log(
            requests=tuple(
                sorted((Request(*entry) for each in found for entry in each["log"]), key=lambda one: one.at_s)
            ),
            calls=calls,
            connections=sum(each["connections"] for each in found),
            run_until=tuple(state[0] for state in states),
            flush_from=tuple(state[1] for state in states),
            dead=sum(state[2] for state in states),
        )

    def _control(self, target: str, body: Any) -> Sequence[Any]:
        """Asks every process once."""
        answers = []
        for port in self.ports if self.apart else self.ports[:1]:
            connection = HTTPConnection(self.host, port, timeout=30)
            connection.request("POST", target, json.dumps(body))
            answers.append(json.loads(connection.getresponse().read()))
            connection.close()
        return answers

    def close(self) -> None:
        """Ends them."""
        self._process.communicate()  # closes its standard input, and waits

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
