"""Leases in memory, for the drivers of many hosts: one process keeps the table, an actor for instance, and all ask it.

From another host nobody can tell whether a driver lives. So a lease here ends `ttl_s` seconds after its driver
renewed it last. A driver renews from a thread of its own (`engine.renewal`), which no step of a trainer keeps busy. One
that was stopped for longer finds that another has its engine, and sends nothing.

    leases = ray.remote(LeaseTable).options(name="leases", max_concurrency=8).remote()     # once, anywhere
    ask = lambda what, **about: ray.get(getattr(leases, what).remote(**about))
    Fleet.connect(urls, lease=RenewingHolder(ask, renew_s=20.0))

How long a call may still run is compared with this host's clock: hosts whose clocks differ by seconds need that many
more in `ttl_s`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

from ..core.errors import ConfigurationError
from ..core.lease import Driver, Lease, LeasedEngine, LeaseHeld, LeaseUse, next_lease

#: Seconds for which a lease is held that is not renewed.
TTL_S = 60.0


@dataclass(slots=True)
class _Row:
    """The lease of one engine, whether something was sent under it, and when it ends (monotonic seconds)."""

    engine: LeasedEngine
    lease: Lease
    used: bool
    ends_s: float


class LeaseTable:
    """The leases of engines (a `LeaseHolder` that `RenewsLeases`). Any thread may ask."""

    def __init__(self, ttl_s: float = TTL_S) -> None:
        if not ttl_s > 0:
            raise ConfigurationError(f"ttl_s={ttl_s!r}: seconds > 0")
        self.ttl_s = ttl_s
        self._rows: dict[str, _Row] = {}
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return f"drivers that ask the same table (leases end {self.ttl_s:g} s after they were renewed last)"

    @property
    def renew_s(self) -> float:
        """Seconds between two renewals: two may be lost."""
        return self.ttl_s / 3

    def take(self, driver: Driver, engine: LeasedEngine, use: LeaseUse) -> Lease:
        """The driver has the engine. Raises LeaseHeld where another has it, or what another sent may still run."""
        with self._lock:
            last = self._last(engine)
            if last is not None and last.lease.token != driver.token and _is_taken(last):
                raise LeaseHeld(_as_of_now(last))
            mine = last is not None and last.lease.token == driver.token and last.lease.held
            known = None if last is None else replace(last.lease, held=mine, uses=self._uses(engine))
            lease, sent = next_lease(driver, use, last=known, sent=last is not None and last.used)
            self._rows[engine.address] = _Row(engine, lease, sent, time.monotonic() + self.ttl_s)
            return lease

    def free(self, driver: Driver, engine: LeasedEngine) -> None:
        """The driver does not have the engine any more."""
        with self._lock:
            for row in self._of(engine):
                if row.lease.token == driver.token:
                    row.lease = replace(row.lease, held=False)

    def seen(self, engine: LeasedEngine) -> Lease | None:
        """The lease that was taken last of this engine; None where none ever was."""
        with self._lock:
            last = self._last(engine)
            return None if last is None else replace(_as_of_now(last), uses=self._uses(engine))

    def renew(self, driver: Driver) -> None:
        """The leases that the driver still has end `ttl_s` from now. One that has ended stays so."""
        with self._lock:
            for row in self._rows.values():
                if row.lease.token == driver.token and _is_held(row):
                    row.ends_s = time.monotonic() + self.ttl_s

    def _of(self, engine: LeasedEngine) -> list[_Row]:
        """What there is of this engine, under any of its names."""
        return [
            row
            for row in self._rows.values()
            if row.engine.address == engine.address or (engine.boot is not None and row.engine.boot == engine.boot)
        ]

    def _last(self, engine: LeasedEngine) -> _Row | None:
        """The lease that is held, else the one that was taken last."""
        return max(self._of(engine), key=lambda row: (_is_taken(row), row.lease.since_s), default=None)

    def _uses(self, engine: LeasedEngine) -> int:
        """The highest number of uses that any name of the engine has."""
        return max((row.lease.uses for row in self._of(engine)), default=0)


def _is_held(row: _Row) -> bool:
    """Whether its driver has it still, and has renewed it in time."""
    return row.lease.held and time.monotonic() < row.ends_s


def _is_taken(row: _Row) -> bool:
    """Whether nobody else may have the engine: it is held, or what its driver sent may still run."""
    return _is_held(row) or (row.lease.call_until_s or 0.0) > time.time()


def _as_of_now(row: _Row) -> Lease:
    return replace(row.lease, held=_is_held(row))
