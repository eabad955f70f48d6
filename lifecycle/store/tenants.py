"""The ledger of tenants in one SQLite file: who may hold memory of the devices of this host, of all users of the file.

A tenant is written down before it takes more of a device, in one transaction with the question whether the budget
holds, so that two of them never take the same room. It stays there until what it gave back was measured, or its
processes have ended; the end of its driver says nothing about the memory of an engine. Processes are told by pid, start
time, host boot and pid namespace. Of a process of another host or namespace nothing can be known here: it counts as
alive until its driver says otherwise, or a person does (`lifecycle tenants --forget NAME`).

Who finds no room waits in line, by the time of its first question: otherwise a tenant that gave a device back and wants
it again at once would always be before the one that waits. Two do not wait behind others, who may be waiting for them:
a tenant that holds the device already, and an engine that comes back beside the trainer of its own pipeline.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import ConfigurationError
from ..core.readings import Process
from ..core.tenants import LedgerUnusable, Shortage, Tenancy, Tenant
from ..core.units import mib
from ..nodes.processes import is_alive, node_name, pid_namespace, start_mark
from .shared_file import SharedFile
from .sqlite import default_path, said_of

_TENANT = "kind TEXT NOT NULL, who TEXT NOT NULL, pipeline TEXT NOT NULL, processes TEXT NOT NULL"
_SCHEMA = (
    f"CREATE TABLE IF NOT EXISTS tenants (device TEXT, name TEXT, {_TENANT}, size INTEGER, "
    "given_back INTEGER NOT NULL, since REAL NOT NULL, PRIMARY KEY (device, name))",
    f"CREATE TABLE IF NOT EXISTS waiting (name TEXT PRIMARY KEY, {_TENANT}, ticket INTEGER NOT NULL, "
    "devices TEXT NOT NULL, until REAL NOT NULL)",
    "CREATE TABLE IF NOT EXISTS budgets (device TEXT PRIMARY KEY, size INTEGER NOT NULL)",
)


#: Two readings of one start time differ by less (seconds).
SAME_START_S = 0.5


class Tenants:
    """The ledger in the file at `path` (a `TenantLedger`); None: the file of this user.

    `budgets` states how many bytes of a device all tenants together may hold; of another device that is its size.
    `pipeline` names what the tenants of this process belong to; None: this process. Where an engine's driver and its
    trainer are two processes, both name one. ConfigurationError where a budget is no number of bytes.
    """

    def __init__(
        self, path: Path | None = None, *, budgets: Mapping[str, int] | None = None, pipeline: str | None = None
    ) -> None:
        self._given = path
        self._budgets = dict(budgets or {})
        for device, size in self._budgets.items():
            if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
                raise ConfigurationError(f"budgets[{device!r}]: a number of bytes > 0, got {size!r}")
        self._pipeline = pipeline
        self._file = SharedFile(lambda: self.path, lambda db: [db.execute(table) for table in _SCHEMA], _unusable)
        self._stated_by = 0

    def __str__(self) -> str:
        return f"the ledger of tenants in {self.path}"

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._given or default_path().with_name("tenants.sqlite3")

    @property
    def pipeline(self) -> str:
        """The pipeline of the tenants of this process."""
        return self._pipeline or f"{node_name()}/{os.getpid()}/{start_mark(os.getpid()).rpartition('/')[2]}"

    def reserve(
        self, tenant: Tenant, needs: Mapping[str, int | None], *, totals: Mapping[str, int], wait_s: float
    ) -> Shortage | None:
        """The tenant may hold this of each device, or of none; a shortage says why not. See `TenantLedger`."""
        with self._changing() as db:
            tenancies, waiting = _tenancies(db), _waiting(db)
            _check_name(tenant, tenancies)
            tenant = self._of_its_pipeline(tenant, tenancies)
            for device, need in needs.items():
                budget = self._budget(db, device, totals)
                short = _shortage(tenant, device, need, budget, tenancies, waiting)
                if short is not None:
                    _wait(db, tenant, list(needs), wait_s)
                    return short
            for device, need in needs.items():
                _write(db, tenant, device, need, given_back=False)
            _waits_no_more(db, tenant.name)
        return None

    def waits_no_more(self, name: str) -> None:
        """The tenant of this name is not in line any more."""
        with self._changing() as db:
            _waits_no_more(db, name)

    def meets(self, tenant: Tenant, sizes: Mapping[str, int | None], *, given_back: bool) -> None:
        """The tenant may hold this, where the ledger has nothing of these processes yet. See `TenantLedger`."""
        with self._changing() as db:
            tenancies = _tenancies(db)
            tenant = self._of_its_pipeline(tenant, tenancies)
            known = [each.tenant for each in tenancies if each.tenant.name == tenant.name]
            same = any(_is_same(mine, that) for each in known for that in each.processes for mine in tenant.processes)
            if known and (same or not known[0].processes):
                return
            db.execute("DELETE FROM tenants WHERE name = ?", (tenant.name,))
            for device, size in sizes.items():
                _write(db, tenant, device, size, given_back=given_back)

    def holds(self, tenant: Tenant, sizes: Mapping[str, int | None], *, given_back: bool) -> None:
        """The tenant may hold just this: a fact, and no request. See `TenantLedger`."""
        with self._changing() as db:
            tenancies = _tenancies(db)
            _check_name(tenant, tenancies)
            tenant = self._of_its_pipeline(tenant, tenancies)
            _waits_no_more(db, tenant.name)
            kept = [device for device, size in sizes.items() if size is None or size > 0]
            marks = ", ".join("?" * len(kept))
            db.execute(f"DELETE FROM tenants WHERE name = ? AND device NOT IN ({marks})", (tenant.name, *kept))
            for device in kept:
                _write(db, tenant, device, sizes[device], given_back=given_back)

    def leaves(self, name: str) -> None:
        """The tenant of this name holds nothing, and waits for nothing."""
        with self._changing() as db:
            db.execute("DELETE FROM tenants WHERE name = ?", (name,))
            _waits_no_more(db, name)

    def forget(self, name: str) -> list[Tenancy]:
        """What a tenant may hold is taken out on the word of a person; what it was.

        ConfigurationError where there is none of this name, or where a process of it is seen to live.
        """
        with self._changing() as db:
            gone = [each for each in _tenancies(db) if each.tenant.name == name]
            if not gone:
                raise ConfigurationError(f"{self.path}: no tenant {name!r} is known that may live")
            alive = [process.pid for process in gone[0].tenant.processes if is_alive(process) and _is_here(process)]
            if alive:
                raise ConfigurationError(
                    f"{gone[0].tenant.who}: pid {alive[0]} lives; let it give its memory back, or end it"
                )
            db.execute("DELETE FROM tenants WHERE name = ?", (name,))
            _waits_no_more(db, name)
        return gone

    def tenancies(self) -> list[Tenancy]:
        """What every tenant that may live may hold, by device, the longest first."""
        with self._file.asking() as db:
            return _tenancies(db)

    def budgets(self) -> dict[str, int]:
        """The budgets that were stated, by device."""
        with self._changing() as db:
            return dict(db.execute("SELECT device, size FROM budgets ORDER BY device").fetchall())

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """The file, without the tenants whose processes have ended, and with the budgets that are stated here."""
        with self._file.changing() as db:
            for table in ("tenants", "waiting"):
                for number, processes in db.execute(f"SELECT rowid, processes FROM {table}").fetchall():
                    if not _may_live(json.loads(processes)):
                        db.execute(f"DELETE FROM {table} WHERE rowid = ?", (number,))
            if self._stated_by != os.getpid():
                self._state_budgets(db)
                self._stated_by = os.getpid()
            yield db

    def _state_budgets(self, db: sqlite3.Connection) -> None:
        held = {each.device for each in _tenancies(db)}
        for device, size in self._budgets.items():
            found = db.execute("SELECT size FROM budgets WHERE device = ?", (device,)).fetchone()
            if found is not None and found[0] != size and device in held:
                raise ConfigurationError(
                    f"{self.path}: the budget of {device} is {mib(found[0])} for the tenants that hold it, and not "
                    f"{mib(size)}; state the same one everywhere"
                )
            db.execute("INSERT OR REPLACE INTO budgets VALUES (?, ?)", (device, size))

    def _of_its_pipeline(self, tenant: Tenant, tenancies: Sequence[Tenancy]) -> Tenant:
        """The tenant in the pipeline in which it stands already, where this process names none."""
        known = (each.tenant.pipeline for each in tenancies if each.tenant.name == tenant.name)
        return tenant if self._pipeline is not None else replace(tenant, pipeline=next(known, tenant.pipeline))

    def _budget(self, db: sqlite3.Connection, device: str, totals: Mapping[str, int]) -> int:
        found = db.execute("SELECT size FROM budgets WHERE device = ?", (device,)).fetchone()
        size = found[0] if found is not None else totals.get(device)
        if size is None:
            raise LedgerUnusable(f"the size of {device} is not known; state Tenants(budgets={{{device!r}: BYTES}})")
        return int(min(size, totals.get(device, size)))


def _shortage(
    tenant: Tenant,
    device: str,
    need: int | None,
    budget: int,
    tenancies: Sequence[Tenancy],
    waiting: Sequence[tuple[Tenant, Sequence[str]]],
) -> Shortage | None:
    """Why the tenant may not hold this of the device; None where it may. An unknown part leaves no room beside it."""
    there = [each for each in tenancies if each.device == device]
    others = [each for each in there if each.tenant.name != tenant.name]
    left = None if any(each.size_bytes is None for each in others) else budget - sum(e.size_bytes or 0 for e in others)
    fits = left is not None and (need <= left if need is not None else all(each.given_back for each in others))
    inside = any(not each.given_back and _lets_in(each.tenant, tenant) for each in there)
    ahead = [] if inside else _ahead(tenant, device, waiting)
    return None if fits and not ahead else Shortage(device, need, budget, tuple(others), tuple(ahead))


def _lets_in(holder: Tenant, tenant: Tenant) -> bool:
    """Whether a tenant need not wait behind others, since this one holds the device: itself, or its own trainer."""
    own_trainer = holder.kind == "trainer" and tenant.kind == "engine" and holder.pipeline == tenant.pipeline
    return holder.name == tenant.name or own_trainer


def _ahead(tenant: Tenant, device: str, waiting: Sequence[tuple[Tenant, Sequence[str]]]) -> list[Tenant]:
    """Those of other pipelines that wait for the device for longer than this tenant."""
    ahead = []
    for each, devices in waiting:
        if each.name == tenant.name:
            break
        if device in devices and each.pipeline != tenant.pipeline:
            ahead.append(each)
    return ahead


def _check_name(tenant: Tenant, tenancies: Sequence[Tenancy]) -> None:
    """ConfigurationError where another tenant that may live has the name."""
    for each in tenancies:
        other = each.tenant
        if other.name != tenant.name or other.kind == tenant.kind == "engine":
            continue
        if not any(_is_same(mine, that) for mine in tenant.processes for that in other.processes):
            raise ConfigurationError(
                f"{tenant.name!r} is the name of another tenant in the ledger: {other.who}; give each a name of its own"
            )


def _tenancies(db: sqlite3.Connection) -> list[Tenancy]:
    query = "SELECT device, name, kind, who, pipeline, processes, size, given_back, since FROM tenants"
    found = db.execute(f"{query} ORDER BY device, since, name").fetchall()
    return [
        Tenancy(device, _tenant(name, kind, who, pipeline, processes), size, bool(given_back), since)
        for device, name, kind, who, pipeline, processes, size, given_back, since in found
        if _may_live(json.loads(processes))
    ]


def _waiting(db: sqlite3.Connection) -> list[tuple[Tenant, Sequence[str]]]:
    """Those who wait, and for which devices, the longest first."""
    query = "SELECT name, kind, who, pipeline, processes, devices FROM waiting WHERE until > ? ORDER BY ticket"
    found = db.execute(query, (_uptime_s(),)).fetchall()
    return [(_tenant(*of_tenant), json.loads(devices)) for *of_tenant, devices in found]


def _wait(db: sqlite3.Connection, tenant: Tenant, devices: Sequence[str], wait_s: float) -> None:
    """The tenant waits from now on, in the place that it had if it waits already. Its driver, this process, waits."""
    last = db.execute("SELECT MAX(ticket) FROM waiting").fetchone()[0] or 0
    had = db.execute("SELECT ticket FROM waiting WHERE name = ? AND until > ?", (tenant.name, _uptime_s())).fetchone()
    ticket = had[0] if had is not None else last + 1
    driver = json.dumps([_encoded(Process(node_name(), os.getpid(), 0.0))])
    row = (tenant.name, tenant.kind, tenant.who, tenant.pipeline, driver, ticket, json.dumps(list(devices)))
    db.execute("INSERT OR REPLACE INTO waiting VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, _uptime_s() + wait_s))


def _waits_no_more(db: sqlite3.Connection, name: str) -> None:
    db.execute("DELETE FROM waiting WHERE name = ?", (name,))


def _write(db: sqlite3.Connection, tenant: Tenant, device: str, size: int | None, *, given_back: bool) -> None:
    query = "SELECT since FROM tenants WHERE device = ? AND name = ?"
    (since_s,) = db.execute(query, (device, tenant.name)).fetchone() or (time.time(),)
    processes = json.dumps([_encoded(process) for process in tenant.processes])
    row = (device, tenant.name, tenant.kind, tenant.who, tenant.pipeline, processes, size, given_back, since_s)
    db.execute("INSERT OR REPLACE INTO tenants VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


def _encoded(process: Process) -> list[Any]:
    """A process as the ledger keeps it; of one of another node only what its driver says of it is known."""
    mark, namespace = (start_mark(process.pid) or "ended", pid_namespace()) if _is_here(process) else ("", "")
    return [process.node, process.pid, process.start_time, process.agent, mark, namespace]


def _is_same(one: Process, other: Process) -> bool:
    """Whether both are one process: its pid, on its node, with its start time."""
    return (one.node, one.pid) == (other.node, other.pid) and abs(one.start_time - other.start_time) < SAME_START_S


def _is_here(process: Process) -> bool:
    return process.agent is None and process.node == node_name()


def _tenant(name: str, kind: Any, who: str, pipeline: str, processes: str) -> Tenant:
    known = [Process(node, pid, started, agent=agent) for node, pid, started, agent, *_ in json.loads(processes)]
    return Tenant(name, kind, who, pipeline, tuple(known))


def _may_live(processes: Sequence[Sequence[Any]]) -> bool:
    """Whether any of these processes may exist. Where none is known it may."""
    return not processes or any(_one_may_live(*process) for process in processes)


def _one_may_live(node: str, pid: int, _: float, __: str | None, mark: str, namespace: str) -> bool:
    """Whether a process may exist. Its mark without the host's name is its host's boot and its start there.

    Two containers of one host have two names, and perhaps one pid namespace; all hosts number their first one alike.
    """
    boot, started = _boot_and_start(mark)
    here, now = _boot_and_start(start_mark(os.getpid()))[0], _boot_and_start(start_mark(pid))
    if not mark or (boot != here and node != node_name()):
        return True
    return namespace != pid_namespace() or now == (boot, started)


def _boot_and_start(mark: str) -> tuple[str, str]:
    _, boot, started = mark.split("/", 2) if mark.count("/") == 2 else ("", "", mark)
    return boot, started


def _uptime_s() -> float:
    """Seconds since the host booted, sleep included: no clock that is set moves it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()


def _unusable(path: Path, error: Exception) -> LedgerUnusable:
    why = f"{path}: the ledger of tenants cannot be used: {said_of(path, error)}"
    if "locked" in str(error):
        return LedgerUnusable(f"{why}; another process writes it and does not end that: is one stopped?")
    return LedgerUnusable(f"{why}; LIFECYCLE_STATE_DIR names another folder")
