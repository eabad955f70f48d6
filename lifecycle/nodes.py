"""Where an engine's processes run, and what can be asked there: this host itself, another through its agent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import psutil

from .adapter import Process
from .errors import ConfigurationError
from .hook_mode import HookMode, in_use
from .launched_with import Launched, hook_mode_verdict, told_of
from .registry import Address
from .residual import Holder, Reading, ResidualProbe
from .residual.driver import DriverUnavailable, NvmlDriver, driver
from .residual.host_memory import available_bytes, biggest_holders
from .residual.nvml import THIS_HOST, NvmlProbe, Scope, others
from .residual.offloop import in_thread
from .residual.owners import by_pid, find_listening, is_local, listening_on
from .residual.process_memory import ProcessMemoryProbe, alive, tree
from .verdicts import Unmeasurable, Verdict

Kind = Literal["cuda", "cpu"]

PROCESSES_UNKNOWN = (
    "its processes are not known; run on its host, or give their pid (?pid=N) or the agent of their node "
    "(?agent=HOST:PORT)"
)


@dataclass(frozen=True, slots=True)
class Free:
    """What is free of one device, and who holds the rest of it beside the engine that asks, the biggest first."""

    free_bytes: int
    holders: tuple[Holder, ...] = ()


class Node(Protocol):
    """A host on which processes of engines run. What cannot be had is Unmeasurable, never an exception."""

    async def find(self, *, port: int, deadline_s: float) -> tuple[Process, ...] | Unmeasurable:
        """The topmost processes that listen on this port."""

    async def any_alive(self, processes: Sequence[Process], *, deadline_s: float) -> bool | None:
        """Whether any of these very processes still exists; None where that cannot be told."""

    async def read(
        self, processes: Sequence[Process], *, kind: Kind, scope: Scope, deadline_s: float
    ) -> Reading | Unmeasurable:
        """What the trees below these processes hold."""

    async def hook_mode(self, processes: Sequence[Process], *, deadline_s: float) -> Verdict:
        """Whether the hook mode with which these trees were started is safe on their GPUs."""

    async def launched(self, processes: Sequence[Process], *, deadline_s: float) -> tuple[Launched, ...] | Unmeasurable:
        """How every process of these trees was started: the variables that decide what a release does, no others."""

    async def free(
        self, devices: Sequence[str], processes: Sequence[Process], *, need_bytes: int, deadline_s: float
    ) -> Mapping[str, Free] | Unmeasurable:
        """What is free of each of these devices; of one that has less than `need_bytes`, who holds the rest."""


class ThisHost:
    """The host that this process runs on."""

    def __init__(self, nvml: NvmlDriver | None = None) -> None:
        self._driver = nvml or driver()

    async def find(self, *, port: int, deadline_s: float) -> tuple[Process, ...] | Unmeasurable:
        """The topmost processes that listen on this port here."""
        try:
            return await in_thread(lambda: listening_on(port), deadline_s=deadline_s)
        except TimeoutError:
            return Unmeasurable(reason=f"the listening processes were not found in {deadline_s:.1f} s")

    async def any_alive(self, processes: Sequence[Process], *, deadline_s: float) -> bool | None:
        """Whether any of these very processes still exists."""
        return any(alive(process) for process in processes)

    async def read(
        self, processes: Sequence[Process], *, kind: Kind, scope: Scope, deadline_s: float
    ) -> Reading | Unmeasurable:
        """What the trees below these processes hold: by the driver, or of this host's memory."""
        probe: ResidualProbe = NvmlProbe(scope=scope, nvml=self._driver) if kind == "cuda" else ProcessMemoryProbe()
        return await probe.read(processes, deadline_s=deadline_s)

    async def hook_mode(self, processes: Sequence[Process], *, deadline_s: float) -> Verdict:
        """Read from the environment of the processes, and from the driver."""
        try:
            return await in_thread(lambda: hook_mode_verdict(processes, nvml=self._driver), deadline_s=deadline_s)
        except TimeoutError:
            return Unmeasurable(reason=f"the hook mode was not found out in {deadline_s:.1f} s")

    async def launched(self, processes: Sequence[Process], *, deadline_s: float) -> tuple[Launched, ...] | Unmeasurable:
        """Read from the environment of the processes."""
        try:
            return await in_thread(lambda: told_of(processes), deadline_s=deadline_s)
        except TimeoutError:
            return Unmeasurable(reason=f"how they were started was not found out in {deadline_s:.1f} s")

    async def mode_in_use(self, mode: HookMode, *, deadline_s: float) -> Verdict:
        """Whether the hook mode that this very process uses is safe on its GPUs."""
        try:
            return await in_thread(lambda: in_use(mode, nvml=self._driver), deadline_s=deadline_s)
        except TimeoutError:
            return Unmeasurable(reason=f"the GPUs of this process were not found out in {deadline_s:.1f} s")

    async def free(
        self, devices: Sequence[str], processes: Sequence[Process], *, need_bytes: int, deadline_s: float
    ) -> Mapping[str, Free] | Unmeasurable:
        """Free bytes by the driver; of `host:...`, what this host or this container has left."""
        try:
            return await in_thread(lambda: self._free(devices, processes, need_bytes), deadline_s=deadline_s)
        except TimeoutError:
            return Unmeasurable(reason=f"nobody said in {deadline_s:.1f} s how much memory is free")
        except DriverUnavailable as error:
            return Unmeasurable(reason=str(error))

    def _free(self, devices: Sequence[str], processes: Sequence[Process], need_bytes: int) -> Mapping[str, Free]:
        pids = frozenset(pid for process in processes for pid in tree(process))
        found: dict[str, Free] = {}
        for device in devices:
            if device.startswith("host:"):
                left = available_bytes()
                found[device] = Free(left, biggest_holders(device, pids) if left < need_bytes else ())
        gpus = [device for device in devices if device not in found]
        return {**found, **self._free_of_gpus(gpus, pids)} if gpus else found

    def _free_of_gpus(self, uuids: Sequence[str], pids: frozenset[int]) -> Mapping[str, Free]:
        snapshot = self._driver.snapshot()
        known = {device.uuid: device for device in snapshot.devices}
        found = {}
        for uuid in uuids:
            device = known.get(uuid)
            if device is None or device.free_bytes is None:
                raise DriverUnavailable(f"the driver does not say how much of {device or uuid} is free")
            found[uuid] = Free(device.free_bytes, others(snapshot, uuid, pids, THIS_HOST))
        return found


def node_at(agent: str | None) -> Node:
    """This host, or the one whose agent listens at `host:port`."""
    if agent is None:
        return ThisHost()
    from .residual.remote import RemoteNode

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
    from .residual.remote import RemoteNode

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
