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
from lifecycle.nodes.processes import is_alive
from lifecycle.nodes.trees import with_all_below
from lifecycle.rules.identity import boot_identity

#: Seconds within which a host lists the processes below a server's.
FAMILY_S = 10.0

#: Finds the processes within so many seconds; None where they cannot be found.
Find = Callable[[float], Awaitable[tuple[Process, ...] | None]]


class ServerProcesses:
    """The processes that listen at an address, or that a function of a deadline finds, with all below them."""

    def __init__(self, found_by: Address | Find) -> None:
        self._find: Find = partial(_at, found_by) if isinstance(found_by, Address) else found_by
        self._own_identity = ""
        self._family: tuple[Process, ...] = ()
        self._were_found = False
        #: The processes that the engine's tree hangs from; None where they cannot be found.
        self.roots: tuple[Process, ...] | None = None

    async def find(self, own_identity: str, *, deadline_s: float) -> None:
        """Finds them at connect. Raises ConfigurationError where an option of the address names no process."""
        self._own_identity = own_identity
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
        return f"pid {', '.join(str(process.pid) for process in self._family)} has ended"

    async def _has(self, processes: tuple[Process, ...] | None) -> None:
        family: tuple[Process, ...] = ()
        with suppress(TimeoutError):  # without them silence is never taken for an end
            family = await with_all_below(processes or (), deadline_s=FAMILY_S)
        self.roots, self._family = processes, family


async def _at(address: Address, deadline_s: float) -> tuple[Process, ...] | None:
    return await find_processes(address, deadline_s=deadline_s)
