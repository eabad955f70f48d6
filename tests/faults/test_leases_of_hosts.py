"""Drivers that ask a table of leases in a third process, as drivers of many hosts ask an actor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leased_driver import KEY, TTL_S, Tables, asked
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import EngineHeld, Fleet, FromDisk, Policy, State

pytestmark = pytest.mark.slow

DEADLINE_S = 60.0
POLICY = Policy(poll_s=0.01)


@pytest.fixture
def table() -> Iterator[int]:
    """The port of a table that a process of its own keeps."""
    manager = Tables(("127.0.0.1", 0), KEY)
    manager.start()
    try:
        yield manager.address[1]
    finally:
        manager.shutdown()


@pytest.fixture(scope="module")
def engine() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(weights_mib=128, kv_mib=80) as process:
        yield process


@pytest.fixture
def driver(table: int, engine: LoopbackProcess) -> Iterator[subprocess.Popen[str]]:
    """A driver inside its window, whose event loop is busy."""
    program = Path(__file__).with_name("leased_driver.py")
    command = [sys.executable, str(program), str(table), url(engine), str(engine.weights), "v1"]
    process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def url(engine: LoopbackProcess) -> str:
    return f"loopback://127.0.0.1:{engine.port}"


def fleet_of(engine: LoopbackProcess, table: int) -> Fleet:
    return Fleet.connect([url(engine)], policy=POLICY, lease=asked(table))


def ended(driver: subprocess.Popen[str]) -> dict[str, Any]:
    """What the driver says of its window, whose trainer is done."""
    said, _ = driver.communicate("go on\n", timeout=DEADLINE_S)
    return json.loads(said.splitlines()[-1])


async def test_a_trainer_that_keeps_the_loop_busy_loses_no_engine(
    driver: subprocess.Popen[str], engine: LoopbackProcess, table: int
) -> None:
    end, refused = time.monotonic() + 3 * TTL_S, 0
    async with fleet_of(engine, table) as fleet:
        while time.monotonic() < end:
            with pytest.raises(EngineHeld, match=f"pid {driver.pid} on"):
                await fleet.onload()
            refused += 1
    assert refused > 3
    assert ended(driver) == {"state": "serving", "error": None}


async def test_a_driver_that_was_stopped_for_longer_loses_its_engine_and_sends_nothing_more(
    driver: subprocess.Popen[str], engine: LoopbackProcess, table: int
) -> None:
    os.kill(driver.pid, signal.SIGSTOP)
    source = FromDisk(str(engine.weights), "v1")
    async with fleet_of(engine, table) as fleet:
        other, end = fleet.engines[0], time.monotonic() + DEADLINE_S
        while True:
            try:
                await fleet.onload(weights=source)
                break
            except EngineHeld:
                assert time.monotonic() < end, "it was never free"
        assert other.state is State.SERVING
        async with fleet.offloaded(weights=source):
            os.kill(driver.pid, signal.SIGCONT)
            first = ended(driver)
            assert f"pid {os.getpid()} on" in first["error"]
            assert await other.verify() is State.RELEASED, "the first one did nothing to it"
        assert other.state is State.SERVING
    assert engine.returncode is None
