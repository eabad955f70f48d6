"""P1 and P2: a whole cycle, offload and onload from disk, over N fake engines that answer at once, or slowly.

"ours" is a fleet without store and lease; "with store and leases" is what a program has by default. Every way leaves
all engines serving, so that all ways take turns on the same engines.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import clients
from fakes import POLICY, Fakes
from results import Row, median

from lifecycle import Fleet, FromDisk
from lifecycle.store.leases import Leases
from lifecycle.store.sqlite import Store

SOURCE = FromDisk("/models/step", "v1")
COUNTS = (1, 8, 64, 512)
#: Up to how many engines slow clients and one engine after another are measured.
FEW = 64

Way = Callable[[], Awaitable[None]]


@asynccontextmanager
async def connected(fakes: Fakes, folder: Path | None = None) -> Any:
    """A fleet of these engines, with store and leases in `folder` where one is given."""
    store = None if folder is None else Store(folder / "engines.sqlite3")
    lease = None if folder is None else Leases(folder / "engines.sqlite3")
    async with Fleet.connect(fakes.urls, policy=POLICY, store=store, lease=lease) as fleet:
        yield fleet
    if store is not None:
        store.close()


async def cycle(fleet: Fleet, source: FromDisk = SOURCE) -> None:
    """One offload and one onload from disk."""
    await fleet.offload(weights=source)
    await fleet.onload()


async def in_turns(ways: dict[str, Way], repeats: int, warm: tuple[str, ...] = ()) -> dict[str, float]:
    """The median seconds of each way; all of them in turns, each once before unless it is `warm`."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, way in ways.items():
            if not number and name in warm:
                continue
            begun = time.perf_counter()
            await way()
            if number:
                took[name].append(time.perf_counter() - begun)
    return {name: median(seconds) for name, seconds in took.items()}


def checked(fakes: Fakes) -> None:
    """No engine died, as one does that is called wrongly; else RuntimeError."""
    dead = fakes.log().dead
    if dead:
        raise RuntimeError(f"{dead} fake engines died: a call was sent that kills SGLang")


async def at_once(count: int, repeats: int, *, http: bool) -> Iterator[Row]:
    """P1 with so many engines."""
    phases, calls = clients.needed(SOURCE.path, SOURCE.version), clients.users(SOURCE.path, SOURCE.version)
    with Fakes.start(count) as fakes, tempfile.TemporaryDirectory() as folder:
        async with connected(fakes) as fleet, clients.bare() as session:
            await cycle(fleet)
            fakes.log()
            fakes.set(recording=True)
            await cycle(fleet)
            seen = fakes.log()
            fakes.set(recording=False)
            own = clients.sequences(seen.requests, count)
            ways: dict[str, Way] = {
                "ours": lambda: cycle(fleet),
                "floor": lambda: clients.in_phases(session, fakes.bases, phases),
                "its own calls": lambda: clients.replay(session, fakes.bases, own),
            }
            users = clients.Users(fakes.bases, calls) if http else None
            if users is not None:
                ways |= _of_users(users, few=count <= FEW)
            took = await in_turns(ways, repeats, warm=("ours",))
            if users is not None:
                await users.aclose()
            checked(fakes)
        kept = None
        if count <= FEW:
            async with connected(fakes, Path(folder)) as fleet, clients.bare() as session:
                again = {"ours": lambda: cycle(fleet), "floor": lambda: clients.in_phases(session, fakes.bases, phases)}
                kept = await in_turns(again, repeats)
                checked(fakes)
    return _rows(count, seen.total, seen.connections, took, kept)


def _of_users(users: clients.Users, *, few: bool) -> dict[str, Way]:
    ways: dict[str, Way] = {
        "requests": lambda: asyncio.to_thread(users.by_requests, session=False),
        "requests, sessions": lambda: asyncio.to_thread(users.by_requests, session=True),
    }
    if few:
        ways["httpx, asyncio"] = users.by_async_httpx
        ways["httpx, one after another"] = lambda: asyncio.to_thread(users.by_httpx)
    return ways


def _rows(
    count: int, calls: int, connections: int, took: dict[str, float], kept: dict[str, float] | None
) -> Iterator[Row]:
    part, ours, floor, own = "P1", took.pop("ours"), took.pop("floor"), took.pop("its own calls")
    engines = f"{count} engine{'s' * (count > 1)}"
    each = {"value": calls / count, "unit": "calls", "others": {"connections": connections / count}}
    yield Row(part, f"{engines}, calls an engine", calls / count, 12, target=20, **each)
    yield Row(part, f"{engines}, cycle by the needed calls", ours, floor, took, target=3)
    yield Row(part, f"{engines}, cycle by its own calls", ours, own, target=2)
    for name in ("requests", "requests, sessions"):
        if name in took:
            target = 1 if count >= FEW and name == "requests" else None
            yield Row(part, f"{engines}, cycle by the users' 7 on {name}", ours, took[name], target=target)
    if kept is not None:
        what = f"{engines}, cycle with store and leases by the needed calls"
        yield Row(part, what, kept["ours"], kept["floor"])


async def slow(which: str, what: str, target: float, repeats: int, count: int) -> Row:
    """P2: a cycle where each of these calls takes 50 to 500 ms, the same for every way."""
    phases = clients.needed(SOURCE.path, SOURCE.version)
    with Fakes.start(count) as fakes:
        async with connected(fakes) as fleet, clients.bare() as session:
            await cycle(fleet)

            def slowly(way: Way) -> Way:
                async def run() -> None:
                    fakes.set(slow=which, seed=1)
                    await way()
                    fakes.set(slow="")

                return run

            floor = slowly(lambda: clients.in_phases(session, fakes.bases, phases))
            ours: list[float] = []
            floors: list[float] = []
            for _ in range(repeats):
                for way, seconds in ((slowly(lambda: cycle(fleet)), ours), (floor, floors)):
                    begun = time.perf_counter()
                    await way()
                    seconds.append(time.perf_counter() - begun)
            checked(fakes)
    return Row("P2", f"{count} engines, {what}", median(ours), median(floors), target=target)


def run(repeats: int = 3, *, http: bool = True, counts: tuple[int, ...] = COUNTS) -> list[Row]:
    """The rows of P1."""
    return [row for count in counts for row in asyncio.run(at_once(count, repeats, http=http))]


def run_slow(repeats: int = 3, count: int = 64) -> list[Row]:
    """The rows of P2."""
    both = (("all", "every call 50-500 ms", 1.5), ("effects", "effects 50-500 ms, reads at once", 1.15))
    return [asyncio.run(slow(which, what, target, repeats, count)) for which, what, target in both]
