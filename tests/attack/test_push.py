"""A push that fails between its begin and its end, on a real engine: the next one is taken, and the engine lives."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights
from safetensors.numpy import load_file, save

from lifecycle import (
    DeadlineExceeded,
    Engine,
    EngineHeld,
    Fleet,
    FleetError,
    GuardRefused,
    Policy,
    Pushed,
    Rejected,
    State,
)
from lifecycle.store import Store

pytestmark = pytest.mark.slow

POLICY = Policy(residual_threshold_gib=0.25, settle_s=1.0, poll_s=0.02)
PROMPT = {"text": "hello", "sampling_params": {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}}


@dataclass(frozen=True)
class Pushing:
    """One running engine, and the weights that a trainer pushes to it."""

    process: LoopbackProcess
    blobs: tuple[str, ...]
    #: What an engine generates that was started with these weights.
    truth: list[int]

    async def trainer(self, engines: Sequence[Any]) -> None:
        """Pushes every tensor to every engine."""
        for engine in engines:
            for blob in self.blobs:
                await half(engine, blob)

    async def next_push_is_taken(self, engine: Engine, version: str) -> None:
        """The next push succeeds, and what it brought is served by the same process."""
        await engine.update_weights(Pushed(self.trainer, version), deadline_s=10)
        await engine.resume()
        assert self.process.returncode is None
        answer = ask(self.process, "/generate", PROMPT)
        assert answer["output_ids"] == self.truth
        assert answer["meta_info"]["weight_version"] == version


def ask(process: LoopbackProcess, path: str, body: object) -> Any:
    """The JSON answer to a POST that is no refusal."""
    request = urllib.request.Request(process.url + path, json.dumps(body).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read() or b"null")


async def half(engine: Any, blob: str) -> None:
    """Pushes one part of the weights."""
    await engine.push("tensor", serialized_named_tensors=[blob], load_format="safetensors")


@pytest.fixture(scope="module")
def pushing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushing]:
    path = make_weights(tmp_path_factory.mktemp("weights") / "other.safetensors", seed=7, weights_mib=16)
    tensors = list(load_file(path).items())
    blobs = tuple(base64.b64encode(save(dict(part))).decode() for part in (tensors[::2], tensors[1::2]))
    small: dict[str, Any] = {"weights_mib": 16, "kv_mib": 8, "allow_faults": True}
    with LoopbackProcess.start(**small, arguments=("--abort-poll-s", "0.02")) as process:
        with LoopbackProcess.start(**small, weights=path) as other:
            truth = ask(other, "/generate", PROMPT)["output_ids"]
        yield Pushing(process, blobs, truth)


@asynccontextmanager
async def drained(pushing: Pushing, **how: Any) -> AsyncIterator[Fleet]:
    """A fleet of the one engine, which is drained."""
    ask(pushing.process, "/continue_generation", {})
    address = f"loopback://127.0.0.1:{pushing.process.port}?name=e"
    async with Fleet.connect([address], policy=POLICY, **how) as fleet:
        await fleet.pause()
        await fleet.drain()
        try:
            yield fleet
        finally:
            ask(pushing.process, "/_fault", {"update": None, "begin": None, "end": None})
            ask(pushing.process, "/continue_generation", {})


async def the_trainer_raises(fleet: Fleet, pushing: Pushing) -> None:
    with pytest.raises(ZeroDivisionError):
        async with fleet.updating_weights("v1") as engines:
            await half(engines[0], pushing.blobs[0])
            raise ZeroDivisionError


async def a_tensor_is_refused(fleet: Fleet, pushing: Pushing) -> None:
    with pytest.raises(Rejected):
        async with fleet.updating_weights("v1") as engines:
            await half(engines[0], pushing.blobs[0])
            await half(engines[0], base64.b64encode(b"junk").decode())


async def the_window_is_cancelled(fleet: Fleet, pushing: Pushing) -> None:
    async def window(begun: asyncio.Event) -> None:
        async with fleet.updating_weights("v1") as engines:
            await half(engines[0], pushing.blobs[0])
            begun.set()
            await asyncio.sleep(60)

    await cancelled_once_begun(window)


async def the_update_is_cancelled(fleet: Fleet, pushing: Pushing) -> None:
    async def update(begun: asyncio.Event) -> None:
        async def trainer(engines: Sequence[Any]) -> None:
            await half(engines[0], pushing.blobs[0])
            begun.set()
            await asyncio.sleep(60)

        await fleet["e"].update_weights(Pushed(trainer, "v1"))

    await cancelled_once_begun(update)
    assert fleet["e"].state is State.FAILED  # nothing is asked of an engine whose caller gave up
    assert (await fleet["e"].recover()).state is State.DRAINED


async def cancelled_once_begun(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    begun = asyncio.Event()
    task = asyncio.ensure_future(work(begun))
    await asyncio.wait_for(begun.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def the_deadline_passes(fleet: Fleet, pushing: Pushing) -> None:
    async def trainer(engines: Sequence[Any]) -> None:
        await half(engines[0], pushing.blobs[0])
        await asyncio.sleep(60)

    with pytest.raises(DeadlineExceeded):
        await fleet["e"].update_weights(Pushed(trainer, "v1"), deadline_s=1.5)


async def the_begin_is_lost(fleet: Fleet, pushing: Pushing) -> None:
    ask(pushing.process, "/_fault", {"begin": "lost"})
    await refused(fleet, pushing)


async def the_begin_says_500_and_has_begun(fleet: Fleet, pushing: Pushing) -> None:
    ask(pushing.process, "/_fault", {"begin": "error_after"})
    await refused(fleet, pushing)


async def a_tensor_is_lost(fleet: Fleet, pushing: Pushing) -> None:
    ask(pushing.process, "/_fault", {"update": "lost"})
    await refused(fleet, pushing)


async def refused(fleet: Fleet, pushing: Pushing) -> None:
    with pytest.raises(FleetError):
        await fleet.update_weights(Pushed(pushing.trainer, "v1"), deadline_s=5)
    ask(pushing.process, "/_fault", {"update": None, "begin": None})


FAILS = [
    the_trainer_raises,
    a_tensor_is_refused,
    the_window_is_cancelled,
    the_update_is_cancelled,
    the_deadline_passes,
    the_begin_is_lost,
    the_begin_says_500_and_has_begun,
    a_tensor_is_lost,
]


@pytest.mark.parametrize("fails", FAILS, ids=lambda fails: fails.__name__.replace("_", " "))
async def test_after_a_push_that_failed_the_next_one_is_taken(
    pushing: Pushing, fails: Callable[[Fleet, Pushing], Awaitable[None]]
) -> None:
    async with drained(pushing) as fleet:
        engine = fleet["e"]
        await fails(fleet, pushing)
        assert engine.state is State.DRAINED
        with pytest.raises(GuardRefused, match="weights_valid"):
            await engine.resume()
        await pushing.next_push_is_taken(engine, "v2")


async def test_an_end_that_nobody_answers_is_asked_again_by_recover(pushing: Pushing) -> None:
    async with drained(pushing) as fleet:
        engine = fleet["e"]
        ask(pushing.process, "/_fault", {"end": "hang"})
        with pytest.raises(FleetError):
            await fleet.update_weights(Pushed(a_trainer_that_raises, "v1"), deadline_s=2)
        assert engine.state is State.FAILED
        assert engine.record.uncertain.needs_barrier
        ask(pushing.process, "/_fault", {"end": None})
        assert (await engine.recover()).state is State.DRAINED
        await pushing.next_push_is_taken(engine, "v2")


async def a_trainer_that_raises(engines: Sequence[Any]) -> None:
    raise ZeroDivisionError


async def test_a_session_that_another_program_left_open_is_named_and_the_advice_leads_on(pushing: Pushing) -> None:
    async with drained(pushing) as fleet:
        assert ask(pushing.process, "/begin_weight_update", {})["success"]
        with pytest.raises(FleetError, match=r"was never ended.*push again, or load from disk"):
            await fleet.update_weights(Pushed(pushing.trainer, "v1"))
        assert fleet["e"].state is State.DRAINED
        await pushing.next_push_is_taken(fleet["e"], "v1")


DRIVER = """
import asyncio, pathlib, sys
from lifecycle import Fleet, Policy, Pushed
from lifecycle.store import Store

async def trainer(engines):
    print("pushing", flush=True)
    await asyncio.sleep(60)

async def main():
    store, policy = Store(pathlib.Path(sys.argv[2])), Policy(residual_threshold_gib=0.25)
    async with Fleet.connect([sys.argv[1]], policy=policy, store=store) as fleet:
        await fleet.pause()
        await fleet.drain()
        await fleet.update_weights(Pushed(trainer, "killed"), deadline_s=3)

asyncio.run(main())
"""


def killed_in_its_push(address: str, rows: Path) -> None:
    """Starts a driver that pushes, and kills it between the begin and the end."""
    with subprocess.Popen([sys.executable, "-c", DRIVER, address, str(rows)], stdout=subprocess.PIPE) as driver:
        try:
            assert driver.stdout is not None
            assert driver.stdout.readline() == b"pushing\n"
        finally:
            os.kill(driver.pid, signal.SIGKILL)


async def attached_when_free(address: str, rows: Path) -> Fleet:
    """A fleet that is observed: what the killed driver sent may run until its deadline, and nobody is let in before."""
    end = time.monotonic() + 15
    while True:
        fleet = Fleet.connect([address], policy=POLICY, store=Store(rows))
        try:
            await fleet["e"].connect()
        except EngineHeld:
            await fleet.aclose()
            assert time.monotonic() < end, "the intent of a killed driver outlived its deadline"
            await asyncio.sleep(0.2)
        else:
            return fleet


async def test_a_driver_killed_in_its_push_leaves_no_engine_that_refuses_the_next(
    pushing: Pushing, tmp_path: Path
) -> None:
    ask(pushing.process, "/continue_generation", {})
    address, rows = f"loopback://127.0.0.1:{pushing.process.port}?name=e", tmp_path / "state.db"
    await asyncio.to_thread(killed_in_its_push, address, rows)
    async with await attached_when_free(address, rows) as fleet:
        engine = fleet["e"]
        if (await engine.recover()).state is State.FAILED:  # whether tags of 16 MiB are mapped cannot be measured
            engine.override_state(State.DRAINED, by="a test", reason="the driver died in an update, which maps nothing")
        await pushing.next_push_is_taken(engine, "v3")
