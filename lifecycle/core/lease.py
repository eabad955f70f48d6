"""Leases: which driver has an engine, so that no second one changes it at the same time.

A driver is one Session: an `Engine` object of one process. It takes a lease before the first call that changes an
engine, and holds it until the engine serves again, the driver is closed, or its process ends. Whoever only looks needs
none. Times are wall-clock seconds since 1970: they are compared across processes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Driver:
    """Who takes leases: `token` names it, `who` says it in words, with process and host."""

    token: str
    who: str


@dataclass(frozen=True, slots=True)
class LeasedEngine:
    """What an engine is known by. Two with one address, or with one boot, are the same engine.

    `address` is of the engine's host and port, not as a URL spells them; so a restart frees nothing. `boot` is None
    where no process was seen yet.
    """

    address: str
    boot: str | None = None


@dataclass(frozen=True, slots=True)
class LeaseUse:
    """What a driver does with an engine, and until when at the latest (None: until the engine serves again).

    `call_until_s`: until then a call that cannot be repeated may run. `sends`: something is sent from here on; what is
    known of the engine is kept in `kept_in`. `goes_on`: it has the lease, and is refused where another took it since,
    whether that one has it still or not; asked of those that take several at once (`ports.TakesTogether`).
    """

    what: str
    until_s: float | None = None
    call_until_s: float | None = None
    sends: bool = False
    kept_in: str | None = None
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease of one engine as it was taken last.

    `held`: its driver has it still, and lives. `what` is the command under way, or where the engine was left, and
    `until_s` when that command has ended at the latest; None where it is held until the engine serves again.
    `call_until_s`: until then a call that cannot be repeated may run on the engine, whether its driver lives or not.
    `uses` counts the leases under which something was sent; `kept_in` says where the last of them kept its records.
    """

    token: str
    who: str
    what: str
    held: bool
    since_s: float
    until_s: float | None = None
    call_until_s: float | None = None
    uses: int = 0
    kept_in: str | None = None

    def __str__(self) -> str:
        return f"{self.who} has it for {self.what}, since {clock(self.since_s)}, until {self.until}"

    @property
    def until(self) -> str:
        """Until when it is held, in words."""
        if not self.held and self.call_until_s is not None:
            return f"{clock(self.call_until_s)}, since what it sent may run until then"
        if self.until_s is None:
            return "the engine serves again or that process ends"
        return clock(self.until_s)


def next_lease(driver: Driver, use: LeaseUse, *, last: Lease | None, sent: bool) -> tuple[Lease, bool]:
    """The lease once this driver has taken the engine for `use`, and whether something was or is sent under it.

    `last` is the lease that was taken last, with the highest number of uses that the engine has. One that is held is
    this driver's. `sent`: something was sent under that one.
    """
    goes_on = last is not None and last.held
    sent = sent and goes_on
    counts = use.sends and not sent
    lease = Lease(
        token=driver.token,
        who=driver.who,
        what=use.what,
        held=True,
        since_s=last.since_s if last is not None and goes_on else time.time(),
        until_s=use.until_s,
        call_until_s=use.call_until_s,
        uses=(0 if last is None else last.uses) + counts,
        kept_in=use.kept_in if use.sends or last is None else last.kept_in,
    )
    return lease, sent or counts


class LeaseHeld(Exception):
    """Another driver has the engine."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        super().__init__(str(lease))


def clock(at_s: float) -> str:
    """A time as ISO 8601, in this host's time zone."""
    return datetime.fromtimestamp(at_s).astimezone().isoformat(timespec="seconds")
