"""Engines in memory that fail, lose replies, act late, lie, die and restart as a script says; no I/O, no waiting.

engine = scripted("decode-0")                          # a lifecycle.Engine over a ScriptedAdapter
engine.adapter.script("release", LOST_AFTER)           # the next release: done, and its answer is lost
engine.adapter.journal.calls()                         # what was sent, in order
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..core.calls import Call, Reply
from ..core.capabilities import Capabilities, PauseTraits
from ..core.commands import Command
from ..core.errors import ConfigurationError
from ..core.facts import Fact, Facts, Grade, PauseMode, Tag, TagSpec
from ..core.observation import Observation, Probe
from ..core.readings import Holder, Process, Reading
from ..core.verdicts import Pending, Proved, Refuted, Unmeasurable, Verdict
from . import planned
from .acts import DONE, Act, Entry, Journal
from .model import GIB, Rejection, ScriptedEngine

Scripted = Act | Verdict | Observation | Reading

PAUSE_MODES: Mapping[PauseMode, PauseTraits] = {
    "abort": PauseTraits(drains=True, unsafe_from=frozenset({"freeze"})),
    "wait": PauseTraits(drains=True, needs_router=True, unsafe_from=frozenset({"freeze"})),
    "keep": PauseTraits(drains=True, keeps_requests=True),
    "freeze": PauseTraits(drains=False, keeps_requests=True, keeps_kv=True, live_update=True),
}

WEIGHTS = TagSpec("weights", "weights", "discarded", 4 * GIB)
KEPT_WEIGHTS = TagSpec("weights", "weights", "kept", 4 * GIB)
KV_CACHE = TagSpec("kv_cache", "kv", "discarded", 8 * GIB)
CUDA_GRAPH = TagSpec("cuda_graph", "kv", "kept", GIB)


def capabilities(*tags: TagSpec, **changes: Any) -> Capabilities:
    """What a scripted engine can do: everything, with these tags (weights and kv_cache if none are named)."""
    parts: dict[str, Any] = {
        "engine": "scripted",
        "version": "1",
        "tags": tags or (WEIGHTS, KV_CACHE),
        "pause": PAUSE_MODES,
        "memory_saver": True,
        "update": frozenset({"disk", "push", "live"}),
        "evidence": {"idle": Grade.REPORTED},
    }
    return Capabilities(**{**parts, **changes})


class ScriptedProbe:
    """Measures the model's bytes; `always` and `script` replace what it reads."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine
        self._scripted: deque[Reading | Unmeasurable] = deque()
        self.always: Reading | Unmeasurable | None = None

    def script(self, *readings: Reading | Unmeasurable) -> None:
        """The next readings are these, in order."""
        self._scripted.extend(readings)

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """What the engine's ranks hold; Unmeasurable once none of these processes is left."""
        await asyncio.sleep(0)
        reading = self._read({process.pid for process in processes})
        held = str(reading.resident_bytes) if isinstance(reading, Reading) else reading.word
        self._engine.journal.append(Entry(self._engine.name, "residual", answer=held))
        return reading

    def _read(self, pids: set[int]) -> Reading | Unmeasurable:
        if self._scripted:
            return self._scripted.popleft()
        if self.always is not None:
            return self.always
        engine = self._engine
        if not engine.alive or engine.pid not in pids:
            return Unmeasurable(reason=f"no process of the engine is left to measure (pids: {sorted(pids)})")
        held = engine.bytes_by_device()
        holders = tuple(
            Holder(engine.pid + rank, device, held[device] // engine.devices.count(device), engine.name)
            for rank, device in enumerate(engine.devices)
        )
        return Reading(held, holders, "scripted")


class ScriptedAdapter:
    """Drives one ScriptedEngine; what is asked of it stands in `journal`, which several may share.

    `script(name, ...)` says what becomes of the next calls of that name, `always(name, ...)` of every other one;
    the names are those of the calls, and connect, observe, prove_idle, answers, barrier.
    """

    def __init__(
        self,
        name: str = "engine",
        capabilities_: Capabilities | None = None,
        *,
        journal: Journal | None = None,
        sizes: Mapping[Tag, int] | None = None,
        devices: tuple[str, ...] | None = None,
        version: str | None = "v0",
    ) -> None:
        self.name = name
        self.capabilities = capabilities_ or capabilities()
        self.journal = Journal() if journal is None else journal
        self.engine = ScriptedEngine(
            name, self.capabilities, journal=self.journal, sizes=sizes, devices=devices, version=version
        )
        self.probe = ScriptedProbe(self.engine)
        #: Whether an observation tells which tags are released, and whether requests are admitted.
        self.reports_tags = False
        self.reports_admission = True
        #: Whether its processes can be found, so that their end can be told from silence.
        self.reports_processes = True
        self._scripts: dict[str, deque[Scripted]] = {}
        self._always: dict[str, Scripted] = {}
        #: Effects that are on their way: after how many calls (None: at the barrier), and to which process.
        self._late: list[tuple[int | None, Call, str]] = []

    def script(self, name: str, *acts: Scripted) -> None:
        """The next ones of this name go like this, in order; those after them as `always` says, or as modelled."""
        self._scripts.setdefault(name, deque()).extend(acts)

    def always(self, name: str, act: Scripted | None) -> None:
        """Every one of this name goes like this, until None says otherwise."""
        self._always.pop(name, None)
        if act is not None:
            self._always[name] = act

    def as_modelled(self) -> None:
        """From here on everything goes as modelled: nothing that was scripted is left."""
        self._scripts.clear()
        self._always.clear()

    # the port

    @property
    def url(self) -> str:
        """`scripted://` and its name."""
        return f"scripted://{self.name}"

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """What it can do; ConfigurationError where it does not answer."""
        answered = await self._asked("connect", deadline_s)
        self._note("connect", answer="done" if answered is True else "lost")
        if answered is not True:
            raise ConfigurationError(f"{self.url}: nothing listens there; start the engine, or mend the address")
        return self.capabilities

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """The calls of a command, in order."""
        return planned.plan(command, facts, self.capabilities)

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """One call of a push."""
        return planned.push_call(how, args, version)

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Makes one call, as scripted; its line is in the journal before it is sent, its reply after."""
        self._note("call", call.name, call.args)
        self._tick()
        reply = await self._perform(call, deadline_s)
        self._note("reply", call.name, call.args, reply.outcome)
        return reply

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """What it tells of itself, as far as wanted."""
        answered = await self._asked("observe", deadline_s)
        seen = answered if isinstance(answered, Observation) else self._observation(want, answered is True)
        self._note("observe", answer=seen.boot or "nothing")
        return seen

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """Proved where no request runs; the prefix cache is dropped by it."""
        verdict = await self._verdict("prove_idle", deadline_s)
        self._note("idle", answer=verdict.word)
        return verdict

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Proved where it admits requests and generates."""
        verdict = await self._verdict("answers", deadline_s)
        self._note("answers", answer=verdict.word)
        return verdict

    async def barrier(self, *, deadline_s: float) -> bool:
        """True once every late effect has happened; False where it does not answer."""
        answered = await self._asked("barrier", deadline_s) is True
        if answered:
            self._arrive(everything=True)
        self._note("barrier", answer=str(answered))
        return answered or not self.engine.alive

    async def processes(self) -> tuple[Process, ...] | None:
        """One process, below which its ranks are."""
        if not self.reports_processes:
            return None
        return (Process("scripted", self.engine.pid, float(self.engine.pid)),)

    async def aclose(self) -> None:
        """The journal says so; the engine is left as it is."""
        self._note("aclose")

    # calls

    async def _perform(self, call: Call, deadline_s: float) -> Reply:
        act = self._next(call.name)
        if not isinstance(act, Act):
            raise TypeError(f"{call.name} is a call and takes an Act, not {act}")
        await asyncio.sleep(0)
        if not self.engine.alive:
            return Reply("lost", detail="connection refused", refused=True)
        if not self.engine.reachable:
            return Reply("lost", detail="no route to host")
        if call.name == "await_idle":
            return await self._await_idle(act, deadline_s)
        refused = self._affect(act, call)
        if act.then is not None:
            act.then(self.engine)
        await asyncio.sleep(0)
        return refused or await self._reply(act, deadline_s)

    def _affect(self, act: Act, call: Call) -> Reply | None:
        if act.effect == "late":
            self._late.append((act.after_calls, call, self.engine.boot))
        elif act.effect == "now":
            try:
                self.engine.apply(call.name, call.args)
            except Rejection as said:
                return Reply("rejected", status=400, detail=str(said))
            if not self.engine.alive:
                return Reply("lost", detail="disconnected without an answer")
        return None

    async def _reply(self, act: Act, deadline_s: float) -> Reply:
        if act.answer == "hang":
            await asyncio.sleep(deadline_s)
            return Reply("lost", detail=f"no answer in {deadline_s:.2f} s", late=True)
        return Reply(act.answer, status=act.status, detail=act.detail)

    async def _await_idle(self, act: Act, deadline_s: float) -> Reply:
        if act != DONE:
            return await self._reply(act, deadline_s)
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            if not self.engine.running:
                return Reply("done")
            await asyncio.sleep(0.001)
        return Reply("rejected", detail="requests still ran")

    def _tick(self) -> None:
        self._late = [(left if left is None else left - 1, call, boot) for left, call, boot in self._late]
        self._arrive(everything=False)

    def _arrive(self, *, everything: bool) -> None:
        """The late effects whose time has come have happened."""
        due = [late for late in self._late if everything or (late[0] is not None and late[0] <= 0)]
        self._late = [late for late in self._late if late not in due]
        for _, call, boot in due:
            if boot == self.engine.boot:
                self._take_effect(call)

    def _take_effect(self, call: Call) -> None:
        self._note("effect", call.name, call.args)
        with suppress(Rejection):
            self.engine.apply(call.name, call.args)

    # everything else

    async def _asked(self, name: str, deadline_s: float) -> Scripted | bool:
        """True where the engine answers as modelled, False where it does not, or what was scripted instead."""
        act = self._next(name)
        await asyncio.sleep(0)
        if not isinstance(act, Act):
            return act
        if act.then is not None:
            act.then(self.engine)
        if act.answer == "hang":
            await asyncio.sleep(deadline_s)
        return act.answer == "done" and self.engine.alive and self.engine.reachable

    async def _verdict(self, name: str, deadline_s: float) -> Verdict:
        answered = await self._asked(name, deadline_s)
        if isinstance(answered, Verdict):
            return answered
        if answered is not True:
            return Refuted(reason="no answer") if name == "answers" else Pending(reason="no answer")
        return self._idle() if name == "prove_idle" else self._answer()

    def _idle(self) -> Verdict:
        if self.engine.idle():
            return Proved(grade=Grade.REPORTED, reason="none runs", figures={"cache_dropped": True})
        return Pending(reason=f"{self.engine.running or 1} requests still run")

    def _answer(self) -> Verdict:
        if self.engine.generate():
            return Proved(grade=Grade.MEASURED, reason="it generated a token")
        return Refuted(reason="it generated nothing")

    def _observation(self, want: frozenset[Fact], answered: bool) -> Observation:
        engine = self.engine
        if not engine.alive and self.reports_processes:
            return Observation(alive=False, detail=f"pid {engine.pid} has ended", sampled_at=time.monotonic())
        if not answered or not engine.alive:
            return Observation(detail="no answer", sampled_at=time.monotonic())
        parts: dict[str, Any] = {}
        if Fact.ADMISSION in want and self.reports_admission:
            parts["admission"] = engine.admission
        if Fact.RUNNING in want and engine.paused_by not in ("keep", "freeze"):
            parts["running"] = engine.running + abs(engine.stubborn)
        if Fact.CONTENTS in want:
            parts |= {"weights_label": engine.false_label or engine.label, "checksum": engine.checksum}
            parts["checksums"] = dict(engine.checksums)
        if Fact.MAPPED in want and self.reports_tags:
            parts["released_tags"] = frozenset(engine.unmapped)
        return Observation(boot=engine.boot, alive=True, sampled_at=time.monotonic(), **parts)

    def _next(self, name: str) -> Scripted:
        waiting = self._scripts.get(name)
        return waiting.popleft() if waiting else self._always.get(name, DONE)

    def _note(self, kind: str, name: str = "", args: Mapping[str, Any] | None = None, answer: str = "") -> None:
        self.journal.append(Entry(self.name, kind, name, dict(args or {}), answer))
