"""One engine in the ledger of tenants: what it may hold of its devices, as far as that is known.

The ledger is written before the engine takes more, and lowered on evidence alone:

- **attached**: what is resident now is what it may hold, whatever the budget is. It is a fact.
- **a restore**: what is resident now, and the tags that come back, are reserved of every device at once, before the
  guards are asked. Where there is no room the engine waits in line, and the guard refuses at the end. A command that
  was refused, or was given up before it began, leaves the ledger as it was.
- **released**, with `memory_returned` proved: what was resident then. **Gone**: nothing.
- **another process** at its address, once that is seen: an unknown part of the devices of the one before, until
  `recover()` or a restore has measured it.
- **anything else that takes that proof away** (somebody moved its memory): all that it held when every tag was mapped,
  or, where that was never read, an unknown part, beside which nobody else has room.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..core.deadline import Deadline
from ..core.errors import ConfigurationError
from ..core.facts import Grade
from ..core.policy import Policy
from ..core.ports import EngineAdapter, TenantLedger
from ..core.readings import Reading
from ..core.record import Record
from ..core.states import State
from ..core.tenants import LedgerUnusable, Tenant
from ..core.verdicts import NotApplicable, Proved, Refuted, Unmeasurable, Verdict
from ..nodes.locate import sizes_of_devices
from ..rules.evidence import Context
from ..rules.identity import same_process

_log = logging.getLogger("lifecycle")


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the ledger has of the engine: bytes by device (None: an unknown part)."""

    sizes: Mapping[str, int | None]
    given_back: bool


class EngineTenancy:
    """What one engine has in the ledger. Without a ledger nothing is written, and every restore has its room."""

    def __init__(
        self, ledger: TenantLedger | None, adapter: EngineAdapter, *, name: str, key: str, unique: bool
    ) -> None:
        self.ledger = ledger
        self._adapter = adapter
        self._engine = name
        #: Engines that only their own process reaches may be called alike in several.
        self._key = key if unique else f"{key} of pid {os.getpid()}"
        self._tenant: Tenant | None = None
        self._entry: _Entry | None = None
        #: Where it is or was, and as which process it was met.
        self._devices: dict[str, None] = {}
        self._boot: str | None = None
        self._known = Record()
        self._totals: Mapping[str, int] = {}

    async def attached(self, record: Record, reading: Reading | Unmeasurable, policy: Policy) -> None:
        """The engine is in the ledger with what is resident now.

        ConfigurationError where that cannot be measured; with `Policy(unprovable="warn")` it is logged, and the engine
        is in no ledger.
        """
        if self.ledger is None:
            return
        if isinstance(reading, Unmeasurable):
            why = f"{self._engine}: it cannot be in {self.ledger}: what it holds cannot be measured: {reading.reason}"
            if policy.unprovable == "refuse":
                raise ConfigurationError(f"{why}. Fix this, or leave tenants= out, or Policy(unprovable='warn')")
            _log.warning("%s", why)
            self.ledger = None
            return
        await self._met(record)
        try:
            self._write(_Entry(reading.devices, record.memory_is_free))
        except LedgerUnusable as problem:
            raise ConfigurationError(f"{self._engine}: {problem}") from problem

    async def measured(self, record: Record, reading: Reading | Unmeasurable) -> None:
        """The engine was looked at anew, and is perhaps another process: the ledger has what is resident now."""
        if self.ledger is None or isinstance(reading, Unmeasurable):
            return
        await self._met(record)
        self._try_to_write(_Entry(reading.devices, record.memory_is_free))

    async def _met(self, record: Record) -> None:
        """Which process the engine is."""
        assert self.ledger is not None
        processes = await self._adapter.processes() or ()
        pids = ", ".join(str(process.pid) for process in processes)
        who = f"engine {self._engine} (pid {pids} on {processes[0].node})" if processes else f"engine {self._engine}"
        tenant = Tenant(self._key, "engine", who, self.ledger.pipeline, processes)
        if tenant != self._tenant:
            self._tenant, self._entry = tenant, None
        self._boot, self._known = record.facts.boot, record

    async def headroom(self, context: Context, reading: Reading | Unmeasurable, deadline_s: float) -> Verdict:
        """Whether the budgets of its devices hold with the tags that come back; if so, that is reserved."""
        if self.ledger is None:
            return NotApplicable(reason="no ledger of tenants was given")
        if not context.targets:
            return NotApplicable(reason="nothing is to be mapped")
        if isinstance(reading, Unmeasurable):
            return reading
        if self._tenant is None:
            return Unmeasurable(reason="what it holds was not written into the ledger; connect() does that")
        await self._met(context.record)
        share = context.share_bytes(context.targets, context.calibration.reading_all_mapped or reading)
        needs = {device: None if share is None else held + share for device, held in reading.devices.items()}
        if not self._totals:
            self._totals = await sizes_of_devices(self._tenant.processes, needs, deadline_s=deadline_s / 4)
        waiting = Deadline(min(context.policy.room_wait_s, deadline_s / 2))
        try:
            return await self._reserve(self.ledger, self._tenant, needs, waiting, context.policy.poll_s)
        except LedgerUnusable as problem:
            return Unmeasurable(reason=str(problem))

    async def _reserve(
        self,
        ledger: TenantLedger,
        tenant: Tenant,
        needs: Mapping[str, int | None],
        waiting: Deadline,
        poll_s: float,
    ) -> Verdict:
        while True:
            short = ledger.reserve(tenant, needs, totals=self._totals, wait_s=waiting.left_s + 2 * poll_s)
            if short is None:
                self._entry = _Entry(needs, given_back=False)
                return Proved(grade=Grade.ACKNOWLEDGED, reason="the budgets of its devices hold with what comes back")
            if waiting.left_s <= 0:
                return Refuted(reason=str(short), figures={"budget_bytes": short.budget_bytes})
            await asyncio.sleep(min(poll_s, waiting.left_s))

    @contextmanager
    def until_begun(self) -> Iterator[None]:
        """A command is asked for and begins. Where it does not, what was reserved for it is given up.

        What was found out about the engine meanwhile counts.
        """
        before = self._entry
        try:
            yield
        except BaseException:
            if before is not None:
                self._try_to_write(_entry_of(self._known, before) or before)
            raise

    def committed(self, record: Record) -> None:
        """This is known of the engine now."""
        self._known = record
        if self.ledger is None or self._tenant is None or self._entry is None:
            return
        boot = record.facts.boot
        if record.state is not State.GONE and boot is not None and not same_process(self._boot, boot):
            # Another process, which nobody has measured: it may be on any device where the one before was.
            self._tenant, self._boot = replace(self._tenant, processes=()), boot
            self._try_to_write(_Entry(dict.fromkeys(self._devices), given_back=False))
        self._try_to_write(_entry_of(record, self._entry) or self._entry)

    def _try_to_write(self, entry: _Entry) -> None:
        """Where it cannot be written, what is there stays, and that is logged."""
        try:
            if entry != self._entry:
                self._write(entry)
        except ConfigurationError:
            _log.exception("%s: what it may hold could not be written into the ledger", self._engine)

    def _write(self, entry: _Entry) -> None:
        assert self.ledger is not None
        assert self._tenant is not None
        if entry.sizes:
            self.ledger.holds(self._tenant, entry.sizes, given_back=entry.given_back)
        else:
            self.ledger.leaves(self._tenant.name)
        self._entry = entry
        self._devices |= dict.fromkeys(entry.sizes)


def _entry_of(record: Record, before: _Entry) -> _Entry | None:
    """What the ledger should say once this is known; None where what it says is still so."""
    if record.state is State.GONE:
        return _Entry({}, given_back=True)
    if record.memory_is_free:
        resident = record.conditions["memory_returned"].verdict.figures.get("resident_bytes")
        return None if resident is None else _Entry(dict.fromkeys(before.sizes, resident), given_back=True)
    if not before.given_back:
        return None
    full = record.calibration.reading_all_mapped
    return _Entry(dict.fromkeys(before.sizes) if full is None else full.devices, given_back=False)
