"""One engine in the ledger of tenants: what it may hold of its devices, as far as that is known.

The ledger is written before the engine takes more, and lowered on evidence alone:

- **attached**: what is resident now is what it may hold, whatever the budget is: a fact. Where another driver wrote it
  down, that stays. A driver measures once it has the lease, before its first command and where another had the engine.
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
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from math import ceil, isinf

from ..core.deadline import Deadline
from ..core.errors import ConfigurationError
from ..core.facts import Grade, Tag
from ..core.frozen import EMPTY, replace
from ..core.policy import Policy
from ..core.ports import EngineAdapter, TenantLedger
from ..core.readings import Reading
from ..core.record import NOTHING_YET, Record
from ..core.states import State
from ..core.tenants import LedgerUnusable, Tenant
from ..core.verdicts import NotApplicable, Proved, Refuted, Unmeasurable, Verdict
from ..nodes.locate import sizes_of_devices
from ..rules.evidence import Context
from ..rules.identity import same_process
from .owner import Owner

_log = logging.getLogger("lifecycle")

#: Where there is no ledger.
_NOTHING_RESERVED = nullcontext()


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the ledger has of the engine: bytes by device (None: an unknown part), with these tags mapped."""

    sizes: Mapping[str, int | None]
    given_back: bool
    tags: frozenset[Tag] = frozenset()


class EngineTenancy:
    """What one engine has in the ledger. Without a ledger nothing is written, and every restore has its room."""

    def __init__(
        self,
        ledger: TenantLedger | None,
        adapter: EngineAdapter,
        *,
        name: str,
        key: str,
        unique: bool,
        owner: Owner,
    ) -> None:
        self.ledger = ledger
        self._adapter = adapter
        self._owner = owner
        #: Whether the ledger may say otherwise than was written here last, so that it is measured before a command.
        self.stale = False
        self._engine = name
        #: Engines that only their own process reaches may be called alike in several.
        self._key = key if unique else f"{key} of pid {os.getpid()}"
        self._tenant: Tenant | None = None
        self._entry: _Entry | None = None
        self._reserved: _Entry | None = None
        #: Where it is or was, and as which process it was met.
        self._devices: Mapping[str, None] = EMPTY
        self._boot: str | None = None
        self._known = NOTHING_YET
        self._totals: Mapping[str, int] = EMPTY

    async def attached(self, record: Record, reading: Reading | Unmeasurable, policy: Policy) -> None:
        """The engine is in the ledger: as it stands there, or with what is resident now where nobody wrote it down.

        Who only attaches changes nothing that another driver wrote. ConfigurationError where it cannot be measured;
        with `Policy(unprovable="warn")` that is logged, and nothing is restored before it can be.
        """
        if self.ledger is None:
            return
        self.stale = True
        if isinstance(reading, Unmeasurable):
            why = f"{self._engine}: it cannot be in {self.ledger}: what it holds cannot be measured: {reading.reason}"
            if policy.unprovable == "refuse":
                raise ConfigurationError(f"{why}. Fix this, or leave tenants= out, or Policy(unprovable='warn')")
            _log.warning("%s", why)
            return
        await self._met(record)
        assert self._tenant is not None
        entry = _entry_now(record, reading)
        self._devices = {**self._devices, **dict.fromkeys(entry.sizes)}
        try:
            self.ledger.meets(self._tenant, entry.sizes, given_back=entry.given_back)
        except LedgerUnusable as problem:
            raise ConfigurationError(f"{self._engine}: {problem}") from problem

    async def measured(self, record: Record, reading: Reading | Unmeasurable) -> None:
        """The engine was looked at anew by its driver: the ledger has what is resident now.

        Not while a call that was sent may still map memory.
        """
        if self.ledger is None or isinstance(reading, Unmeasurable) or record.uncertain.needs_barrier:
            return
        await self._met(record)
        self._entry, self.stale = None, False
        self._try_to_write(_entry_now(record, reading))

    def seen(self, reading: Reading | Unmeasurable) -> None:
        """This is resident: it is more than the ledger says where a size was only reported."""
        if self._entry is None or isinstance(reading, Unmeasurable) or not self._owner.drives:
            return
        held = {device: reading.devices.get(device, 0) for device in {**self._entry.sizes, **reading.devices}}
        known = {device: self._entry.sizes.get(device, 0) for device in held}
        sizes = {device: None if (size := known[device]) is None else max(size, held[device]) for device in held}
        if sizes != known:
            self._try_to_write(replace(self._entry, sizes=sizes))

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
        assert self.ledger is not None
        if not context.targets:
            return NotApplicable(reason="nothing is to be mapped")
        if isinstance(reading, Unmeasurable):
            return reading
        if self._tenant is None:
            return Unmeasurable(reason="what it holds was not written into the ledger; connect() does that")
        await self._met(context.record)
        full = context.calibration.reading_all_mapped
        size = context.size(context.targets, full or reading)
        share = None if size is None or isinf(size.at_most_bytes) else ceil(size.at_most_bytes)
        devices = {**self._devices, **(full.devices if full is not None else {}), **reading.devices}
        needs = {device: None if share is None else reading.devices.get(device, 0) + share for device in devices}
        unknown = [device for device in needs if device not in self._totals]
        if unknown:
            found = await sizes_of_devices(self._tenant.processes, unknown, deadline_s=deadline_s / 4)
            self._totals = {**self._totals, **found}
        waiting = Deadline(min(context.policy.room_wait_s, deadline_s / 2))
        try:
            return await self._reserve(self.ledger, self._tenant, needs, waiting, context)
        except LedgerUnusable as problem:
            return Unmeasurable(reason=str(problem))

    async def _reserve(
        self,
        ledger: TenantLedger,
        tenant: Tenant,
        needs: Mapping[str, int | None],
        waiting: Deadline,
        context: Context,
    ) -> Verdict:
        poll_s, mapped = context.policy.poll_s, _mapped(context.record)
        try:
            while True:
                short = ledger.reserve(tenant, needs, totals=self._totals, wait_s=waiting.left_s + 2 * poll_s)
                if short is None:
                    self._entry = self._reserved = _Entry(needs, given_back=False, tags=mapped | context.targets)
                    self._devices = {**self._devices, **dict.fromkeys(needs)}
                    return Proved(grade=Grade.ACKNOWLEDGED, reason="the budgets of its devices hold with it")
                if waiting.left_s <= 0:
                    ledger.waits_no_more(tenant.name)
                    return Refuted(reason=str(short), figures={"budget_bytes": short.budget_bytes})
                await asyncio.sleep(min(poll_s, waiting.left_s))
        except BaseException:
            with suppress(ConfigurationError):
                ledger.waits_no_more(tenant.name)
            raise

    def until_begun(self) -> AbstractContextManager[None]:
        """A command is asked for and begins. Where it does not, what was reserved for it is given up.

        What was found out about the engine meanwhile counts.
        """
        return _NOTHING_RESERVED if self.ledger is None else self._until_begun()

    @contextmanager
    def _until_begun(self) -> Iterator[None]:
        before = self._entry
        try:
            yield
        except BaseException:
            if before is not None and self._reserved is not None and self._entry is self._reserved:
                self._try_to_write(_entry_of(self._known, before) or before)
            raise
        finally:
            self._reserved = None

    def committed(self, record: Record) -> None:
        """This is known of the engine now."""
        self._known = record
        if self.ledger is None or self._tenant is None or self._entry is None:
            return
        if not self._owner.drives:
            self.stale = True
            return
        boot = record.facts.boot
        if record.state is not State.GONE and boot is not None and not same_process(self._boot, boot):
            # Another process, which nobody has measured: it may be on any device where the one before was.
            self._tenant, self._boot = replace(self._tenant, processes=()), boot
            tags = frozenset(record.facts.mapped)
            self._try_to_write(_Entry(dict.fromkeys(self._devices), given_back=False, tags=tags))
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
        self._devices = {**self._devices, **dict.fromkeys(entry.sizes)}


def _mapped(record: Record) -> frozenset[Tag]:
    """The tags that may be mapped."""
    return frozenset(tag for tag, mapped in record.facts.mapped.items() if mapped is not False)


def _entry_now(record: Record, reading: Reading) -> _Entry:
    """What is resident now; an unknown part where a tag may be mapped of which that is not known."""
    unknown = None in record.facts.mapped.values()
    sizes = dict.fromkeys(reading.devices) if unknown else reading.devices
    return _Entry(sizes, record.memory_is_free, _mapped(record))


def _entry_of(record: Record, before: _Entry) -> _Entry | None:
    """What the ledger should say once this is known; None where what it says is still so."""
    if record.state is State.GONE:
        return _Entry({}, given_back=True)
    if record.memory_is_free:
        resident = record.conditions["memory_returned"].verdict.figures.get("resident_bytes")
        left = dict.fromkeys(before.sizes, resident)
        return None if resident is None else _Entry(left, given_back=True, tags=_mapped(record))
    if not before.given_back and _mapped(record) <= before.tags:
        return None
    full = record.calibration.reading_all_mapped
    sizes: Mapping[str, int | None] = dict.fromkeys(before.sizes) if full is None else full.devices
    return _Entry(sizes, given_back=False, tags=frozenset(record.facts.mapped))
