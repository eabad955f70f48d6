"""Cycles over three engines, with random faults from a fixed seed and requests in flight. Nothing is lost, or leaks."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from lifecycle.adapters.loopback import make_weights
from random_faults import ENGINES, drawn
from random_world import CLIENTS_PER_ENGINE, LIMIT_S, PROMPTS, Driver, World, engines, new_session

from lifecycle.rules.violations import violations
from lifecycle.store.journal import read_file

LONG = "LIFECYCLE_TEST_LONG" in os.environ
SEED = 11
CYCLES, WARM_UP = (200, 40) if LONG else (20, 8)

#: What an engine calls the weights that it was started with.
LAUNCHED = "default"

#: How much more the driver may hold at the end than after the warm-up. A connection to each engine may be open or not.
LIMITS = {"descriptors": len(ENGINES), "threads": 1, "tasks": 0, "resident KiB": 8 * 1024}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if LONG else 300)]


async def test_cycles_with_random_faults(
    tmp_path: Path, report: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 cycles; LIFECYCLE_TEST_LONG: 200."""
    mark = f"random-{uuid4().hex}"
    monkeypatch.setenv("LIFECYCLE_TEST_MARK", mark)
    sources = []
    for number in range(3):
        path = tmp_path / f"{number}.safetensors"
        make_weights(path, seed=number, weights_mib=88)
        sources.append((str(path), f"step-{number}"))
    world = World(await engines(Path(sources[0][0])), Path(sources[0][0]), tmp_path / "state")
    ends: Counter[str] = Counter()
    try:
        held = await _cycles(world, sources, ends)
    finally:
        for seat in world.seats.values():
            await seat.process.astop()
    leaked = [each.pid for each in psutil.process_iter() if _has_mark(each, mark)]
    assert [str(each) for each in violations(read_file(tmp_path / "state" / "engines.sqlite3"))] == []
    assert world.lost == []
    assert world.killed_by_driver == []
    assert leaked == []
    different = {key: each for key, each in world.answers.items() if len(each) != 1}
    assert different == {}, different
    first, last = held
    grown = {name: last[name] - first[name] for name in LIMITS}
    assert {name: more for name, more in grown.items() if more > LIMITS[name]} == {}, held
    counts = {
        "cycles": CYCLES,
        **{f"cycles that {how}": count for how, count in sorted(ends.items())},
        "engines started": world.started,
        "engines leaked": len(leaked),
        **{f"requests {how}": count for how, count in sorted(world.requests.items())},
        "requests lost": len(world.lost),
        **{f"{name} of the driver after {WARM_UP} cycles": value for name, value in first.items()},
        **{f"{name} of the driver at the end": value for name, value in last.items()},
    }
    for what, count in counts.items():
        report(f"random faults, {what}: {count}")


async def _cycles(
    world: World, sources: list[tuple[str, str]], ends: Counter[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Every cycle has ended and every engine was brought home; what the driver held after the warm-up, and then."""
    driver = await Driver.start(world)
    held: list[dict[str, int]] = []
    async with new_session() as session:
        seats = [seat for seat in world.seats.values() for _ in range(CLIENTS_PER_ENGINE)]
        clients = [asyncio.create_task(world.client(session, seat, number)) for number, seat in enumerate(seats)]
        try:
            for number, fault in enumerate(drawn(SEED, CYCLES), 1):
                mode = "keep" if number % 4 == 0 else "abort"
                outcome = await driver.cycle(world, fault, sources[number % len(sources)], mode)
                await world.over(fault)
                found = await driver.home(world)
                about = f"cycle {number}, {fault}: {outcome}; then {found}"
                if {each[0] for each in found.values()} != {"serving"}:
                    pytest.fail(about)
                failed = outcome["result"]["error"]
                ends["failed, and serve again" if failed else "ended though something was wrong"] += 1
                for name, seat in world.seats.items():
                    assert await world.request(session, seat, PROMPTS[0]) in (found[name][2] or LAUNCHED, None), about
                if number in (WARM_UP, CYCLES):
                    held.append(await driver.measure())
            world.finish()
            async with asyncio.timeout(LIMIT_S):
                await asyncio.gather(*clients)
        finally:
            for client in clients:
                client.cancel()
            code = await driver.end()
    assert code == 0
    first, last = held
    return first, last


def _has_mark(process: psutil.Process, mark: str) -> bool:
    """Whether this process, or one from which it comes, was started by this test."""
    if process.pid == os.getpid():
        return False
    try:
        return process.environ().get("LIFECYCLE_TEST_MARK") == mark
    except psutil.Error:
        return False
