"""Room: whether there is memory for what a command is about to map, and who holds it where there is not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from ..core.commands import Command, Release
from ..core.deadline import Deadline
from ..core.facts import Grade, Tag
from ..core.ports import KeepsOnHost
from ..core.readings import Process, Reading
from ..core.units import mib
from ..core.verdicts import NotApplicable, Proved, Refuted, Unmeasurable, Verdict, worst
from ..nodes.locate import by_node
from ..nodes.port import PROCESSES_UNKNOWN, FreeMemory
from ..nodes.this_host import ThisHost
from ..rules.evidence import Context, targets
from ..rules.weights import is_kept
from .session import Session

_NO_DEVICE = NotApplicable(reason="it does not say what it runs on")

#: How many holders are named.
NAMED = 3


async def device_room(
    session: Session, command: Command, reading: Reading | Unmeasurable, deadline_s: float
) -> Verdict:
    """Whether every device of the engine has free memory for the tags that come back; asked until it has.

    A trainer frees late: it is waited for, as long as the policy says and at most half of the time that is left.
    """
    if session.capabilities.device is None:
        return _NO_DEVICE
    context = _context(session, command)
    if not context.targets:
        return NotApplicable(reason="nothing is to be mapped")
    if isinstance(reading, Unmeasurable):
        return reading
    need = context.share_bytes(context.targets, session.record.calibration.reading_all_mapped or reading)
    if need is None:
        return NotApplicable(reason=f"how much {_named(context)} need is not known yet")
    processes = await session.adapter.processes() or ()
    asking, waiting = Deadline(deadline_s), Deadline(min(session.policy.room_wait_s, deadline_s / 2))
    short: Refuted | None = None
    while True:
        verdict = await _device_room(session, context, processes, reading, need, asking)
        if not isinstance(verdict, Refuted):
            # Silence after an answer is no better than the answer: what was short is short still.
            return short if short is not None and isinstance(verdict, Unmeasurable) else verdict
        if waiting.left_s <= 0:
            return verdict
        short = verdict
        await asyncio.sleep(min(session.policy.poll_s, waiting.left_s))


async def _device_room(
    session: Session, context: Context, processes: Sequence[Process], reading: Reading, need: int, deadline: Deadline
) -> Verdict:
    nodes = list(by_node(processes))
    verdicts = []
    for node, there in nodes:
        devices = list(reading.devices) if len(nodes) == 1 else await _devices_there(session, there, deadline)
        free = await node.free_memory(devices, there, need_bytes=need, deadline_s=deadline.look_s())
        verdicts.append(judge(need, free, _named(context)))
    return worst(verdicts)


async def _devices_there(session: Session, processes: Sequence[Process], deadline: Deadline) -> list[str]:
    """The devices on which these processes of the engine are."""
    reading = await session.probe.read(processes, deadline_s=deadline.look_s())
    return [] if isinstance(reading, Unmeasurable) else list(reading.devices)


async def host_room(session: Session, command: Command, deadline_s: float) -> Verdict:
    """Whether the hosts of the engine have memory for what this release newly keeps there."""
    if session.capabilities.device is None:
        return _NO_DEVICE
    context = _context(session, command)
    source = command.weights if isinstance(command, Release) else None
    specs = [session.capabilities.spec(tag) for tag in context.targets]
    kept = frozenset(spec.name for spec in specs if spec.on_host and is_kept(spec, source))
    knows = isinstance(session.adapter, KeepsOnHost)
    if not kept and not knows:
        return NotApplicable(reason="it keeps no backup of what is released")
    processes = await session.adapter.processes()
    if not processes:
        return Unmeasurable(reason=PROCESSES_UNKNOWN)
    nodes = list(by_node(processes))
    clock = Deadline(deadline_s)
    if knows:
        need: int | None = _own_bytes(session, command)
    else:
        need = await _backup_bytes(session, context, kept, processes, len(nodes), clock)
    if need is None:
        return NotApplicable(reason="how much is backed up is not known yet")
    if not need:
        return NotApplicable(reason="it takes no more of its host's memory than it holds already")
    verdicts = []
    for node, there in nodes:
        free = await node.free_memory([f"host:{there[0].node}"], there, need_bytes=need, deadline_s=clock.look_s())
        verdicts.append(judge(need, free, f"the backup of {', '.join(sorted(kept or context.targets))}"))
    return worst(verdicts)


def _own_bytes(session: Session, command: Command) -> int:
    """What an adapter that knows says."""
    assert isinstance(session.adapter, KeepsOnHost)
    return session.adapter.host_bytes(command, session.facts) if isinstance(command, Release) else 0


async def _backup_bytes(
    session: Session,
    context: Context,
    kept: frozenset[Tag],
    processes: Sequence[Process],
    nodes: int,
    deadline: Deadline,
) -> int | None:
    """The bytes of these tags on each host; none where the backup of an earlier release is still there."""
    per_rank = context.expected_bytes(kept)
    if per_rank is None:
        return None
    returned = "memory_returned" in session.record.conditions
    if returned and await ThisHost().retains_backup(processes, deadline_s=deadline.look_s()):
        return 0
    return per_rank * -(-session.capabilities.ranks // nodes)


def judge(need_bytes: int, free: Mapping[str, FreeMemory] | Unmeasurable, what: str) -> Verdict:
    """Whether each of these devices has `need_bytes` free for `what`; names who holds the rest of one that has not."""
    if isinstance(free, Unmeasurable):
        return free
    figures = {"needed_bytes": need_bytes, "free_bytes": {device: each.free_bytes for device, each in free.items()}}
    for device, each in free.items():
        if each.free_bytes < need_bytes:
            summary = f"{device} has {mib(each.free_bytes)} free, and {what} need {mib(need_bytes)}"
            return Refuted(reason=f"{summary}; {_holders(each)}", figures=figures)
    least = min((each.free_bytes for each in free.values()), default=0)
    return Proved(grade=Grade.MEASURED, reason=f"{mib(least)} free, {mib(need_bytes)} needed", figures=figures)


def _context(session: Session, command: Command) -> Context:
    return session.context(command, targets=targets(command, session.facts, session.capabilities))


def _named(context: Context) -> str:
    return ", ".join(sorted(context.targets))


def _holders(free: FreeMemory) -> str:
    if not free.holders:
        return "nobody else is listed there"
    return "; ".join(str(holder) for holder in free.holders[:NAMED])
