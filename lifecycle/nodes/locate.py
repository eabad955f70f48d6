"""From an engine's address to its processes, and from processes to the nodes on which they run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import psutil

from ..core.deadline import Deadline
from ..core.errors import ConfigurationError
from ..core.readings import Process
from ..core.verdicts import Unmeasurable
from .address import Address
from .port import Node
from .processes import by_pid, is_local, is_loopback
from .remote import RemoteNode
from .this_host import ThisHost


def by_node(
    processes: Sequence[Process], *, threshold_gib: float | None = None
) -> Iterator[tuple[Node, tuple[Process, ...]]]:
    """Yields each node on which any of these processes run, with its processes, in the order of the processes.

    Whoever asks several nodes iterates over this. `threshold_gib` is the residual threshold (GiB) that agents of other
    nodes are given with every reading.
    """
    for agent in dict.fromkeys(process.agent for process in processes):
        node: Node = ThisHost() if agent is None else RemoteNode(agent, threshold_gib=threshold_gib)
        yield node, tuple(process for process in processes if process.agent == agent)


async def sizes_of_devices(
    processes: Sequence[Process], devices: Iterable[str], *, deadline_s: float
) -> dict[str, int]:
    """Returns the bytes of memory that each of these devices has, as far as the nodes of the processes say."""
    clock, sizes = Deadline(deadline_s), dict[str, int]()
    for node, there in by_node(processes):
        for device in devices:  # one by one: a node says nothing where it does not know one of them
            if device in sizes or (device.startswith("host:") and device != f"host:{there[0].node}"):
                continue
            found = await node.free_memory([device], there, need_bytes=0, deadline_s=clock.look_s())
            total = None if isinstance(found, Unmeasurable) else found[device].total_bytes
            sizes |= {} if total is None else {device: total}
    return sizes


async def ended(processes: Sequence[Process], *, deadline_s: float) -> bool:
    """Returns whether it is known that none of these processes exists any more; False where a node does not answer."""
    clock = Deadline(deadline_s)
    alive = [await node.any_alive(there, deadline_s=clock.look_s()) for node, there in by_node(processes)]
    return bool(alive) and all(each is False for each in alive)


async def find_processes(address: Address, *, deadline_s: float) -> tuple[Process, ...] | None:
    """Returns the processes behind an engine's URL; None where it is on another host and names no agent.

    `pid=N` names a process. `agent=HOST:PORT`, several separated by commas, has the processes found on those nodes by
    the engine's host and port. Without either they are the processes of this host that listen there, if the URL's host
    is this one. A host that means none of a node's addresses tells nothing there, and the port alone does. Raises
    ConfigurationError where the options name no process.
    """
    pid, agents = _pid(address), address.options.get("agent")
    if agents:
        return await _of_agents(address, agents.split(","), pid, deadline_s)
    if pid is not None:
        return (_on_this_host(address, pid),)
    if not is_local(address.host):
        return None
    found = await ThisHost().find(port=address.port, host=address.host, deadline_s=deadline_s)
    return None if isinstance(found, Unmeasurable) else found or None


async def _of_agents(
    address: Address, agents: Sequence[str], pid: int | None, deadline_s: float
) -> tuple[Process, ...]:
    clock = Deadline(deadline_s)
    found: list[Process] = []
    for agent in agents:
        node, here = RemoteNode(agent.strip()), is_local(agent.strip().rpartition(":")[0].strip("[]"))
        host = address.host if here or not is_loopback(address.host) else None  # which every node has
        if pid is not None:
            there = await node.find_pid(pid=pid, deadline_s=clock.look_s())
        else:
            there = await node.find(port=address.port, host=host, deadline_s=clock.look_s())
        if isinstance(there, Unmeasurable):
            raise ConfigurationError(f"{address}: {there.reason}")
        if not there:
            raise ConfigurationError(f"{address}: nothing listens on port {address.port} on the node of agent {agent}")
        found += there
    return tuple(found)


def _pid(address: Address) -> int | None:
    value = address.options.get("pid")
    if value is None:
        return None
    if not value.isdigit() or int(value) == 0:
        raise ConfigurationError(f"{address}: pid must be a number > 0, got {value!r}")
    return int(value)


def _on_this_host(address: Address, pid: int) -> Process:
    try:
        return by_pid(pid)
    except psutil.NoSuchProcess:
        raise ConfigurationError(f"{address}: there is no process {pid} on this host") from None
