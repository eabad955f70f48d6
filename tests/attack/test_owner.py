"""Two drivers of one engine: one has it, the other is refused, told who, and tries again. No engine is killed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import EngineHeld, Fleet, FromDisk, Policy, State
from lifecycle.demo.clients import Clients, Target, new_session
from lifecycle.store import Store

pytestmark = pytest.mark.slow

CYCLING = Path(__file__).with_name("cycling.py")
SMALL = {"weights_mib": 96, "kv_mib": 96}
POLICY = Policy(poll_s=0.01)


@pytest.fixture(scope="module")
def engine() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(**SMALL) as started:
        yield started


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the drivers of a test keep their leases."""
    monkeypatch.setenv("LIFECYCLE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


def at(engine: LoopbackProcess, host: str = "127.0.0.1", kind: str = "loopback") -> str:
    return f"{kind}://{host}:{engine.port}"


async def test_two_names_of_one_engine_are_one_lease(engine: LoopbackProcess) -> None:
    source = FromDisk(str(engine.weights), "v1")
    first = Fleet.connect([at(engine)], policy=POLICY)
    second = Fleet.connect([at(engine, "localhost", "sglang")], policy=POLICY)
    async with first, second:
        async with first.offloaded(weights=source):
            with pytest.raises(EngineHeld, match=rf"pid {os.getpid()} on .* left released, since 20"):
                await second.offload(weights=source)
            with pytest.raises(EngineHeld):
                await second.engines[0].recover()
        await second.offload(weights=source)
        with pytest.raises(EngineHeld):
            await first.onload()
        await second.onload()
        assert await first.engines[0].verify() is State.SERVING
    assert engine.returncode is None


async def test_a_driver_with_a_store_of_its_own_and_one_without_meet(engine: LoopbackProcess, tmp_path: Path) -> None:
    source = FromDisk(str(engine.weights), "v2")
    first = Fleet.connect([at(engine)], policy=POLICY, store=Store(tmp_path / "own"))
    second = Fleet.connect([at(engine)], policy=POLICY)
    async with first, second:
        async with first.offloaded(weights=source):
            with pytest.raises(EngineHeld):
                await second.offload(weights=source)
        async with second.offloaded(weights=source):
            pass
        async with first.offloaded(weights=source):
            pass
    assert engine.returncode is None


DIES = """
import asyncio, os, signal, sys
from lifecycle import Fleet, FromDisk
async def main():
    async with Fleet.connect([sys.argv[1]]) as fleet:
        await fleet.offload(weights=FromDisk(sys.argv[2], "v3"))
        print("released", flush=True)
        signal.pause()
asyncio.run(main())
"""


async def test_what_a_driver_that_was_killed_had_is_free_and_what_it_kept_is_known(engine: LoopbackProcess) -> None:
    driver = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DIES, at(engine), str(engine.weights)), stdout=asyncio.subprocess.PIPE
    )
    assert driver.stdout is not None
    assert await driver.stdout.readline() == b"released\n"
    async with Fleet.connect([at(engine)], policy=POLICY) as fleet:
        assert fleet.engines[0].state is State.RELEASED
        with pytest.raises(EngineHeld, match=f"pid {driver.pid} on"):
            await fleet.onload()
        driver.send_signal(signal.SIGKILL)
        await driver.wait()
        await fleet.onload()
        assert fleet.engines[0].desired.version == "v3"
    assert engine.returncode is None


@pytest.mark.parametrize("kept", [False, True], ids=["without a store", "with a store"])
async def test_two_processes_that_cycle_one_engine(
    kept: bool, tmp_path: Path, state: Path, report: Callable[[str], None]
) -> None:
    """10 s; LIFECYCLE_TEST_LONG: 60 s."""
    long = "LIFECYCLE_TEST_LONG" in os.environ
    store = str(tmp_path / "rows") if kept else ""
    with LoopbackProcess.start(**SMALL) as engine:
        url = engine.url
        async with new_session() as session:
            target = Target("e", url, "m")
            async with Clients(session, [target], target, 2) as clients:
                drivers = [
                    await asyncio.create_subprocess_exec(
                        *(sys.executable, str(CYCLING), at(engine), "60" if long else "10"),
                        *(str(engine.weights), version, *([store] if store else [])),
                        stdout=asyncio.subprocess.PIPE,
                        stderr=asyncio.subprocess.PIPE,
                    )
                    for version in ("v1", "v2")
                ]
                ended = [await each.communicate() for each in drivers]
                await clients.finish(10.0)
        killed = engine.returncode is not None
        assert not killed, engine.stderr_tail()
    assert [each.returncode for each in drivers] == [0, 0], ended
    found: list[dict[str, Any]] = [json.loads(out) for out, _ in ended]
    assert [each["errors"] for each in found] == [[], []]
    for mine, other in ((0, 1), (1, 0)):
        assert found[mine]["cycles"] >= (5 if long else 1), found
        assert all(re.match(rf"pid {drivers[other].pid} on ", who) for who in found[mine]["refused"]), found
    assert sum(sum(each["refused"].values()) for each in found) > 0
    tally = clients.tally
    assert tally.completed > 0
    assert tally.lost == 0, tally.reasons
    done, refused = [each["cycles"] for each in found], [sum(each["refused"].values()) for each in found]
    counts = {
        "cycles of the one that did fewer": min(done),
        "cycles of the other": max(done),
        "refusals that named the other": sum(refused),
        "engines killed": int(killed),
        "requests completed": tally.completed,
        "requests aborted and sent again": tally.aborted,
        "requests lost": tally.lost,
    }
    for what, count in counts.items():
        report(f"two processes, {'with' if kept else 'without'} a store, {what}: {count}")


async def test_a_signal_brings_home_as_ctrl_c_does() -> None:
    await asyncio.gather(_ended_by(signal.SIGTERM, 143), _ended_by(signal.SIGHUP, 129))


async def _ended_by(number: int, code: int) -> None:
    """`lifecycle cycle`, ended in its drain, has brought its engine home and says so."""
    async with await LoopbackProcess.astart(**SMALL, weights_backup=True, faults=["flush=hang"]) as engine:
        command = [sys.executable, "-m", "lifecycle", "cycle", at(engine), "--weights", "kept"]
        piped = asyncio.subprocess.PIPE
        program = await asyncio.create_subprocess_exec(*command, stdout=piped, stderr=piped)
        assert program.stdout is not None
        assert b"paused" in await program.stdout.readline()
        program.send_signal(number)
        _, told = await asyncio.wait_for(program.communicate(), 30)
        assert program.returncode == code, told
        assert b"is serving" in told, told
        async with Fleet.connect([at(engine)], policy=POLICY) as fleet:
            assert fleet.engines[0].state is State.SERVING
