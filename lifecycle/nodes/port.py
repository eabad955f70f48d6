"""The port to a host on which processes of engines run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..core.readings import Holder, Process, Reading
from ..core.verdicts import Unmeasurable, Verdict
from .nvml import Scope
from .process_env import Launched

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
