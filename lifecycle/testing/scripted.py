"""Scripted engines in memory: calls fail, lose replies, take effect late or end the process as a script says.

    adapter = ScriptedAdapter("decode-0")
    engine = scripted(adapter)                  # a lifecycle.Engine over it
    adapter.script("release", LOST_AFTER)       # the next release takes effect, and its reply is lost
    adapter.journal.calls()                     # the calls that were sent, in order

There is no I/O, and nothing waits but an act that hangs.
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
from ..core.units import GIB
from ..core.verdicts import REQUESTS_RUN, Pending, Proved, Refuted, Unmeasurable, Verdict
from . import planned
from .acts import DONE, Act
from .journal import Entry, Journal
from .model import Rejection, ScriptedEngine

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
    """Returns the capabilities of a scripted engine: all of them, with these tags (default: weights and kv_cache)."""
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
    """Measures the resident bytes of the model; `always` and `script` replace its readings."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine
        self._scripted: deque[Reading | Unmeasurable] = deque()
        self.always: Reading | Unmeasurable | None = None

    def script(self, *readings: Reading | Unmeasurable) -> None:
        """Replaces the next readings by these, in order."""
        self._scripted.extend(readings)

    @property
    def blind(self) -> bool:
        """Whether the next reading is one that was scripted."""
        return bool(self._scripted)

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """Returns the resident bytes of the engine's ranks; Unmeasurable where none of these processes exists."""
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
    """Drives one ScriptedEngine and writes everything into `journal`, which several adapters may share.

    `script(name, ...)` decides how the next calls of that name end, `always(name, ...)` how all later ones end. A name
    is that of a call, or one of connect, observe, prove_idle, answers, barrier.
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
        #: Whether an observation reports the released tags, and the admission.
        self.reports_tags = False
        self.reports_admission = True
        #: Whether its processes can be found, so that an ended process differs from a silent one.
        self.reports_processes = True
        self._scripts: dict[str, deque[Scripted]] = {}
        self._always: dict[str, Scripted] = {}
        #: Late effects: after how many calls (None: at the barrier), the call, and the boot that it was sent to.
        self._late: list[tuple[int | None, Call, str]] = []

    def script(self, name: str, *acts: Scripted) -> None:
        """Scripts the next calls of this name, in order; later ones end as `always` says, or as modelled."""
        self._scripts.setdefault(name, deque()).extend(acts)

    def always(self, name: str, act: Scripted | None) -> None:
        """Scripts all calls of this name; None ends that."""
        self._always.pop(name, None)
        if act is not None:
            self._always[name] = act

    def as_modelled(self) -> None:
        """Removes everything that was scripted."""
        self._scripts.clear()
        self._always.clear()

    # the port

    @property
    def url(self) -> str:
        """`scripted://` and the name."""
        return f"scripted://{self.name}"

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """Returns the capabilities. Raises ConfigurationError where the engine does not answer."""
        answered = await self._answered("connect", deadline_s)
        self._note("connect", answer="done" if answered is True else "lost")
        if answered is not True:
            raise ConfigurationError(f"{self.url}: nothing listens there; start the engine, or mend the address")
        return self.capabilities

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """Returns the calls of a command, in order."""
        return planned.plan(command, facts, self.capabilities)

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """Returns one call of a push."""
        return planned.push_call(how, args, version)

    def close_push_call(self) -> Call:
        """Returns the call that ends a push which failed."""
        return planned.close_push(self.capabilities)

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Sends one call, as scripted. The journal has it before it is sent, and its reply afterwards."""
        self._note("call", call.name, call.args)
        self._tick()
        reply = await self._perform(call, deadline_s)
        self._note("reply", call.name, call.args, reply.outcome)
        return reply

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """Returns what the engine reports of the wanted facts."""
        answered = await self._answered("observe", deadline_s)
        seen = answered if isinstance(answered, Observation) else self._observation(want, answered is True)
        self._note("observe", answer=seen.boot or "nothing")
        return seen

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """Proved where no request runs; drops the prefix cache."""
        verdict = await self._verdict("prove_idle", deadline_s)
        self._note("idle", answer=verdict.word)
        return verdict

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Proved where the engine admits requests and generates a token."""
        verdict = await self._verdict("answers", deadline_s)
        self._note("answers", answer=verdict.word)
        return verdict

    async def barrier(self, *, deadline_s: float) -> bool:
        """Applies every late effect and returns True; False where the engine is alive and does not answer."""
        answered = await self._answered("barrier", deadline_s) is True
        if answered:
            self._arrive(everything=True)
        self._note("barrier", answer=str(answered))
        return answered or not self.engine.alive

    async def processes(self) -> tuple[Process, ...] | None:
        """Returns the root process of the ranks."""
        if not self.reports_processes:
            return None
        return (Process("scripted", self.engine.pid, float(self.engine.pid)),)

    async def aclose(self) -> None:
        """Writes a line into the journal; the engine stays as it is."""
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
            except Rejection as refusal:
                return Reply("rejected", status=400, detail=str(refusal))
            if not self.engine.alive:
                return Reply("lost", detail="disconnected without an answer")
        return None

    async def _reply(self, act: Act, deadline_s: float) -> Reply:
        if act.answer == "hang":
            await asyncio.sleep(deadline_s)
            return Reply("lost", detail=f"no answer in {deadline_s:.2f} s", late=True)
        return Reply(act.answer, status=act.status, detail=act.detail, value=act.value)

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
        """Applies the late effects that are due."""
        due = [late for late in self._late if everything or (late[0] is not None and late[0] <= 0)]
        self._late = [late for late in self._late if late not in due]
        for _, call, boot in due:
            if boot == self.engine.boot:
                self._take_effect(call)

    def _take_effect(self, call: Call) -> None:
        self._note("effect", call.name, call.args)
        with suppress(Rejection):
            self.engine.apply(call.name, call.args)

    # reads

    async def _answered(self, name: str, deadline_s: float) -> Scripted | bool:
        """True where the engine answers, False where it does not, or the answer that was scripted instead."""
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
        answered = await self._answered(name, deadline_s)
        if isinstance(answered, Verdict):
            return answered
        if answered is not True:
            return Refuted(reason="no answer") if name == "answers" else Pending(reason="no answer")
        return self._idle() if name == "prove_idle" else self._answer()

    def _idle(self) -> Verdict:
        if self.engine.idle():
            return Proved(grade=Grade.REPORTED, reason="no request runs", figures={"cache_dropped": True})
        return Pending(reason=f"{self.engine.running or 1} requests still run", figures={REQUESTS_RUN: True})

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
            parts["weights_label"] = engine.false_label or engine.label
        if Fact.CHECKSUM in want:
            parts |= {"checksum": engine.checksum, "checksums": dict(engine.checksums)}
        if Fact.MAPPED in want and self.reports_tags:
            parts["released_tags"] = frozenset(engine.unmapped)
        return Observation(boot=engine.boot, alive=True, sampled_at=time.monotonic(), **parts)

    def _next(self, name: str) -> Scripted:
        waiting = self._scripts.get(name)
        return waiting.popleft() if waiting else self._always.get(name, DONE)

    def _note(self, kind: str, name: str = "", args: Mapping[str, Any] | None = None, answer: str = "") -> None:
        self.journal.append(Entry(self.name, kind, name, dict(args or {}), answer))
