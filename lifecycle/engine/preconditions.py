"""Evidence from around an engine: how it was started, and whether there is room for what comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..core.commands import Command
from ..core.deadline import Deadline
from ..core.readings import Reading
from ..core.verdicts import NotApplicable, Unmeasurable, Verdict
from ..nodes.locate import by_node
from ..nodes.port import PROCESSES_UNKNOWN
from ..nodes.this_host import ThisHost
from ..rules.evidence import Need
from .headroom import device_room, host_room, worst

if TYPE_CHECKING:
    from .engine import Engine


async def surroundings(
    engine: Engine,
    needs: frozenset[Need],
    command: Command,
    reading: Reading | Unmeasurable,
    *,
    deadline_s: float,
) -> Mapping[str, Verdict]:
    """The parts of the evidence that these needs name, by the names that they have there."""
    clock = Deadline(deadline_s)
    parts: dict[str, Verdict] = {}
    if Need.HOOK_MODE in needs:
        parts["hook_mode"] = await hook_mode_of(engine, deadline_s=clock.look_s())
    if engine.capabilities.device is None:
        return parts
    if Need.HOST_ROOM in needs:
        parts["host_room"] = await host_room(engine, command, clock.left_s)
    if Need.DEVICE_ROOM in needs:
        parts["device_room"] = await device_room(engine, command, reading, clock.left_s)
    return parts


async def hook_mode_of(engine: Engine, *, deadline_s: float) -> Verdict:
    """Whether torch_memory_saver's hook mode is safe where the engine runs: as it says, or read from its processes."""
    capabilities = engine.capabilities
    if capabilities.saver != "torch_memory_saver" or capabilities.device != "cuda":
        return NotApplicable(reason="it does not use torch_memory_saver on a GPU")
    if capabilities.hook_mode is not None:
        return await ThisHost().mode_in_use(capabilities.hook_mode, deadline_s=deadline_s)
    processes = await engine.adapter.processes()
    if not processes:
        return Unmeasurable(reason=PROCESSES_UNKNOWN)
    return worst([await node.hook_mode(there, deadline_s=deadline_s) for node, there in by_node(processes)])
