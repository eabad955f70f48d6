"""Who drives an engine: commands, moves and assertions take its lease first, and learn what another driver did.

The order: take the lease (another driver that has it is named, and nothing was sent); where another one used the engine
since it was looked at, find out where it is now; then ask whether the command is allowed there. A command that leaves
the engine serving frees the lease; one that was refused before anything was sent, too. Otherwise it is held: through a
window, and where the engine failed, until this driver brings it back, is closed, or ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

from ..core.deadline import Deadline
from ..core.errors import ConfigurationError, EngineBusy
from ..core.lease import LeaseHeld
from ..core.ports import LeaseHolder
from ..core.states import State
from ..store.leases import LeaseFunction, Leases, holder_of
from .gather import residual
from .owner import Resting, Taking, rest_together, take_together
from .reconcile import catch_up
from .session import Session

#: "user": the file of this user on this host; an engine whose URL has no host and port lives in its driver's process,
#: and has none. None: no lease is taken, and nobody is kept away.
LeaseChoice = LeaseHolder | LeaseFunction | Literal["user"] | None


def chosen_lease(choice: LeaseChoice) -> LeaseHolder | None:
    """The holder that was chosen; None where none was."""
    if choice == "user":
        return Leases()
    return None if choice is None else holder_of(choice)


def prepare(session: Session) -> None:
    """The holder can be asked, and what is known is kept beside the leases too, where the holder has a place for it.

    ConfigurationError where it cannot be asked; with `Policy(unleased="warn")` that is logged, and there is no lease.
    """
    owner = session.owner
    if isinstance(owner.holder, Leases) and owner.holder.of_user and not session.reachable:
        owner.holder = None
    try:
        if owner.holder is not None:
            owner.other(None)
        if isinstance(owner.holder, Leases) and _path(session.store) != str(owner.holder.path):
            session.shared = owner.holder.records()
    except ConfigurationError as problem:
        if session.policy.unleased == "refuse":
            raise ConfigurationError(f"{session.name}: {problem}, and Policy(unleased='warn') goes on") from None
        logging.getLogger("lifecycle").warning("%s: no other driver is kept away: %s", session.name, problem)
        owner.holder = None
    owner.kept_in = _path(session.store if session.store is not None else session.shared)


def _path(store: object) -> str | None:
    """The file of a store, where it has one: by that, drivers tell whether they read what others keep."""
    path = getattr(store, "path", None)
    return None if path is None else str(path)


def of_command(
    session: Session, what: str, deadline: Deadline, *, for_move: bool = False
) -> AbstractContextManager[None]:
    """Inside, the engine belongs to this command, which begins with `caught_up`.

    EngineBusy where another command or move of this process has it, EngineHeld where another driver does.
    """
    return _OfCommand(session, what, deadline.left_s, for_move=for_move)


@contextmanager
def of_move(sessions: Sequence[Session], move: str) -> Iterator[None]:
    """The engines are this driver's for a move: the leases of all of them are taken, or none is."""
    for session in sessions:
        _refuse_busy(session, move)
    had = [session.owner.lease is not None for session in sessions]
    refused = True
    try:
        _take_leases(sessions, move)
        for session in sessions:
            session.forget_observed()
        yield
        refused = False
    finally:
        for session in sessions:
            session.forget_observed()  # it serves nobody any more, and takes room
        _rest_leases(sessions, [refused and not mine for mine in had])


def _take_leases(sessions: Sequence[Session], move: str) -> None:
    """EngineHeld names one that another driver has."""
    takings: list[Taking | Exception | None] = []
    for each in sessions:
        may_run_still = each.record.uncertain.needs_barrier
        takings.append(each.owner.to_take(each.facts.boot, move, None, may_run_still=may_run_still))
    for session, problem in zip(sessions, take_together(takings), strict=True):
        if isinstance(problem, LeaseHeld):
            raise session.held_by(problem.lease, move) from problem
        if problem is not None:
            raise problem


def say_answered(sessions: Sequence[Session]) -> None:
    """No lease says of a call that it may run which was answered since. What cannot be written, the command says."""
    take_together(
        [
            None if each.record.uncertain.needs_barrier else each.owner.to_say_answered(each.facts.boot)
            for each in sessions
        ]
    )


def _rest_leases(sessions: Sequence[Session], new: Sequence[bool]) -> None:
    """What is not kept is freed, as after a command; where it was refused, also a lease that is `new` and unused."""
    for file in {id(file): file for each in sessions if (file := each.journal.file) is not None}.values():
        file.flush()  # before another driver can write what it did after this
    resting = []
    for session, unused in zip(sessions, new, strict=True):
        keep = not (unused and not session.owner.sent) and session.state is not State.SERVING
        may_run_still = session.record.uncertain.needs_barrier
        resting.append(Resting(session.owner, session.facts.boot, str(session.state), keep, may_run_still))
    rest_together(resting)


@contextmanager
def of_assertion(session: Session) -> Iterator[None]:
    """The engine is this driver's while a person asserts where it is: what another kept of it is written over."""
    _refuse_busy(session, "override_state")
    with _Held(session, "override_state", None):
        if session.owner.missed is not None:
            session.kept()  # the row that is written over
            session.owner.missed = None
        yield


def is_behind(session: Session) -> bool:
    """Whether another driver used the engine since this one looked, or a ledger is to be told what it holds."""
    return session.owner.missed is not None or session.tenancy.ledger is not None


async def caught_up(session: Session, deadline: Deadline) -> None:
    """What is known is of now, where another driver used the engine since this one looked."""
    owner = session.owner
    missed, owner.missed = owner.missed, None
    if missed is not None:
        try:
            await catch_up(session, deadline, missed)
        except BaseException:
            owner.missed = missed
            raise
    if session.tenancy.ledger is not None and (session.tenancy.stale or missed is not None):
        await session.tenancy.measured(session.record, await residual(session, deadline_s=deadline.look_s()))


def _refuse_busy(session: Session, what: str) -> None:
    """EngineBusy where a command or a move has the engine: its lease is not to be freed under it."""
    holder = session.holder()
    if holder is not None:
        raise EngineBusy(holder, **session.about(what))


class _Held:
    """Inside, the engine's lease is this driver's; what becomes of it afterwards, this module's beginning says.

    A class, and no generator: every engine of a move has one while the move lasts.
    """

    __slots__ = ("_for_move", "_had", "_limit_s", "_session", "_what")

    def __init__(self, session: Session, what: str, limit_s: float | None, *, for_move: bool = False) -> None:
        self._session, self._what, self._limit_s, self._for_move = session, what, limit_s, for_move

    def __enter__(self) -> None:
        self._had = self._session.owner.lease is not None
        until_s = None if self._limit_s is None else time.time() + self._limit_s
        self._session.take(self._what, until_s, for_move=self._for_move and self._had)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        session = self._session
        unused = kind is not None and not self._had and not session.owner.sent
        if not self._for_move:  # a move keeps what its commands have, until it ends
            session.rest(keep=not unused and session.state is not State.SERVING)


class _OfCommand(_Held):
    """Inside, the engine belongs to a command, and so does its lease."""

    __slots__ = ()

    def __enter__(self) -> None:
        session = self._session
        session.claim(self._what, for_move=self._for_move)
        try:
            super().__enter__()
        except BaseException:
            session.unclaim()
            raise
        if not self._for_move:
            session.forget_observed()

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        try:
            super().__exit__(kind, *about)
        finally:
            self._session.unclaim()
