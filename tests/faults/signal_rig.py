"""Two loopback engines, one of which holds a phase open, and a driver that is sent a signal in the middle of it.

Which phase a driver is in is read from its journal, and from no clock. In the phase `held` is in the middle of a call
that has had its effect and is not answered, and `other` has ended its command.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import Fleet, FromDisk, Policy, State
from lifecycle.core.journal import CallSent, CommandBegan, CommandEnded, Entry, MovePhase, Refused, StateEntered
from lifecycle.rules.violations import violations
from lifecycle.store import Store
from lifecycle.store.journal import follow_file, has_journal, read_file
from lifecycle.store.leases import Leases

#: Seconds in which anything here ends; what takes longer hangs.
LIMIT_S = 25.0

#: The call of the loopback engine that each phase waits for.
CALLS = {
    "pause": "pause",
    "drain": "flush",
    "release": "release",
    "restore_weights": "resume",
    "update_weights": "update",
    "restore_kv": "resume",
    "resume": "continue",
}
#: Where an earlier phase makes the same call: what is held until then, so that the earlier one is not.
BEFORE = {"restore_kv": "update_weights"}
OFFLOAD = ("pause", "drain", "release")
ONLOAD = ("restore_weights", "update_weights", "restore_kv", "resume")

#: Requests are in flight for long, and cost little; an abort is noticed soon.
SLOWLY = ("--step-delay-s", "0.1", "--abort-poll-s", "0.1")

THRESHOLD = ("--threshold-gib", "0.125")
POLICY = Policy(residual_threshold_gib=0.125, poll_s=0.02)


@dataclass
class Pair:
    """The engines `held` and `other`, and the state folder of their drivers."""

    engines: dict[str, LoopbackProcess]
    source: FromDisk
    state: Path = Path()
    expected: dict[str, list[int]] = field(default_factory=dict)

    @property
    def urls(self) -> list[str]:
        return [f"loopback://127.0.0.1:{each.port}?name={name}" for name, each in self.engines.items()]

    @property
    def weights(self) -> tuple[str, ...]:
        return "--weights", self.source.path, "--version", self.source.version

    @property
    def file(self) -> Path:
        """Where their drivers keep what is known, and the journal."""
        return self.state / "engines.sqlite3"

    def entries(self) -> list[Entry]:
        """The journal of their drivers."""
        return list(read_file(self.file)) if has_journal(self.file) else []

    def hold(self, phase: str | None, **more: str) -> None:
        """`held` answers no call of this phase from here on, beside other faults; what was held before is answered."""
        faults = {**dict.fromkeys(("server_info", *CALLS.values())), **more}
        if phase is not None:
            faults[CALLS[phase]] = "slow:60"
        post(self.engines["held"], "/_fault", faults)

    async def reaches(self, phase: str, program: asyncio.subprocess.Process | None = None) -> None:
        """The driver is in the middle of this phase."""
        end = time.monotonic() + LIMIT_S
        seen: list[Entry] = []

        def over() -> bool:
            return time.monotonic() > end or (program is not None and program.returncode is not None)

        if not await asyncio.to_thread(self._follows, phase, seen, over):
            told = "\n".join(f"{each.engine} {each.event}" for each in seen[-8:])
            raise AssertionError(f"{phase} was not reached\n{told}")

    def _follows(self, phase: str, seen: list[Entry], over: Callable[[], bool]) -> bool:
        """Whether `held` came into the phase."""
        for entry in follow_file(self.file, poll_s=0.03, ends=over):
            seen.append(entry)
            of_held = isinstance(entry.event, CallSent) and entry.engine == "held"
            if of_held and entry.event.command == BEFORE.get(phase):
                self.hold(phase)
            if _is_in(phase, seen):
                return True
        return False

    async def is_left(self, state: State) -> None:
        """The driver has given `held` up, and it is in this state."""
        async with asyncio.timeout(LIMIT_S):
            while self.left().get("held") is not state:  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.02)

    def left(self) -> dict[str, State]:
        """Where the last driver that did something left each engine, by the journal."""
        found = {}
        for entry in self.entries():
            if isinstance(entry.event, StateEntered):
                found[entry.engine] = entry.event.dest
        return found

    def is_closed(self) -> None:
        """Every command and every phase in the journal has ended, and no rule of it was broken."""
        entries = self.entries()
        assert [str(each) for each in violations(entries)] == []
        open_commands: set[tuple[str, str]] = set()
        open_phases: set[tuple[str, str]] = set()
        for entry in entries:
            match entry.event:
                case CommandBegan(command=name):
                    open_commands.add((entry.engine, name))
                case CommandEnded(command=name) | Refused(command=name):
                    open_commands.discard((entry.engine, name))
                case MovePhase(move_id=move, phase=phase, duration_s=None):
                    open_phases.add((move, phase))
                case MovePhase(move_id=move, phase=phase):
                    open_phases.discard((move, phase))
        assert (open_commands, open_phases) == (set(), set())

    def answers_as_before(self) -> None:
        """Both engines run, admit requests, and their weights give the answer that they gave with them before."""
        for name, engine in self.engines.items():
            assert engine.returncode is None, engine.stderr_tail()
            answer = generate(engine)
            expected = self.expected.setdefault(answer["meta_info"]["weight_version"], answer["output_ids"])
            assert answer["output_ids"] == expected, f"{name}: the answer changed"

    async def released(self) -> None:
        """Both were released by a driver that has ended."""
        store, leases = Store(self.file), Leases(self.file)
        async with Fleet.connect(self.urls, policy=POLICY, store=store, lease=leases) as fleet:
            await fleet.offload(weights=self.source)


def _is_in(phase: str, entries: Sequence[Entry]) -> bool:
    """Whether `held` is in the middle of the phase, and `other` has ended it."""
    held, other = False, False
    for entry in entries:
        match entry.event:
            case CallSent(command=name) if name == phase and entry.engine == "held":
                held = True
            case StateEntered(dest=State.DRAINING) if phase == "drain" and entry.engine == "held":
                held = True
            case CommandEnded(command=name) if name == phase:
                held, other = held and entry.engine == "other", other or entry.engine == "other"
    return held and other


@contextmanager
def pair(source: FromDisk, names: Sequence[str] = ("held", "other")) -> Iterator[Pair]:
    """Engines that serve, and are gone at the end."""
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(
                LoopbackProcess.start(weights_mib=96, kv_mib=96, allow_faults=True, arguments=SLOWLY)
            )
            for name in names
        }
        yield Pair(engines, source)


async def started(arguments: Sequence[str], state: Path) -> asyncio.subprocess.Process:
    """This Python program runs, and its output can be read."""
    piped = asyncio.subprocess.PIPE
    environment = {**os.environ, "LIFECYCLE_STATE_DIR": str(state)}
    # A shell starts what it runs in the background with SIGINT ignored, and so would be this program.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, *arguments, stdout=piped, stderr=piped, env=environment
        )
    finally:
        signal.signal(signal.SIGINT, before)


async def ended(program: asyncio.subprocess.Process, limit_s: float = LIMIT_S) -> tuple[str, str]:
    """What it printed; killed, and an AssertionError, where it does not end."""
    try:
        out, err = await asyncio.wait_for(program.communicate(), limit_s)
    except TimeoutError:
        program.kill()
        raise AssertionError(f"the driver {program.pid} did not end in {limit_s} s") from None
    return out.decode(), err.decode()


def post(engine: LoopbackProcess, path: str, body: object) -> object:
    request = urllib.request.Request(engine.url + path, json.dumps(body).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
        return json.loads(response.read() or b"null")


def generate(engine: LoopbackProcess) -> dict[str, object]:
    """A greedy answer of the engine."""
    sampling = {"max_new_tokens": 3, "temperature": 0, "ignore_eos": True}
    return post(engine, "/generate", {"text": "a proof of A:", "sampling_params": sampling})
