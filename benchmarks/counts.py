"""The counts of a cycle, beside those of docs/measured/counts.json: more is a failure, fewer is to be committed.

    python benchmarks/bench.py --counts            # compares, in well under 90 s; exit code 1 where there are more
    python benchmarks/bench.py --counts --write    # commits to what there is now

One engine and eight, from disk and with kept weights, each a process with memory that really comes back, with a store
and leases. Awaits are counted on scripted engines, where no socket decides how often one has to wait. Where a count
depends on which of several answers comes first, it is the least and the most of `ROUNDS` cycles, and what fails is a
least that is above the committed most by more than a tenth: three cycles do not show all that can happen. What the
journal would write by its timer waits for the next row here: how often it would is a matter of time, not of calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from counting import AFTER, CONNECT, PROC, WALKS, Awaits, Ends, Transactions
from fakes import MEASURED, Fakes
from results import MEASURED as FOLDER

from lifecycle import Engine, Fleet, FromDisk, Kept, Source
from lifecycle.store import journal
from lifecycle.store.leases import Leases
from lifecycle.store.sqlite import Store
from lifecycle.testing import QUICK, ScriptedAdapter

COMMITTED = FOLDER / "counts.json"
ROUNDS = 3
ENGINES = (1, 8)
SOURCES: Mapping[str, Source] = {"from disk": FromDisk("/models/step", "v1"), "kept": Kept()}
COMMANDS = (
    CONNECT,
    *("pause", "drain", "release", "restore_weights", "update_weights", "restore_kv", "resume"),
    AFTER,
)
AWAITS = "awaits"
#: By how much a count may differ, at least, that was not the same in every cycle.
LEAST_SLACK = 2
#: Where the store is: how long a disk takes to sync is not counted.
IN_MEMORY = next((folder for folder in ("/dev/shm",) if os.access(folder, os.W_OK)), None)

#: By configuration, by command, by what is counted: the least and the most.
Counts = dict[str, dict[str, dict[str, tuple[int, int]]]]


@contextmanager
def _no_timed_writes() -> Iterator[None]:
    """Inside, the timer of the journal is never due: a slow machine writes no more transactions than a fast one."""
    waits_s, journal.WAITS_S = journal.WAITS_S, 3600.0
    try:
        yield
    finally:
        journal.WAITS_S = waits_s


async def _cycle(fleet: Fleet, source: Source) -> None:
    await fleet.offload(weights=source)
    await fleet.onload()


async def one_round(fakes: Fakes, source: Source, folder: Path) -> dict[str, Counter[str]]:
    """What connect and the second cycle of a fleet took, by command."""
    ends, transactions, found = Ends(), Transactions(), dict[str, Counter[str]]()

    def collect() -> None:
        log = fakes.log()
        events = [(each.at_s, each.name) for each in log.requests]
        events += [(each.at_s, "connections") for each in log.requests if each.new_connection]
        for command, counted in ends.by_command([*events, *transactions.events, *PROC.events]).items():
            found[command] = found.get(command, Counter()) + counted
        transactions.events.clear()
        PROC.events.clear()

    with _no_timed_writes(), transactions.counted(), PROC.counted(fakes.pids):
        fakes.log()
        store, lease = Store(folder / "engines.sqlite3"), Leases(folder / "engines.sqlite3")
        async with Fleet.connect(fakes.urls, policy=MEASURED, store=store, lease=lease, observers=[ends]) as fleet:
            ends.connected()
            collect()
            ends.start()
            await _cycle(fleet, source)
            fakes.log()
            transactions.events.clear()
            PROC.events.clear()
            ends.start()
            await _cycle(fleet, source)
            collect()
        store.close()
    return found


def _with_servers(count: int, name: str) -> Iterator[dict[str, Counter[str]]]:
    with Fakes.start(count, apart=True, tag_mib=16, backup=name == "kept") as fakes:
        fakes.set(recording=True)
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
                yield asyncio.run(one_round(fakes, SOURCES[name], Path(folder)))


async def _awaits(count: int) -> dict[str, Counter[str]]:
    """How often coroutines were suspended in the second cycle of scripted engines, by command."""
    ends, awaits = Ends(), Awaits()
    ends.count = lambda: awaits.total
    adapters = [ScriptedAdapter(f"e{number}") for number in range(count)]
    engines = [
        Engine(each, name=each.name, policy=QUICK, probe=each.probe, observers=[ends], lease=None) for each in adapters
    ]
    async with Fleet(engines) as fleet:
        await _cycle(fleet, SOURCES["from disk"])
        ends.start()
        awaits.count_in(asyncio.get_running_loop())
        before = awaits.total
        await asyncio.ensure_future(_cycle(fleet, SOURCES["from disk"]))
        asyncio.get_running_loop().set_task_factory(None)
    found, last = dict[str, Counter[str]](), before
    for command, so_far in ends.so_far.items():
        found[command], last = Counter({AWAITS: so_far - last}), so_far
    found[AFTER] = Counter({AWAITS: awaits.total - last})
    return found


def merged(rounds: list[dict[str, Counter[str]]]) -> dict[str, dict[str, tuple[int, int]]]:
    """The least and the most of several rounds, in the order of the commands."""
    commands = [each for each in COMMANDS if any(each in one for one in rounds)]
    result: dict[str, dict[str, tuple[int, int]]] = {}
    for command in commands:
        here = [one.get(command, Counter()) for one in rounds]
        names = sorted({name for each in here for name in each})
        result[command] = {name: (min(each[name] for each in here), max(each[name] for each in here)) for name in names}
    return result


def counted() -> Counts:
    """Everything, counted now."""
    found: Counts = {}
    for count in ENGINES:
        engines = f"{count} engine{'s' * (count > 1)}"
        for name in SOURCES:
            found[f"{engines}, {name}"] = merged(list(_with_servers(count, name)))
        found[f"{engines}, scripted, from disk"] = merged([asyncio.run(_awaits(count)) for _ in range(ROUNDS)])
    return found


def compared(now: Counts, before: Counts) -> tuple[list[str], list[str]]:
    """What there is more of than was committed, and what there is less of, each in words."""
    more, fewer = list[str](), list[str]()
    for configuration in {**before, **now}:
        here, there = now.get(configuration, {}), before.get(configuration, {})
        for command in {**there, **here}:
            counts, was = here.get(command, {}), there.get(command, {})
            for what in sorted({*counts, *was}):
                (least, most), (before_least, before_most) = counts.get(what, (0, 0)), was.get(what, (0, 0))
                figures = f"{_said(least, most)}, committed {_said(before_least, before_most)}"
                said = f"{configuration}: {command}: {what}: {figures}"
                races = least != most or before_least != before_most
                slack = max(LEAST_SLACK, before_most // 10) if races else 0
                if least > before_most + slack:
                    more.append(said)
                elif most < before_least - slack:
                    fewer.append(said)
    return more, fewer


def _said(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def summary(now: Counts) -> str:
    """A table: calls, connections, transactions and files of /proc, by command."""
    columns = ("HTTP calls", "connections", "SQLite transactions", "files of /proc", AWAITS)
    lines = [("", "command", *columns)]
    for configuration, commands in now.items():
        for command, counts in commands.items():
            sums = dict.fromkeys(columns, 0)
            for what, (_, most) in counts.items():
                column = "HTTP calls" if what.startswith(("GET ", "POST ")) else what
                sums[column if column in sums else "files of /proc"] += most
            lines.append((configuration, command, *(str(sums[each] or "") for each in columns)))
    widths = [max(len(line[number]) for line in lines) for number in range(len(lines[0]))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def as_text(now: Counts) -> str:
    """docs/measured/counts.json: a number, or the least and the most."""

    def figure(value: tuple[int, int]) -> int | list[int]:
        return value[0] if value[0] == value[1] else list(value)

    plain: dict[str, Any] = {"where": where()}
    plain |= {
        configuration: {
            command: {what: figure(value) for what, value in counts.items()} for command, counts in commands.items()
        }
        for configuration, commands in now.items()
    }
    return json.dumps(plain, indent=1) + "\n"


def where() -> dict[str, Any]:
    """What some counts differ by: Python (awaits), and whether the kernel lists a process's children (/proc)."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").exists()
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "children in /proc": children}


def from_text(text: str) -> Counts:
    """The counts of docs/measured/counts.json."""
    plain = json.loads(text)
    plain.pop("where")
    return {
        configuration: {
            command: {
                what: (each, each) if isinstance(each, int) else (each[0], each[1]) for what, each in counts.items()
            }
            for command, counts in commands.items()
        }
        for configuration, commands in plain.items()
    }


def comparable(counts: Counts, here: Mapping[str, Any], there: Mapping[str, Any]) -> Counts:
    """Those of these counts that mean the same in both places."""

    def is_one(what: str) -> bool:
        if what == AWAITS:
            return here["python"] == there["python"]
        return here["children in /proc"] == there["children in /proc"] or not (
            what.startswith("/proc") or what == WALKS
        )

    return {
        configuration: {
            command: {what: each for what, each in counted.items() if is_one(what)}
            for command, counted in commands.items()
        }
        for configuration, commands in counts.items()
    }


def main(*, write: bool) -> int:
    """Counts, and compares or writes; 1 where there is more than was committed."""
    now = counted()
    print(summary(now))
    if write:
        COMMITTED.write_text(as_text(now))
        print(f"written: {COMMITTED}")
        return 0
    text = COMMITTED.read_text()
    here, there = where(), json.loads(text)["where"]
    more, fewer = compared(comparable(now, here, there), comparable(from_text(text), here, there))
    if here != there:
        print(f"counted on {here}, committed on {there}: what differs by that is not compared")
    for each in fewer:
        print(f"fewer: {each}; commit it: python benchmarks/bench.py --counts --write")
    for each in more:
        print(f"MORE: {each}")
    return 1 if more else 0
