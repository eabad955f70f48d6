"""An engine that ended while no driver lived: where the next one can tell, it is gone, and the others come home."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights

from lifecycle import (
    ConfigurationError,
    Fleet,
    FromDisk,
    InvalidTransition,
    Policy,
    Process,
    State,
    Unmeasurable,
    UpdateWeights,
)
from lifecycle.cli.actions import arrived
from lifecycle.core.errors import NothingListens
from lifecycle.doctor import examine
from lifecycle.nodes.processes import by_pid, is_alive
from lifecycle.store import Store

POLICY = Policy(residual_threshold_gib=0.1, poll_s=0.02, on_failure="quarantine")


@pytest.fixture
def pair() -> Iterator[list[LoopbackProcess]]:
    """Two engines, of which the first has two ranks."""
    engines = [LoopbackProcess.start(ranks=ranks) for ranks in (2, 1)]
    yield engines
    for engine in engines:
        engine.kill()


def fleet_of(engines: list[LoopbackProcess], store: Store | None = None) -> Fleet:
    urls = [
        f"{engine.url.replace('http', 'loopback', 1)}?name={name}" for engine, name in zip(engines, "ab", strict=True)
    ]
    return Fleet.connect(urls, policy=POLICY, store=store)


async def offloaded(engines: list[LoopbackProcess], store: Store | None = None) -> FromDisk:
    """A driver has released both, and has ended."""
    source = FromDisk(str(make_weights(engines[0].weights.with_name("v2.safetensors"), seed=1, weights_mib=64)), "v2")
    async with fleet_of(engines, store) as fleet:
        await fleet.offload(weights=source)
    return source


def states(fleet: Fleet) -> dict[str, str]:
    return {engine.name: str(engine.state) for engine in fleet}


async def test_it_is_gone_and_home_after_it_was_started_again(pair: list[LoopbackProcess]) -> None:
    await offloaded(pair)
    pair[0].kill()
    async with fleet_of(pair) as fleet:
        assert states(fleet) == {"a": "gone", "b": "released"}
        assert fleet["a"].memory_is_free
        assert fleet["a"].reason == f"pids {', '.join(map(str, sorted(pair[0].pids)))} have ended"
        found = await fleet.recover(to="serving")
        assert states(fleet) == {"a": "gone", "b": "serving"}
        assert found["a"].advice.choices[0].first == "start it anew"
        pair[0] = LoopbackProcess.start(port=pair[0].port, ranks=2)
        assert await fleet["a"].verify() is State.GONE, "what another process can do is asked by recover()"
        await fleet.recover(to="serving")
        assert states(fleet) == {"a": "serving", "b": "serving"}
        assert {engine.desired.version for engine in fleet} == {"v2"}
        assert {str(each) for engine in fleet for each in engine.facts.contents.values()} == {"loaded(v2)"}


@pytest.mark.slow
async def test_a_fleet_moves_on_without_it_where_its_policy_says_so(pair: list[LoopbackProcess]) -> None:
    source = await offloaded(pair)
    pair[0].kill()
    async with fleet_of(pair) as fleet:
        async with fleet.offloaded(weights=source):
            assert states(fleet) == {"a": "gone", "b": "released"}
        assert states(fleet) == {"a": "gone", "b": "serving"}
        assert fleet["a"].quarantined is not None


@pytest.mark.slow
async def test_it_can_be_asked_for_everything_and_stays_gone(pair: list[LoopbackProcess]) -> None:
    source = await offloaded(pair)
    pair[0].kill()
    async with fleet_of(pair) as fleet:
        engine = fleet["a"]
        assert await engine.verify() is State.GONE
        assert isinstance(await engine.read_residual(), Unmeasurable)
        assert (await engine.recover()).state is State.GONE
        assert (await engine.connect()).state is State.GONE
        assert "start it anew" in str(engine.advice)
        assert engine.weights_refusal() == "weights holds contents unknown"
        (finding,) = await examine(engine)
        assert (finding.check, finding.level, finding.remedy) == ("connection", "failure", "start it anew")
        with pytest.raises(InvalidTransition, match="refused in state gone"):
            await engine.pause()
        again = UpdateWeights(source)  # what it is to serve: that says nothing of what it holds
        assert not arrived(engine, [again])
        with pytest.raises(InvalidTransition, match="refused in state gone"):
            await engine.execute(again)


@pytest.mark.slow
async def test_one_that_ends_while_it_is_driven_is_gone_when_it_is_connected_to_again(
    pair: list[LoopbackProcess],
) -> None:
    await offloaded(pair)
    async with fleet_of(pair) as fleet:
        pair[0].kill()
        assert (await fleet["a"].connect()).state is State.GONE


@pytest.mark.slow
async def test_one_that_was_started_again_while_it_was_driven_is_gone_once_that_has_ended_too(
    pair: list[LoopbackProcess],
) -> None:
    await offloaded(pair)
    async with fleet_of(pair) as fleet:
        pair[0].kill()
        assert await fleet["a"].verify() is State.GONE
        pair[0] = LoopbackProcess.start(port=pair[0].port)
        await fleet.recover(to="serving")
        assert states(fleet) == {"a": "serving", "b": "serving"}
    pair[0].kill()
    async with fleet_of(pair) as fleet:
        assert states(fleet) == {"a": "gone", "b": "serving"}


async def test_one_that_nobody_has_met_is_a_wrong_address(pair: list[LoopbackProcess]) -> None:
    pair[0].kill()
    with pytest.raises(ConfigurationError, match="nothing listens there") as refused:
        async with fleet_of(pair):
            pass
    assert str(refused.value).count("\n") == 0


@pytest.mark.slow
async def test_one_of_which_a_process_lives_is_not_gone(pair: list[LoopbackProcess], tmp_path: Path) -> None:
    orphan = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    try:
        await _not_gone(pair, tmp_path, by_pid(orphan.pid))
    finally:
        orphan.kill()
        await orphan.wait()


@pytest.mark.slow
async def test_one_of_another_host_is_not_gone(pair: list[LoopbackProcess], tmp_path: Path) -> None:
    await _not_gone(pair, tmp_path, Process("elsewhere", 4242, 1.0))


async def _not_gone(pair: list[LoopbackProcess], folder: Path, *more: Process) -> None:
    """An engine that ended, and of which the store says that it had these processes too, cannot be attached to."""
    store = Store(folder / "engines.sqlite3")
    await offloaded(pair, store)
    pair[0].kill()
    engine = fleet_of(pair, store)["a"]
    kept = store.load(engine._session.key)
    assert kept is not None
    async with asyncio.timeout(10):  # its ranks were killed with it, and `kill` waits for the server alone
        while any(is_alive(each) for each in kept.calibration.processes):  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.01)
    processes = (*kept.calibration.processes, *more)
    store.save(engine._session.key, replace(kept, calibration=replace(kept.calibration, processes=processes)))
    with pytest.raises(NothingListens):
        await engine.connect()
    await engine.aclose()
