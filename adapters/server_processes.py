"""The processes of an engine that is a server: its boot identity, and whether its silence is its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from lifecycle.core.deadline import Deadline
from lifecycle.core.errors import ConfigurationError
from lifecycle.core.readings import Process
from lifecycle.nodes.address import Address
from lifecycle.nodes.locate import ended, find_processes
from lifecycle.nodes.processes import is_alive, said_ended
from lifecycle.nodes.trees import with_all_below
from lifecycle.rules.identity import boot_identity

#: Seconds within which a host lists the processes below a server's.
FAMILY_S = 10.0

#: Finds the processes within so many seconds; None where they cannot be found.
Find = Callable[[float], Awaitable[tuple[Process, ...] | None]]
#: Processes that listen at an address, and these with all below them.
Found = tuple[tuple[Process, ...], tuple[Process, ...]]


class ServerProcesses:
    """The processes that listen at an address, or that a function of a deadline finds, with all below them."""

    def __init__(self, found_by: Address | Find) -> None:
        self._find: Find = partial(_at, found_by) if isinstance(found_by, Address) else found_by
        #: Whether they are processes of this host behind an address.
        self._here = isinstance(found_by, Address) and "agent" not in found_by.options
        self._own_identity = ""
        self._family: tuple[Process, ...] = ()
        self._were_found = False
        #: The processes that the engine's tree hangs from; None where they cannot be found.
        self.roots: tuple[Process, ...] | None = None

    async def found_early(self, clock: Deadline) -> Found | None:
        """The processes of this host behind the address, and those below them, found while the server answers.

        One that listened before and lives afterwards is the one that answered. So all engines that are connected at
        once share one scan of the host. None where they are to be looked for afterwards.
        """
        if not self._here:
            return None
        try:
            found = await self._find(clock.left_s / 2)
            return (found, await _family(found)) if found else None
        except Exception:  # what is wrong is said afterwards, where a server answers
            return None

    async def find(self, own_identity: str, *, deadline_s: float, early: Found | None = None) -> None:
        """Finds them at connect; those that were found early count where they all live.

        Raises ConfigurationError where an option of the address names no process.
        """
        self._own_identity = own_identity
        if early and all(is_alive(each) for each in early[0]):
            self.roots, self._family = early
        else:
            await self._has(await self._find(deadline_s))
        self._were_found = bool(self.roots)

    async def boot(self, own_identity: str, clock: Deadline) -> str:
        """The boot identity of the server that answered. Its processes are looked for where they are not as before.

        Where none is found, those from before count as its own still, unless it is another server and they have ended:
        who has ended since it answered is known to have ended by them, and of two identities in one process
        `rules.identity` takes neither for a fresh one.
        """
        before = self.roots or ()
        gone = self._were_found and not (before and all(is_alive(each) for each in before if each.agent is None))
        if own_identity != self._own_identity or gone:
            found = None
            with suppress(ConfigurationError):  # `pid=` named a process of the server before the restart
                found = await self._find(clock.look_s())
            same = own_identity == self._own_identity
            if not found and before and (same or not await ended(before, deadline_s=clock.look_s())):
                found = before
            self._own_identity = own_identity
            await self._has(found)
        return boot_identity(own_identity, self.roots or ())

    def all_there(self) -> bool:
        """Whether every process was found, is of this host, and exists."""
        return bool(self.roots) and all(each.agent is None and is_alive(each) for each in self.roots or ())

    async def end(self, clock: Deadline) -> str | None:
        """That all of them have ended, in words; None where one may live."""
        if not self._family or not await ended(self._family, deadline_s=clock.left_s):
            return None
        return said_ended(self._family)

    def left(self) -> str:
        """Those of them that live on this host while nothing of them answers, in words; empty where none does."""
        pids = [str(each.pid) for each in self._family if each.agent is None and is_alive(each)]
        if len(pids) > 1:
            return f"pids {', '.join(pids)} have not ended, and hold their memory until then: end them"
        return f"pid {pids[0]} has not ended, and holds its memory until then: end it" if pids else ""

    async def _has(self, processes: tuple[Process, ...] | None) -> None:
        self.roots, self._family = processes, await _family(processes or ())


async def _at(address: Address, deadline_s: float) -> tuple[Process, ...] | None:
    return await find_processes(address, deadline_s=deadline_s)


async def _family(processes: tuple[Process, ...]) -> tuple[Process, ...]:
    """These and all below them; none where they could not be listed: silence is never taken for an end then."""
    with suppress(TimeoutError):
        return await with_all_below(processes, deadline_s=FAMILY_S)
    return ()
