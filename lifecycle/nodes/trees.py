"""Trees of processes, from one listing for all who ask at once; none is older than its question."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.readings import Process
from .process_table import Entry, Roots, table, trees
from .processes import with_below
from .shared_scan import SharedAnswers, SharedScan

_TREES: SharedAnswers[Roots, dict[int, Process]] = SharedAnswers(lambda questions: trees(questions))
_TABLE: SharedScan[dict[int, Entry]] = SharedScan(lambda: table())


async def pids_below(roots: Sequence[Process], *, deadline_s: float) -> frozenset[int]:
    """Returns the pids of these processes and of all below them, without roots that have ended. Raises TimeoutError."""
    if not roots:
        return frozenset()
    return frozenset(await _TREES.ask(tuple(roots), deadline_s=deadline_s))


async def with_all_below(roots: Sequence[Process], *, deadline_s: float) -> tuple[Process, ...]:
    """Returns the same as `process_trees`. Raises TimeoutError."""
    local = tuple(root for root in roots if root.agent is None)
    return with_below(roots, await _TREES.ask(local, deadline_s=deadline_s) if local else {})


async def every_process(*, deadline_s: float) -> dict[int, Entry]:
    """Returns the process table of this host. Raises TimeoutError."""
    return await _TABLE.result(deadline_s=deadline_s)
