"""The lease of one engine, as its driver has it: taken before the first call, held through a window.

The first take after another driver used the engine says so: what this driver knows is of before, then
(`engine.reconcile.catch_up`). A lease under which nothing was sent is freed where its command was refused.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import uuid4

from ..core.lease import Driver, Lease, LeasedEngine, LeaseHeld, LeaseUse
from ..core.ports import LeaseHolder, TakesTogether
from ..nodes.processes import node_name
from ..rules.identity import own_identity
from . import renewal

#: A number of uses that is none: another driver goes on using the engine, so that what is seen of it now is of before.
_NEVER = -1

_log = logging.getLogger("lifecycle")


class Owner:
    """One driver of one engine. Without a holder every take succeeds, and nobody is kept away."""

    __slots__ = ("_driver", "_name", "_seen", "_sent", "_uses", "address", "holder", "kept_in", "lease", "missed")

    def __init__(self, holder: LeaseHolder | None, *, name: str, address: str) -> None:
        self.holder = holder
        self.address = address
        #: Where the records of the engine are kept, as other drivers compare it; None where nobody else can tell.
        self.kept_in: str | None = None
        #: The lease as this driver has it; None where it has none.
        self.lease: Lease | None = None
        #: Who used the engine since this driver looked at it, in words; None where nobody did.
        self.missed: str | None = None
        self._name = name
        self._driver: Driver | None = None
        self._sent = False
        self._uses: int | None = None
        self._seen: Lease | None = None

    @property
    def driver(self) -> Driver:
        """Who drives the engine: named where a lease, a record or a journal asks for it."""
        if self._driver is None:
            who = f"pid {os.getpid()} on {node_name()} ({_command_line()}, engine {self._name})"
            self._driver = Driver(uuid4().hex, who)
        return self._driver

    def other(self, boot: str | None) -> Lease | None:
        """The lease of another driver that has the engine, or may have a call running on it; None where none has."""
        if self.holder is None or self.lease is not None:
            return None
        found = self.holder.seen(self._engine(boot))
        if found is None or found.token == self.driver.token:
            return None
        return found if found.held or (found.call_until_s or 0.0) > time.time() else None

    def met(self, boot: str | None) -> bool:
        """What is known of the engine is of now. True where another driver used it since this one looked before."""
        if self.holder is None:
            return False
        before, found = self._uses, self.holder.seen(self._engine(boot))
        uses = 0 if found is None else found.uses
        goes_on = found is not None and found.held and found.token != self.driver.token
        self._uses, self._seen, self.missed = _NEVER if goes_on else uses, found, None
        return before is not None and before != uses

    def take(self, boot: str | None, what: str, until_s: float | None, *, may_run_still: bool = False) -> None:
        """This driver has the engine; `missed` says who used it meanwhile. Raises LeaseHeld where another has it.

        `may_run_still`: so may a call that was sent before, until the time that the lease says of it.
        """
        asked = self.to_take(boot, what, until_s, may_run_still=may_run_still)
        if asked is not None:
            asked.take()

    def to_take(
        self, boot: str | None, what: str, until_s: float | None, *, may_run_still: bool = False
    ) -> Taking | None:
        """What `take` asks the holder for; None where there is none."""
        if self.holder is None:
            return None
        before = self.lease
        last = self.holder.seen(self._engine(boot)) if may_run_still or before is None else None

        def taken(lease: Lease) -> None:
            self.lease, had = lease, before is not None and before.since_s == lease.since_s  # else that one ended
            if self.holder is not None:
                renewal.keep(self.holder, self.driver)
            self._sent = self._sent and had
            if self._uses is not None and lease.uses != self._uses:
                self.missed = last.who if last is not None else "another driver"
            self._uses = lease.uses

        return Taking(self, boot, LeaseUse(what, until_s, self._call_until_s(last, may_run_still)), taken)

    def sends(self, boot: str | None, call_until_s: float | None) -> None:
        """A call is about to be sent; one that cannot be repeated may run until `call_until_s`."""
        (problem,) = send_under_leases([(self, boot, call_until_s)])
        if problem is not None:
            raise problem

    def goes_on(self, boot: str | None) -> bool:
        """Whether a lease that is held for a move covers one more command, so that nothing needs to be written.

        It does not where it says that a call may run which was answered since. Raises LeaseHeld where it was lost.
        """
        if self.lease is None or (self.lease.call_until_s or 0.0) > time.time():
            return False
        self.refuse_lost(boot)
        return True

    def writes_with_others(self, call_until_s: float | None) -> bool:
        """Whether a call needs a write to the lease that can be made together with those of other engines."""
        writes = self.lease is not None and not (self._sent and call_until_s is None)
        return writes and self._taker is not None

    @property
    def _taker(self) -> TakesTogether | None:
        """The holder, where it takes several leases at once."""
        holder: Any = self.holder
        return holder if _takes_together(holder.__class__) else None

    def _to_send(self, boot: str | None, call_until_s: float | None) -> Taking | None:
        """What is asked for before a call is sent; None: the lease says all. Raises LeaseHeld where it was lost."""
        if self.holder is None or self.lease is None:
            return None
        together = self._taker is not None
        if not together or (self._sent and call_until_s is None):  # else it is found out where it is written
            self.refuse_lost(boot)
            if self._sent and call_until_s is None:
                return None
        what, until_s = self.lease.what, self.lease.until_s
        use = LeaseUse(what, until_s, call_until_s, sends=True, kept_in=self.kept_in, goes_on=together)
        return Taking(self, boot, use, self._sends_under)

    def _sends_under(self, lease: Lease) -> None:
        self.lease = lease
        self._sent, self._uses = True, lease.uses

    def to_say_answered(self, boot: str | None) -> Taking | None:
        """What takes back that a call may run which was answered since; None where the lease does not say so."""
        lease = self.lease
        if lease is None or self._taker is None or (lease.call_until_s or 0.0) <= time.time():
            return None
        return Taking(self, boot, LeaseUse(lease.what, lease.until_s, goes_on=True), self._goes_on_under)

    def _goes_on_under(self, lease: Lease) -> None:
        self.lease = lease

    @property
    def fence(self) -> int:
        """The number of this driver's lease: it grows with every driver that sends something; 0 without a lease."""
        return 0 if self.lease is None else self.lease.uses

    def refuse_lost(self, boot: str | None) -> None:
        """LeaseHeld where another driver has taken the lease since this one did. Nothing is written where it has not.

        One that ended, and that nobody has taken, is taken again.
        """
        found = None if self.holder is None else self.holder.seen(self._engine(boot))
        if self.holder is None or found is None or self.lease is None:
            return
        if found.token != self.lease.token:
            raise LeaseHeld(found)
        if not found.held:  # it ended, and nobody has taken it: it is taken again, or another is quicker
            use = LeaseUse(self.lease.what, self.lease.until_s, self.lease.call_until_s)
            self.lease, self._sent = self.holder.take(self.driver, self._engine(boot), use), False

    def rests(self, boot: str | None, where: str, *, keep: bool, may_run_still: bool = False) -> None:
        """No command is under way any more. It is freed, unless it is to be kept. `may_run_still`: as in `take`."""
        try:
            rest = self.to_rest(boot, where, keep=keep, may_run_still=may_run_still)
            if rest is not None:
                rest.take()
            if not keep:
                self.free(boot)
        except Exception:  # the command has ended as it has; its engine stays this driver's
            _log.exception("%s: its lease could not be changed", self.address)

    def to_rest(self, boot: str | None, where: str, *, keep: bool, may_run_still: bool) -> Taking | None:
        """What the lease has to say once no command is under way; None where nothing: it has none, or is freed."""
        if self.holder is None or self.lease is None:
            return None
        last = self.holder.seen(self._engine(boot)) if may_run_still else None  # asked anew: the clock may be set
        call_until_s = self._call_until_s(last, may_run_still)
        if not keep and call_until_s == self.lease.call_until_s:  # what is freed need not be said to be held
            return None
        use = LeaseUse(f"an engine that it left {where}", call_until_s=call_until_s)
        return Taking(self, boot, use, self._goes_on_under)

    @staticmethod
    def _call_until_s(lease: Lease | None, may_run_still: bool) -> float | None:
        return lease.call_until_s if lease is not None and may_run_still else None

    def _engine(self, boot: str | None) -> LeasedEngine:
        """The engine as holders know it: by the identity that it reports itself, which every driver reads alike."""
        return LeasedEngine(self.address, None if boot is None else own_identity(boot))

    @property
    def kept_elsewhere(self) -> bool:
        """Whether the driver that used the engine last keeps its records elsewhere than this one."""
        last = self.lease or self._seen
        return last is not None and last.uses > 0 and (last.kept_in is None or last.kept_in != self.kept_in)

    @property
    def drives(self) -> bool:
        """Whether nobody else writes what the engine may hold: this driver has it, or nobody is kept away."""
        return self.holder is None or self.lease is not None

    @property
    def sent(self) -> bool:
        """Whether something was sent under this lease."""
        return self._sent

    def free(self, boot: str | None) -> None:
        """This driver does not have the engine any more."""
        if self.holder is not None and self.lease is not None:
            self.holder.free(self.driver, self._engine(boot))
        self.is_freed()

    def is_freed(self) -> None:
        """Its holder has the lease no more."""
        if self.holder is not None and self.lease is not None:
            renewal.drop(self.holder, self.driver)
        self.lease = None


@dataclass(frozen=True, slots=True)
class Taking:
    """What an owner asks for of the process of this boot; `taken` is called with the lease."""

    owner: Owner
    boot: str | None
    use: LeaseUse
    taken: Callable[[Lease], object]

    def take(self) -> None:
        """It is asked for, alone."""
        owner = self.owner
        if owner.holder is not None:
            self.taken(owner.holder.take(owner.driver, owner._engine(self.boot), self.use))


@dataclass(frozen=True, slots=True)
class Resting:
    """An owner whose engine, left in the state `where`, has no command under way any more (`Owner.rests`)."""

    owner: Owner
    boot: str | None
    where: str
    keep: bool
    may_run_still: bool


def send_under_leases(asked: Sequence[tuple[Owner, str | None, float | None]]) -> list[Exception | None]:
    """The leases say that something is sent: of each owner, to the process of this boot, until this time (`sends`)."""
    takings: list[Taking | Exception | None] = []
    for owner, boot, call_until_s in asked:
        try:
            takings.append(owner._to_send(boot, call_until_s))
        except Exception as problem:
            takings.append(problem)
    return take_together(takings)


def take_together(asked: Sequence[Taking | Exception | None]) -> list[Exception | None]:
    """These leases are taken, in one transaction where the holder has it.

    Returns for each what was raised, by its holder or as LeaseHeld; what was raised before, of one that is not asked.
    """
    problems: list[Exception | None] = [each if isinstance(each, Exception) else None for each in asked]
    together: dict[int, tuple[TakesTogether, list[int], list[Taking]]] = {}
    for number, each in enumerate(asked):
        if not isinstance(each, Taking) or each.owner.holder is None:
            continue
        taker = each.owner._taker
        if taker is not None:
            _, numbers, takings = together.setdefault(id(taker), (taker, [], []))
            numbers.append(number)
            takings.append(each)
            continue
        try:
            each.take()
        except Exception as problem:
            problems[number] = problem
    for taker, numbers, takings in together.values():
        try:
            taken: Sequence[Lease | Exception] = taker.take_all(
                [(each.owner.driver, each.owner._engine(each.boot), each.use) for each in takings]
            )
        except Exception as problem:
            taken = [problem] * len(numbers)
        for number, each, lease in zip(numbers, takings, taken, strict=True):
            if isinstance(lease, Exception):
                problems[number] = lease
            else:
                each.taken(lease)
    return problems


def rest_together(asked: Sequence[Resting]) -> None:
    """`Owner.rests`, of all of these in one transaction where their holder has it, and in one more of those freed."""
    taker = asked[0].owner._taker if len(asked) > 1 else None
    if taker is None or any(each.owner._taker is not taker for each in asked):
        for each in asked:
            each.owner.rests(each.boot, each.where, keep=each.keep, may_run_still=each.may_run_still)
        return
    takings: list[Taking | Exception | None] = []
    for each in asked:
        try:
            rest = each.owner.to_rest(each.boot, each.where, keep=each.keep, may_run_still=each.may_run_still)
            takings.append(rest)
        except Exception as problem:
            takings.append(problem)
    freed = []
    for each, why in zip(asked, take_together(takings), strict=True):
        if why is not None:
            _log.error("%s: its lease could not be changed", each.owner.address, exc_info=why)
        elif not each.keep and each.owner.lease is not None:
            freed.append(each)
    if not freed:
        return
    try:
        taker.free_all([(each.owner.driver, each.owner._engine(each.boot)) for each in freed])
    except Exception:
        _log.exception("%s: the lease could not be freed", ", ".join(each.owner.address for each in freed))
        return
    for each in freed:
        each.owner.is_freed()


@cache
def _takes_together(kind: Any) -> bool:
    return issubclass(kind, TakesTogether)


def _command_line() -> str:
    """The command line of this process, as far as a message needs it."""
    words = [os.path.basename(sys.argv[0] or "python"), *sys.argv[1:]]
    return " ".join(word.partition("?")[0] for word in words)[:80]  # behind the ? of a URL there may be keys
