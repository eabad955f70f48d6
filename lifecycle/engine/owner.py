"""The lease of one engine, as its driver has it: taken before the first call, held through a window.

The first take after another driver used the engine says so: what this driver knows is of before, then
(`engine.reconcile.catch_up`). A lease under which nothing was sent is freed where its command was refused.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..core.lease import Driver, Lease, LeasedEngine, LeaseHeld, LeaseUse
from ..core.ports import LeaseHolder, TakesTogether
from ..nodes.processes import node_name
from ..rules.identity import own_identity
from . import renewal

#: A number of uses that is none: another driver goes on using the engine, so that what is seen of it now is of before.
_NEVER = -1


class Owner:
    """One driver of one engine. Without a holder every take succeeds, and nobody is kept away."""

    __slots__ = ("_seen", "_sent", "_uses", "address", "driver", "holder", "kept_in", "lease", "missed")

    def __init__(self, holder: LeaseHolder | None, *, name: str, address: str) -> None:
        self.holder = holder
        self.address = address
        #: Where the records of the engine are kept, as other drivers compare it; None where nobody else can tell.
        self.kept_in: str | None = None
        self.driver = Driver(uuid4().hex, f"pid {os.getpid()} on {node_name()} ({_command_line()}, engine {name})")
        #: The lease as this driver has it; None where it has none.
        self.lease: Lease | None = None
        #: Who used the engine since this driver looked at it, in words; None where nobody did.
        self.missed: str | None = None
        self._sent = False
        self._uses: int | None = None
        self._seen: Lease | None = None

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
        if self.holder is None:
            return
        engine, had = self._engine(boot), self.lease is not None
        last = self.holder.seen(engine) if may_run_still or not had else None
        call_until_s = self._call_until_s(last, may_run_still)
        before, self.lease = self.lease, self.holder.take(self.driver, engine, LeaseUse(what, until_s, call_until_s))
        had = before is not None and before.since_s == self.lease.since_s  # else it is another: that one ended
        renewal.keep(self.holder, self.driver)
        self._sent = self._sent and had
        if self._uses is not None and self.lease.uses != self._uses:
            self.missed = last.who if last is not None else "another driver"
        self._uses = self.lease.uses

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

    def _use_to_send(self, boot: str | None, call_until_s: float | None) -> LeaseUse | None:
        """What the lease has to say before a call is sent; None where it does. Raises LeaseHeld where it was lost."""
        if self.holder is None or self.lease is None:
            return None
        together = self._taker is not None
        if not together or (self._sent and call_until_s is None):  # else it is found out where it is written
            self.refuse_lost(boot)
            if self._sent and call_until_s is None:
                return None
        what, until_s = self.lease.what, self.lease.until_s
        return LeaseUse(what, until_s, call_until_s, sends=True, kept_in=self.kept_in, goes_on=together)

    def _sends_under(self, lease: Lease) -> None:
        self.lease = lease
        self._sent, self._uses = True, lease.uses

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
        if self.holder is None or self.lease is None:
            return
        engine = self._engine(boot)
        try:
            last = self.holder.seen(engine) if may_run_still else None  # asked anew: the clock may have been set
            call_until_s = self._call_until_s(last, may_run_still)
            if keep or call_until_s != self.lease.call_until_s:  # what is freed need not be said to be held
                use = LeaseUse(f"an engine that it left {where}", call_until_s=call_until_s)
                self.lease = self.holder.take(self.driver, engine, use)
            if not keep:
                self.free(boot)
        except Exception:  # the command has ended as it has; its engine stays this driver's
            logging.getLogger("lifecycle").exception("%s: its lease could not be changed", self.address)

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
            renewal.drop(self.holder, self.driver)
            self.holder.free(self.driver, self._engine(boot))
        self.lease = None


def send_under_leases(asked: Sequence[tuple[Owner, str | None, float | None]]) -> list[Exception | None]:
    """The leases say that something is sent: of each owner, to the process of this boot, until this time (`sends`).

    In one transaction where the holder has it. Returns for each what was raised, by its holder or as LeaseHeld.
    """
    problems: list[Exception | None] = [None] * len(asked)
    together: dict[int, tuple[TakesTogether, list[int], list[tuple[Driver, LeasedEngine, LeaseUse]]]] = {}
    for number, (owner, boot, call_until_s) in enumerate(asked):
        try:
            use, holder, taker = owner._use_to_send(boot, call_until_s), owner.holder, owner._taker
            if use is None or holder is None:
                continue
            request = (owner.driver, owner._engine(boot), use)
            if taker is None:
                owner._sends_under(holder.take(*request))
                continue
            _, numbers, requests = together.setdefault(id(holder), (taker, [], []))
            numbers.append(number)
            requests.append(request)
        except Exception as problem:
            problems[number] = problem
    for taker, numbers, requests in together.values():
        try:
            taken: Sequence[Lease | Exception] = taker.take_all(requests)
        except Exception as problem:
            taken = [problem] * len(numbers)
        for number, lease in zip(numbers, taken, strict=True):
            if isinstance(lease, Exception):
                problems[number] = lease
            else:
                asked[number][0]._sends_under(lease)
    return problems


@cache
def _takes_together(kind: Any) -> bool:
    return issubclass(kind, TakesTogether)


def _command_line() -> str:
    """The command line of this process, as far as a message needs it."""
    words = [Path(sys.argv[0] or "python").name, *sys.argv[1:]]
    return " ".join(word.partition("?")[0] for word in words)[:80]  # behind the ? of a URL there may be keys
