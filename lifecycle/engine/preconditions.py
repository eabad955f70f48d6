"""Preconditions of a command outside the engine: how its processes were started."""

from __future__ import annotations

from ..core.deadline import Deadline
from ..core.verdicts import NotApplicable, Unmeasurable, Verdict, worst
from ..nodes.locate import by_node
from ..nodes.port import PROCESSES_UNKNOWN
from ..nodes.this_host import ThisHost
from .session import Session

_NO_SAVER = NotApplicable(reason="it does not use torch_memory_saver on a GPU")


async def hook_mode_of(session: Session, *, deadline_s: float) -> Verdict:
    """Whether torch_memory_saver's hook mode is safe where the engine runs: as it says, or read from its processes."""
    capabilities = session.capabilities
    if capabilities.saver != "torch_memory_saver" or capabilities.device != "cuda":
        return _NO_SAVER
    if capabilities.hook_mode is not None:
        return await ThisHost().mode_in_use(capabilities.hook_mode, deadline_s=deadline_s)
    processes = await session.adapter.processes()
    if not processes:
        return Unmeasurable(reason=PROCESSES_UNKNOWN)
    clock = Deadline(deadline_s)
    return worst([await node.hook_mode(there, deadline_s=clock.look_s()) for node, there in by_node(processes)])
