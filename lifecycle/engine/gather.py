"""Gathering evidence: each kind is read only where a guard or proof needs it, and has one reader here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.commands import Command
from ..core.deadline import Deadline
from ..core.errors import Unreachable
from ..core.facts import Fact
from ..core.frozen import FrozenMap
from ..core.observation import Observation
from ..core.readings import Reading
from ..core.verdicts import Unmeasurable, Verdict
from ..nodes.port import PROCESSES_UNKNOWN
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

#: What is asked for where everything that reads alone can tell is wanted.
EVERYTHING = frozenset({Fact.BOOT, Fact.ADMISSION, Fact.RUNNING, Fact.MAPPED, Fact.CONTENTS})

#: The facts that an observation is asked for, beside boot and mapping, by the kind of evidence that needs them.
_FACTS_OF: Mapping[str, set[Fact]] = {
    EvidenceKind.ADMISSION: {Fact.ADMISSION},
    EvidenceKind.LABEL: {Fact.CONTENTS},
    EvidenceKind.CHECKSUM: {Fact.CONTENTS, Fact.CHECKSUM},
}


_NOT_READ = Unmeasurable(reason="not read")


@dataclass(slots=True)
class Question:
    """What evidence is gathered for. `parts` are those that were read before, by name."""

    session: Session
    command: Command
    deadline: Deadline
    parts: dict[str, Any] = field(default_factory=dict)


async def gather(session: Session, kinds: frozenset[str], command: Command, *, deadline_s: float) -> Evidence:
    """The evidence of these kinds, fresh; every part is a value, also where an engine did not answer."""
    asked = Question(session, command, Deadline(deadline_s))
    asked.parts["observed"] = await _observe(asked, kinds)
    for kind, read in READERS.items():
        if kind in kinds:
            asked.parts[str(kind)] = await read(asked)
    named = {kind: asked.parts.pop(kind) for kind in kinds - frozenset(EvidenceKind)}
    return Evidence(**asked.parts, named=FrozenMap(named))


async def residual(session: Session, *, deadline_s: float) -> Reading | Unmeasurable:
    """What the engine's processes hold now."""
    processes = await session.adapter.processes()
    if not processes:
        return Unmeasurable(reason=PROCESSES_UNKNOWN)
    return await session.probe.read(processes, deadline_s=max(deadline_s, LEAST_READ_S))


async def residual_again(session: Session, *, deadline_s: float) -> Reading | Unmeasurable:
    """What the engine's processes hold now, asked again until the deadline where it cannot be read.

    For an engine that could be measured before: one reading that fails says nothing of it, unless it is gone. Raises
    Unreachable where another process answers than the one that the facts are about.
    """
    deadline = Deadline(deadline_s)
    while True:
        reading = await residual(session, deadline_s=deadline.left_s)
        if isinstance(reading, Reading) or deadline.left_s <= 0:
            return reading
        seen = await session.adapter.observe(frozenset({Fact.BOOT}), deadline_s=deadline.look_s())
        if seen.alive is False:
            return reading
        other = other_process(session.facts, seen) if seen.boot is not None else None
        if other is not None:
            session.commit(knowledge.another_answered(session.record, seen))
            raise Unreachable(other, **session.about(session.busy or "a reading of memory"))
        await asyncio.sleep(min(session.policy.poll_s, deadline.left_s))


async def _observe(asked: Question, kinds: frozenset[str]) -> Observation:
    want = {Fact.BOOT, Fact.MAPPED}.union(*(_FACTS_OF[kind] for kind in kinds & OBSERVED))
    return await asked.session.adapter.observe(frozenset(want), deadline_s=asked.deadline.left_s)


async def _idle(asked: Question) -> Verdict:
    return await asked.session.adapter.prove_idle(asked.session.facts, deadline_s=asked.deadline.left_s)


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
    context = session.context(asked.command, targets=targets(asked.command, session.facts, session.capabilities))
    reading = asked.parts.get("residual")
    if reading is None and session.tenancy.ledger is not None:
        reading = await residual(session, deadline_s=asked.deadline.left_s)
    return await session.tenancy.headroom(context, reading or _NOT_READ, asked.deadline.left_s)


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
