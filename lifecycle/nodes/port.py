"""The port to a host on which processes of engines run, and the values that cross it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..core.readings import Holder, Process, Reading
from ..core.verdicts import Unmeasurable, Verdict

#: Which memory is measured: that of NVIDIA GPUs, or that of the host.
Kind = Literal["cuda", "cpu"]

#: What counts as an engine's GPU memory: what its own processes hold, or all that is used of its devices.
Scope = Literal["process", "device"]

PROCESSES_UNKNOWN = (
    "its processes are not known; run on its host, or give their pid (?pid=N) or the agent of their node "
    "(?agent=HOST:PORT)"
)


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """Free bytes of one device, and the processes other than the engine's that hold the rest, largest first.

    `total_bytes` is the size of the device; None where that is not known (an agent of an older version).
    """

    free_bytes: int
    holders: tuple[Holder, ...] = ()
    total_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ProcessEnv:
    """Environment variables with which one process was started, and the CUDA version of the torch that it has loaded.

    `cuda` is a version such as "12.9"; None where the process has loaded no torch, or torch names no CUDA version.
    """

    pid: int
    environ: Mapping[str, str]
    cuda: str | None


class Node(Protocol):
    """A host on which processes of engines run.

    Every method returns within `deadline_s` seconds. A figure that cannot be had is Unmeasurable with the reason and
    the remedy, never an exception. "Trees" are the given processes and all processes below them.
    """

    async def find(
        self, *, port: int, host: str | None = None, deadline_s: float
    ) -> tuple[Process, ...] | Unmeasurable:
        """Returns the processes that listen on this TCP port, without those that are below another of them.

        `host`, as a URL spells it, leaves out those that listen at another address of the node. Where it means no
        address of that node, the port alone tells.
        """

    async def any_alive(self, processes: Sequence[Process], *, deadline_s: float) -> bool | None:
        """Returns whether any of these processes still exists, compared by pid and start time; None if unknown."""

    async def read(
        self, processes: Sequence[Process], *, kind: Kind, scope: Scope, deadline_s: float
    ) -> Reading | Unmeasurable:
        """Returns the bytes that the trees of these processes hold on each device."""

    async def hook_mode(self, processes: Sequence[Process], *, deadline_s: float) -> Verdict:
        """Returns whether the hook mode with which these trees were started is safe on the GPUs that they see."""

    async def process_env(
        self, processes: Sequence[Process], *, deadline_s: float
    ) -> tuple[ProcessEnv, ...] | Unmeasurable:
        """Returns, for every process of these trees, the variables that decide what a release does, and no others."""

    async def free_memory(
        self, devices: Sequence[str], processes: Sequence[Process], *, need_bytes: int, deadline_s: float
    ) -> Mapping[str, FreeMemory] | Unmeasurable:
        """Returns the free bytes of each of these devices (a UUID, or `host:NAME`).

        Holders other than the trees of `processes` are listed for a GPU always, for a host only where less than
        `need_bytes` is free.
        """
