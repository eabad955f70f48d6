"""Preconditions of a command outside the engine: how its processes were started, and whether there is room."""

from __future__ import annotations

from ..core.commands import Command
from ..core.readings import Reading
from ..core.verdicts import NotApplicable, Unmeasurable, Verdict
from ..nodes.locate import by_node
from ..nodes.port import PROCESSES_UNKNOWN
from ..nodes.this_host import ThisHost
from . import headroom
from .headroom import worst
from .session import Session

_NO_DEVICE = "it does not say what it runs on"


async def hook_mode_of(session: Session, *, deadline_s: float) -> Verdict:
    """Whether torch_memory_saver's hook mode is safe where the engine runs: as it says, or read from its processes."""
    capabilities = session.capabilities
    if capabilities.saver != "torch_memory_saver" or capabilities.device != "cuda":
        return NotApplicable(reason="it does not use torch_memory_saver on a GPU")
    if capabilities.hook_mode is not None:
        return await ThisHost().mode_in_use(capabilities.hook_mode, deadline_s=deadline_s)
    processes = await session.adapter.processes()
    if not processes:
        return Unmeasurable(reason=PROCESSES_UNKNOWN)
    return worst([await node.hook_mode(there, deadline_s=deadline_s) for node, there in by_node(processes)])


async def host_room(session: Session, command: Command, deadline_s: float) -> Verdict:
    """Whether the hosts have memory for the backup of a release; nothing is asked of an engine that names no device."""
    if session.capabilities.device is None:
        return NotApplicable(reason=_NO_DEVICE)
    return await headroom.host_room(session, command, deadline_s)


async def device_room(
    session: Session, command: Command, reading: Reading | Unmeasurable, deadline_s: float
) -> Verdict:
    """Whether the devices have memory for what comes back; nothing is asked of an engine that names no device."""
    if session.capabilities.device is None:
        return NotApplicable(reason=_NO_DEVICE)
    return await headroom.device_room(session, command, reading, deadline_s)
