"""From an address to the processes of an engine, and to the hosts on which they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psutil

from ..core.errors import ConfigurationError
from ..core.readings import Process
from ..core.verdicts import Unmeasurable
from .address import Address
from .port import Node
from .process_memory import tree
from .processes import by_pid, find_listening, is_local
from .this_host import ThisHost


def node_at(agent: str | None) -> Node:
    """This host, or the one whose agent listens at `host:port`."""
    if agent is None:
        return ThisHost()
    from .remote import RemoteNode

    return RemoteNode(agent)


def by_node(processes: Sequence[Process]) -> Iterator[tuple[Node, tuple[Process, ...]]]:
    """Each node on which any of these run, with those of them that do."""
    for agent in dict.fromkeys(process.agent for process in processes):
        yield node_at(agent), tuple(process for process in processes if process.agent == agent)


def families(processes: Sequence[Process]) -> tuple[Process, ...]:
    """These processes and, on this host, all that hang below them now: children outlive a parent that is killed."""
    found = list(processes)
    for process in processes:
        if process.agent is None:
            found += [by_pid(pid) for pid in tree(process) - {process.pid} if psutil.pid_exists(pid)]
    return tuple(found)


async def ended(processes: Sequence[Process], *, deadline_s: float) -> bool:
    """Whether it is known that none of these processes exists any more."""
    told = [await node.any_alive(each, deadline_s=deadline_s) for node, each in by_node(processes)]
    return bool(told) and all(answer is False for answer in told)


async def find_processes(address: Address, *, deadline_s: float) -> tuple[Process, ...] | None:
    """The processes behind an engine's URL; None where it is elsewhere and names no agent.

    `pid=N` gives them; `agent=HOST:PORT`, several separated by commas where it spans nodes, has them found there by
    the engine's port. Otherwise they are those that listen on that port, if the host is this one. ConfigurationError
    says what is wrong with what was given.
    """
    pid, agents = _pid(address), address.options.get("agent")
    if agents:
        return await _of_agents(address, agents.split(","), pid, deadline_s)
    if pid is not None:
        return (_here(address, pid),)
    if not is_local(address.host):
        return None
    return await find_listening(address.port, deadline_s=deadline_s) or None


async def _of_agents(
    address: Address, agents: Sequence[str], pid: int | None, deadline_s: float
) -> tuple[Process, ...]:
    from .remote import RemoteNode

    found: list[Process] = []
    for agent in agents:
        node = RemoteNode(agent.strip())
        if pid is not None:
            there = await node.find_pid(pid=pid, deadline_s=deadline_s)
        else:
            there = await node.find(port=address.port, deadline_s=deadline_s)
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


def _here(address: Address, pid: int) -> Process:
    try:
        return by_pid(pid)
    except psutil.NoSuchProcess:
        raise ConfigurationError(f"{address}: there is no process {pid} on this host") from None
