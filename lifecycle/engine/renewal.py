"""Leases that end unless they are renewed are renewed from a thread, whatever the event loop is busy with.

A trainer's step is a call of minutes in the thread of the loop. One thread for each holder of leases renews those of
the drivers of this process, and ends when there is none left. A renewal that fails is tried again at the next turn: it
is repeatable. Once a lease has ended, the next call of its driver finds that out and is not sent (`Owner.sends`).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass
from weakref import ReferenceType, WeakKeyDictionary, ref

from ..core.lease import Driver
from ..core.ports import LeaseHolder, RenewsLeases


@dataclass(slots=True)
class _Kept:
    """A driver that has leases, of whom, and when they are renewed next (monotonic seconds)."""

    holder: RenewsLeases
    driver: ReferenceType[Driver]
    next_s: float


class _Renewals:
    """The drivers of this process, and the thread that renews for them."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._changed = threading.Condition()
        self._kept: dict[str, _Kept] = {}
        self._running = False

    def keep(self, holder: RenewsLeases, driver: Driver) -> None:
        """The leases of this driver are renewed from now on."""
        with self._changed:
            if driver.token not in self._kept:
                self._kept[driver.token] = _Kept(holder, ref(driver), time.monotonic() + holder.renew_s)
                self._changed.notify()
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="lifecycle-leases", daemon=True).start()

    def drop(self, driver: Driver) -> None:
        """The driver has no lease any more."""
        with self._changed:
            if self._kept.pop(driver.token, None) is not None:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._kept:
                    self._running = False
                    return
                now_s = time.monotonic()
                due = [each for each in self._kept.values() if each.next_s <= now_s]
                if not due:
                    self._changed.wait(min(each.next_s for each in self._kept.values()) - now_s)
                    continue
                for each in due:
                    each.next_s = now_s + each.holder.renew_s
                self._kept = {token: each for token, each in self._kept.items() if each.driver() is not None}
            for each in due:
                _renew(each)


def _renew(kept: _Kept) -> None:
    driver = kept.driver()
    if driver is None:  # nobody has the engine object any more
        return
    try:
        kept.holder.renew(driver)
    except Exception:
        logging.getLogger("lifecycle").exception("%s: its leases could not be renewed", driver.who)


#: By holder: one that does not answer keeps the leases of no other from being renewed.
_renewals: WeakKeyDictionary[RenewsLeases, _Renewals] = WeakKeyDictionary()


def _of(holder: RenewsLeases) -> _Renewals:
    """Those of this process: a thread does not survive a fork, and the leases are the parent's."""
    found = _renewals.get(holder)
    if found is None or found.pid != os.getpid():
        found = _renewals[holder] = _Renewals()
    return found


def keep(holder: LeaseHolder, driver: Driver) -> None:
    """The leases of this driver are renewed from now on, where the holder ends those that are not."""
    if hasattr(holder, "renew") and isinstance(holder, RenewsLeases):  # the first costs a hundredth
        _of(holder).keep(holder, driver)


def drop(holder: LeaseHolder, driver: Driver) -> None:
    """The driver has no lease any more."""
    if hasattr(holder, "renew") and isinstance(holder, RenewsLeases):  # the first costs a hundredth
        _of(holder).drop(driver)
