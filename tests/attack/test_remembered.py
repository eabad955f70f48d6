"""What is remembered never outranks what is measured: the command line, a store, and a driver that keeps nothing."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
from another_driver import AnotherDriver, alive, url
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import Fleet, FromDisk, Policy, State
from lifecycle.cli import main

pytestmark = pytest.mark.slow

Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ("--threshold-gib", "0.125")


@pytest.fixture
def lifecycle(tmp_path: Path) -> Run:
    """Runs a command, which knows of the ones before only what they kept."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        environment = mock.patch.dict(os.environ, LIFECYCLE_STATE_DIR=str(tmp_path))
        with environment, redirect_stdout(out), redirect_stderr(err):
            code = main(arguments)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    return run


async def released_without_a_store(process: LoopbackProcess, step: FromDisk, policy: Policy) -> None:
    """A fleet that keeps nothing released the engine, and ended."""
    async with Fleet.connect([url(process)], policy=policy, lease=None) as fleet:
        await fleet.offload(weights=step)


def source(step: FromDisk) -> tuple[str, ...]:
    return ("--weights", step.path, "--version", step.version)


async def in_thread(run: Run, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, which has an event loop of its own."""
    import asyncio

    return await asyncio.to_thread(run, *arguments)


async def test_a_row_from_before_anothers_release_is_not_believed(start, step_1, policy: Policy, lifecycle) -> None:
    process = start()
    address = url(process)
    assert "serving" in (await in_thread(lifecycle, "status", address)).stdout
    await released_without_a_store(process, step_1, policy)
    told = (await in_thread(lifecycle, "status", address)).stdout
    assert "drained" not in told
    assert "released" in told
    offload = await in_thread(lifecycle, "offload", address, *source(step_1), *SMALL)
    assert offload.returncode != 0, "nobody proved that its memory came back"
    assert alive(process)
    resume = await in_thread(lifecycle, "resume", address)
    assert resume.returncode != 0
    assert alive(process)
    async with Fleet.connect([url(process)], policy=policy) as fleet:
        assert fleet.engines[0].state in (State.FAILED, State.RELEASED)
        assert fleet.engines[0].facts.admission == "closed", "no zeros were served"


async def test_a_row_of_a_closed_engine_lets_nothing_pass_that_bytes_deny(
    start, step_1, policy: Policy, lifecycle
) -> None:
    """Admission is as the row says, and memory is not: another driver released it, and left it closed."""
    process = start()
    address = url(process)
    assert (await in_thread(lifecycle, "pause", address)).returncode == 0
    assert (await in_thread(lifecycle, "drain", address)).returncode == 0
    AnotherDriver(process).release("kv_cache", "weights")
    for verb in (("release", *source(step_1)), ("resume",), ("offload", *source(step_1))):
        result = await in_thread(lifecycle, verb[0], address, *verb[1:])
        assert result.returncode != 0, verb
        assert alive(process), verb
    assert "released" in (await in_thread(lifecycle, "status", address)).stdout


async def test_a_row_of_a_released_engine_restores_nothing_that_is_mapped(
    start, step_1, policy: Policy, lifecycle
) -> None:
    process = start()
    address = url(process)
    assert (await in_thread(lifecycle, "offload", address, *source(step_1), *SMALL)).returncode == 0
    AnotherDriver(process).restore("kv_cache", "weights")
    result = await in_thread(lifecycle, "onload", address)
    assert alive(process), result.stderr
    assert result.returncode == 0, result.stderr
    assert AnotherDriver(process).generate()


async def test_between_two_commands_nothing_is_lost_where_nobody_acted(start, step_1, lifecycle) -> None:
    process = start()
    address = url(process)
    for verb in ("pause", "drain"):
        assert (await in_thread(lifecycle, verb, address)).returncode == 0
    release = await in_thread(lifecycle, "release", address, *source(step_1), *SMALL)
    assert release.returncode == 0, release.stderr
    onload = await in_thread(lifecycle, "onload", address)
    assert onload.returncode == 0, onload.stderr
    assert "loaded(step-1)" in (await in_thread(lifecycle, "status", address)).stdout


async def test_without_a_row_an_engine_that_was_opened_while_released_is_not_opened_again(
    start, step_1, policy: Policy
) -> None:
    """Met for the first time while it admits requests, and its memory is not there."""
    process = start()
    await released_without_a_store(process, step_1, policy)
    AnotherDriver(process).resume()
    async with Fleet.connect([url(process)], policy=policy, lease=None) as fleet:
        (engine,) = fleet
        with pytest.raises(Exception, match=r"mapping_borne_out|externally modified|refused before anything was sent"):
            await fleet.offload(weights=step_1)
        assert alive(process), "a release of what is released kills it"
        assert (await engine.recover()).state in (State.RELEASED, State.FAILED)
        assert alive(process)
