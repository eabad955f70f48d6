"""Gathering evidence: each kind is read only where a guard or proof needs it, and has one reader here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..core.commands import Command
from ..core.deadline import Deadline, growing
from ..core.errors import Unreachable
from ..core.facts import Fact, Grade
from ..core.frozen import EMPTY, FrozenMap
from ..core.observation import Observation
from ..core.ports import KeepsConnections, WaitsForIdle
from ..core.readings import Reading
from ..core.verdicts import NotApplicable, Unmeasurable, Verdict
from ..nodes.port import PROCESSES_UNKNOWN
from ..nodes.probes import NoProbe
from ..rules import knowledge
from ..rules.contradiction import other_process
from ..rules.evidence import OBSERVED, Evidence, EvidenceKind, targets
from ..rules.table import check_table
from . import canary
from .headroom import device_room, host_room
from .preconditions import hook_mode_of
from .session import Session

#: Seconds that a reading of memory is given even when no time is left: the last one before a deadline is reported.
LEAST_READ_S = 0.5

#: The most seconds between two readings of memory that could not be read.
REREAD_S = 1.0

#: What is asked for where everything that reads alone can tell is wanted.
EVERYTHING = frozenset({Fact.BOOT, Fact.ADMISSION, Fact.CLOSED, Fact.RUNNING, Fact.MAPPED, Fact.CONTENTS})

#: The facts that an observation is asked for, beside boot and mapping, by the kind of evidence that needs them.
_FACTS_OF: Mapping[str, set[Fact]] = {
    EvidenceKind.ADMISSION: {Fact.ADMISSION},
    EvidenceKind.LABEL: {Fact.CONTENTS},
    EvidenceKind.CHECKSUM: {Fact.CHECKSUM},
}


#: What has a place of its own in `Evidence`; a proof may need a kind by another name too.
EVERY_KIND = frozenset(EvidenceKind)

_NO_LEDGER = NotApplicable(reason="no ledger of tenants was given")

#: What an engine that is asked for nothing says.
_AS_BEFORE = Observation(alive=True)

_NO_PROCESSES = Unmeasurable(reason=PROCESSES_UNKNOWN)
_NOT_READ = Unmeasurable(reason="not read")


@dataclass(slots=True)
class Question:
    """What evidence is gathered for. `parts` are those that were read before, by name."""

    session: Session
    command: Command
    deadline: Deadline
    again: bool = False
    wait_s: float = 0.0
    parts: dict[str, Any] = field(default_factory=dict)


async def gather(
    session: Session,
    kinds: frozenset[str],
    command: Command,
    *,
    deadline_s: float,
    again: bool = False,
    wait_s: float = 0.0,
) -> Evidence:
    """The evidence of these kinds; every part is a value, also where an engine did not answer.

    What was observed before serves where it may (`rules.freshness`), but not for a question that is asked `again`. An
    engine that can wait until it is idle is given `wait_s` seconds for it.
    """
    asked = Question(session, command, Deadline(deadline_s), again, wait_s)
    token = asyncio.ensure_future(_answer(asked)) if EvidenceKind.ANSWER in kinds else None
    try:  # generated while the engine is observed
        asked.parts["observed"] = await _observe(asked, kinds)
        if token is not None:
            asked.parts[str(EvidenceKind.ANSWER)] = await token
    finally:
        if token is not None and not token.done():
            token.cancel()
            await asyncio.wait({token})
    if kinds <= OBSERVED:
        return Evidence(asked.parts["observed"])
    for kind, read in READERS.items():
        if kind in kinds and kind not in asked.parts:
            asked.parts[str(kind)] = await read(asked)
    own_names = kinds - EVERY_KIND
    named = FrozenMap({kind: asked.parts.pop(kind) for kind in own_names}) if own_names else EMPTY
    return Evidence(**asked.parts, named=named)


async def residual(session: Session, *, deadline_s: float) -> Reading | Unmeasurable:
    """What the engine's processes hold now."""
    processes = await session.adapter.processes()
    if not processes:
        return _NO_PROCESSES
    return await session.probe.read(processes, deadline_s=max(deadline_s, LEAST_READ_S))


async def residual_again(session: Session, *, deadline_s: float) -> Reading | Unmeasurable:
    """What the engine's processes hold now, asked again until the deadline where it cannot be read.

    For an engine that could be measured before: one reading that fails says nothing of it, unless it is gone, or
    nothing measures it any more. Raises Unreachable where another process answers than the one that the facts are
    about.
    """
    deadline, polls = Deadline(deadline_s), growing(session.policy.poll_s, longest_s=REREAD_S)
    while True:
        reading = await residual(session, deadline_s=deadline.left_s)
        if isinstance(reading, Reading) or isinstance(session.probe, NoProbe) or deadline.left_s <= 0:
            return reading
        seen = await observe(session, frozenset({Fact.BOOT}), deadline_s=deadline.look_s())
        if seen.alive is False:
            return reading
        other = other_process(session.facts, seen) if seen.boot is not None else None
        if other is not None:
            session.commit(knowledge.another_answered(session.record, seen))
            raise Unreachable(other, **session.about(session.busy or "a reading of memory"))
        await asyncio.sleep(min(next(polls), deadline.left_s))


async def observe(session: Session, want: frozenset[Fact], *, deadline_s: float) -> Observation:
    """What the engine says of these facts now. What it says serves again (`rules.freshness`)."""
    return await _ask(session, want, want, deadline_s)


async def boot_anew(session: Session, *, deadline_s: float) -> Observation:
    """Which boot answers now, over a new connection where connections are kept."""
    if isinstance(session.adapter, KeepsConnections):
        return await session.adapter.boot_anew(deadline_s=deadline_s)
    return await observe(session, frozenset({Fact.BOOT}), deadline_s=deadline_s)


async def _ask(session: Session, want: frozenset[Fact], asked: frozenset[Fact], deadline_s: float) -> Observation:
    """The facts that are wanted, of which these are asked for, and the others were before."""
    before, at_s = session.observed, time.monotonic()
    report = await session.adapter.observe(asked, deadline_s=deadline_s) if asked else _AS_BEFORE
    if session.observed is before:
        session.observed = before.after(asked, report, at_s) if asked else before
    return before.serving(want, asked, report)


@cache
def _facts_for(kinds: frozenset[str]) -> frozenset[Fact]:
    """The facts of an observation that kinds of evidence need."""
    return frozenset({Fact.BOOT, Fact.MAPPED}.union(*(_FACTS_OF[kind] for kind in kinds)))


async def _observe(asked: Question, kinds: frozenset[str]) -> Observation:
    session, policy = asked.session, asked.session.policy
    want = _facts_for(kinds & OBSERVED)
    closed = session.facts.admission == "closed" and policy.least_grade("admission_closed") <= Grade.ACKNOWLEDGED
    if EvidenceKind.ADMISSION in kinds and not closed:
        want |= {Fact.CLOSED}
    reported = want & session.capabilities.observable
    max_age_s = 0.0 if asked.again else policy.evidence_max_age_s
    to_ask = session.observed.to_ask(reported, time.monotonic(), max_age_s)
    if Fact.CONTENTS in want - reported:  # it does not say what it holds, and is asked whether it is there
        to_ask |= {Fact.BOOT} & reported
    return await _ask(session, reported, to_ask, asked.deadline.left_s)


async def _idle(asked: Question) -> Verdict:
    adapter, facts, left_s = asked.session.adapter, asked.session.facts, asked.deadline.left_s
    if asked.wait_s and isinstance(adapter, WaitsForIdle):
        return await adapter.idle_within(facts, wait_s=asked.wait_s, deadline_s=left_s)
    return await adapter.prove_idle(facts, deadline_s=left_s)


async def _answer(asked: Question) -> Verdict:
    return await canary.ask(asked.session, deadline_s=asked.deadline.left_s)


async def _residual(asked: Question) -> Reading | Unmeasurable:
    return await residual(asked.session, deadline_s=asked.deadline.left_s)


async def _hook_mode(asked: Question) -> Verdict:
    return await hook_mode_of(asked.session, deadline_s=asked.deadline.look_s())


async def _host_room(asked: Question) -> Verdict:
    return await host_room(asked.session, asked.command, asked.deadline.left_s)


async def _device_room(asked: Question) -> Verdict:
    reading = asked.parts.get("residual", _NOT_READ)
    return await device_room(asked.session, asked.command, reading, asked.deadline.left_s)


async def _cotenants(asked: Question) -> Verdict:
    """Reserves what comes back: it is asked before the free memory is, so that no two find the same room free."""
    session = asked.session
    if session.tenancy.ledger is None:
        return _NO_LEDGER
    context = session.context(asked.command, targets=targets(asked.command, session.facts, session.capabilities))
    reading = asked.parts.get("residual") or await residual(session, deadline_s=asked.deadline.left_s)
    return await session.tenancy.headroom(context, reading, asked.deadline.left_s)


#: Who reads each kind of evidence, in the order of reading: what comes later may use what was read before.
READERS: Mapping[str, Callable[[Question], Awaitable[Any]]] = {
    EvidenceKind.IDLE: _idle,
    EvidenceKind.ANSWER: _answer,
    EvidenceKind.RESIDUAL: _residual,
    EvidenceKind.HOOK_MODE: _hook_mode,
    EvidenceKind.HOST_ROOM: _host_room,
    EvidenceKind.COTENANTS: _cotenants,
    EvidenceKind.DEVICE_ROOM: _device_room,
}

check_table(gathered=OBSERVED | READERS.keys())
