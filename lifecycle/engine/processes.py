"""Which processes an engine consists of: kept with its record, so that a later driver can tell that all have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..core.deadline import Deadline
from ..core.frozen import replace
from ..core.readings import Process
from ..core.record import Record
from ..nodes.locate import ended
from ..nodes.processes import node_name
from ..nodes.trees import with_all_below
from .session import Session

#: How long a process may listen no more and still be there: the kernel frees its memory in between.
ENDING_S = 1.0

#: Seconds that one listing of the processes of this host may take. It waits for nothing but the CPU.
LISTING_S = 60.0


async def with_processes(session: Session, record: Record) -> Record:
    """The record, which has the processes of the engine that answers: its roots, and what is below those on this host.

    They are looked for where the roots are others than the record has.
    """
    roots = await session.adapter.processes() or ()
    known = record.calibration.processes
    if set(roots) <= set(known) and bool(roots) == bool(known):
        return record
    if any(_is_here(each) for each in roots):
        try:
            roots = await with_all_below(roots, deadline_s=LISTING_S)
        except TimeoutError:
            roots = ()  # of processes that are not known nobody says that they have ended
    return replace(record, calibration=replace(record.calibration, processes=roots))


async def have_ended(session: Session, processes: Sequence[Process], deadline: Deadline) -> bool:
    """Whether it is known that all of these have ended. Of another host only its agent can tell."""
    if not processes or not all(each.agent is not None or _is_here(each) for each in processes):
        return False
    end = Deadline(min(ENDING_S, deadline.left_s / 2))
    while True:
        if await ended(processes, deadline_s=deadline.look_s(0.5)):
            return True
        if not end.left_s:
            return False
        await asyncio.sleep(min(session.policy.poll_s, end.left_s))


def _is_here(process: Process) -> bool:
    return process.agent is None and process.node == node_name()
