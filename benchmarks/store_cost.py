"""What the store, its journal and the leases cost: transactions, syncs and microseconds of a command and of a cycle.

    python benchmarks/store_cost.py [--engines 1 64 512] [--rounds 3] [--syncs]

The engines are scripted ones in this process, so what is left beside the store is this library. Transactions are
counted by the trace of SQLite; with `--syncs` a child process runs each way below `strace`, where there is one. Times
are the least of several rounds, in which the ways take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lifecycle import Engine, Fleet, FromDisk, State
from lifecycle.core.record import Record
from lifecycle.engine.ownership import chosen_lease
from lifecycle.rules.machine import next_state
from lifecycle.store import codec
from lifecycle.store.sqlite import Store
from lifecycle.testing import QUICK, ScriptedAdapter

V1 = FromDisk("/models/step-1", "v1")
POLICY = replace(QUICK, settle_s=5.0)

#: What is written: nothing; by default (the leases of this user, and the records beside them); a store of one's own
#: alone; and both, as in a trainer.
WAYS = ("nothing", "user", "store", "store and user")


class Reachable(ScriptedAdapter):
    """A scripted engine with a host and a port, so that other processes could drive it, and leases are taken."""

    @property
    def url(self) -> str:
        """`scripted://`, this host, and a port of its own."""
        return f"scripted://127.0.0.1:{self.name}"


@dataclass(slots=True)
class Cost:
    """What one way of writing cost. Microseconds are of one engine."""

    way: str
    engines: int
    #: Transactions by command (`cycle`: of an offload and an onload), of all engines together.
    transactions: Counter[str] = field(default_factory=Counter)
    #: Transactions of a cycle that are synced, and the intents in them; and all syncs of a cycle, checkpoints included.
    intents: tuple[int, int] = (0, 0)
    syncs: int | None = None
    us: dict[str, float] = field(default_factory=dict)
    #: Microseconds of a cycle that go into encoding rows, and into writing them with the entries beside them.
    to_text_us: float = 0.0
    sqlite_us: float = 0.0


@contextmanager
def state_folder() -> Iterator[Path]:
    """A folder in which the files of this user lie meanwhile."""
    with tempfile.TemporaryDirectory() as name, patch.dict(os.environ, {"LIFECYCLE_STATE_DIR": name}):
        yield Path(name)


async def fleet_of(count: int, way: str, folder: Path) -> Fleet:
    """A connected fleet of so many engines that serve, and that are written down this way."""
    store = Store(folder / "own.sqlite3") if "store" in way else None
    lease = chosen_lease("user" if "user" in way else None)
    adapters = [Reachable(str(20_000 + number)) for number in range(count)]
    engines = [Engine(each, policy=POLICY, probe=each.probe, store=store, lease=lease) for each in adapters]
    await asyncio.gather(*(engine.connect(deadline_s=60.0) for engine in engines))
    return Fleet(engines)


async def ring(fleet: Fleet, during: Callable[[str], Any]) -> None:
    """A cycle of moves, and one of single commands on the first engine; `during(what)` is entered around each."""
    with during("cycle"):
        await fleet.offload(weights=V1)
        await fleet.onload()
    engine = fleet.engines[0]
    for name, step in {
        "pause": engine.pause,
        "drain": engine.drain,
        "release": lambda: engine.release(weights=V1),
        "restore_weights": engine.restore_weights,
        "update_weights": lambda: engine.update_weights(V1),
        "restore_kv": engine.restore_kv,
        "resume": engine.resume,
    }.items():
        with during(name):
            await step()


def count_transactions(count: int, way: str) -> Counter[str]:
    """Transactions that were committed during a cycle of all engines, and during each single command."""
    counts: Counter[str] = Counter()
    connect, now = sqlite3.connect, [""]

    def traced(*args: Any, **how: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*args, **how)
        db.set_trace_callback(lambda sql: counts.update([now[0]] if sql == "COMMIT" else ()))
        return db

    @contextmanager
    def during(what: str) -> Iterator[None]:
        now[0] = what
        yield
        now[0] = ""

    async def run(folder: Path) -> None:
        await ring(await fleet_of(count, way, folder), during)

    with state_folder() as folder, patch("sqlite3.connect", traced):
        asyncio.run(run(folder))
    counts.pop("", None)
    return counts


def count_intents(count: int, way: str) -> tuple[int, int]:
    """Transactions with intents during a cycle of all engines, and the intents in them."""
    sizes: list[int] = []
    save = Store._save

    def counted(store: Store, records: Mapping[str, Record]) -> None:
        intents = sum(record.uncertain.intent is not None for record in records.values())
        sizes.extend([intents] if intents else [])
        save(store, records)

    async def run(folder: Path) -> None:
        fleet = await fleet_of(count, way, folder)
        await fleet.offload(weights=V1)
        await fleet.onload()

    with state_folder() as folder, patch.object(Store, "_save", counted):
        asyncio.run(run(folder))
    return len(sizes), sum(sizes)


def count_syncs(count: int, way: str, *, cycles: int) -> int | None:
    """fsync and fdatasync of so many cycles in a child below strace; None where that cannot be run."""
    if shutil.which("strace") is None:
        return None
    with tempfile.NamedTemporaryFile("r") as calls:
        child = [sys.executable, __file__, "--child", f"{count} {cycles} {way}"]
        trace = ["strace", "-f", "-e", "trace=fsync,fdatasync", "-o", calls.name]
        subprocess.run([*trace, *child], check=True)
        return sum("sync(" in line for line in calls)


async def cycles_of(count: int, way: str, cycles: int) -> None:
    """So many cycles of a fleet: what is run below strace."""
    with state_folder() as folder:
        fleet = await fleet_of(count, way, folder)
        for _ in range(cycles):
            await fleet.offload(weights=V1)
            await fleet.onload()


@contextmanager
def timed(owner: Any, name: str, spent: Counter[str]) -> Iterator[None]:
    """The nanoseconds spent in this function are added up under its name."""
    call = getattr(owner, name)

    def measured(*args: Any, **how: Any) -> Any:
        begun = time.perf_counter()
        try:
            return call(*args, **how)
        finally:
            spent[name] += int((time.perf_counter() - begun) * 1e9)

    with patch.object(owner, name, measured):
        yield


def time_once(count: int, way: str) -> dict[str, float]:
    """Microseconds of one engine by command, and of a cycle."""
    took: dict[str, float] = {}

    @contextmanager
    def during(what: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        took[what] = (time.perf_counter() - begun) * 1e6 / (count if what == "cycle" else 1)

    async def run(folder: Path) -> None:
        fleet = await fleet_of(count, way, folder)
        await ring(fleet, lambda what: during(f"first {what}"))
        await ring(fleet, during)

    with state_folder() as folder:
        asyncio.run(run(folder))
    return {what: us for what, us in took.items() if not what.startswith("first")}


def two_events_us(times: int = 2000) -> float:
    """Microseconds of two events of `transitions`, by which a command is measured: those of its two edges."""
    begun = time.perf_counter()
    for _ in range(times):
        next_state(State.SERVING, "contradicted", None)
        next_state(State.PAUSING, "succeeded", None)
    return (time.perf_counter() - begun) / times * 1e6


def measure(engines: int, *, rounds: int, syncs: bool) -> list[Cost]:
    """What each way costs, with so many engines."""
    costs = [Cost(way, engines, count_transactions(engines, way)) for way in WAYS]
    for _ in range(rounds):
        for cost in costs:
            for what, us in time_once(engines, cost.way).items():
                cost.us[what] = min(us, cost.us.get(what, us))
    for cost in costs:
        spent: Counter[str] = Counter()
        with timed(codec.Rows, "to_text", spent), timed(Store, "_save", spent):
            time_once(engines, cost.way)
        per_cycle = 1e3 * (2 * engines + 2)  # two cycles of all, and two of the first engine by single commands
        cost.to_text_us, cost.sqlite_us = spent["to_text"] / per_cycle, (spent["_save"] - spent["to_text"]) / per_cycle
        cost.intents = count_intents(engines, cost.way)
        if syncs and cost.way != "nothing":
            one, three = (count_syncs(engines, cost.way, cycles=cycles) for cycles in (1, 3))
            cost.syncs = None if one is None or three is None else (three - one) // 2
    return costs


def to_text_us(times: int = 2000) -> float:
    """Microseconds to make the row of an engine that was carried round the ring."""

    async def record() -> Any:
        with state_folder() as folder:
            fleet = await fleet_of(1, "nothing", folder)
            await fleet.offload(weights=V1)
            return fleet.engines[0].record

    known = asyncio.run(record())
    begun = time.perf_counter()
    for _ in range(times):
        codec.to_text(known)
    return (time.perf_counter() - begun) / times * 1e6


def report(costs: list[Cost], events_us: float) -> str:
    """The figures as a table."""
    head = ["written", "engines", "transactions a cycle", "of a pause", "of a release", "intents in transactions"]
    head += ["syncs a cycle", "cycle, µs an engine", "pause, µs", "pause, in events", "rows: to_text, SQLite; µs"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for cost in costs:
        counts, us = cost.transactions, cost.us
        cells = (
            *(cost.way, cost.engines, counts["cycle"], counts["pause"], counts["release"]),
            f"{cost.intents[1]} in {cost.intents[0]}",
            *("-" if cost.syncs is None else cost.syncs, f"{us['cycle']:.0f}", f"{us['pause']:.0f}"),
            *(f"{us['pause'] / events_us:.1f}", f"{cost.to_text_us:.0f}, {cost.sqlite_us:.0f}"),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 64, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--syncs", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        count, cycles, way = options.child.split(maxsplit=2)
        asyncio.run(cycles_of(int(count), way, int(cycles)))
        return 0
    events_us = two_events_us()
    costs = [cost for engines in options.engines for cost in measure(engines, **_of(options))]
    if options.json:
        print(json.dumps([{name: getattr(cost, name) for name in cost.__slots__} for cost in costs]))
    else:
        print(f"two events of transitions: {events_us:.1f} µs; one row to text: {to_text_us():.1f} µs\n")
        print(report(costs, events_us))
    return 0


def _of(options: argparse.Namespace) -> dict[str, Any]:
    return {"rounds": options.rounds, "syncs": options.syncs}


if __name__ == "__main__":
    sys.exit(main())
