"""The fake engines answer what SGLang answers to this library, and end where it ends."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import clients
import fakes
import pytest
from fake_engine import FakeEngine
from fake_sglang import Host

from lifecycle import Fleet, FromDisk, State

SOURCE = FromDisk("/models/step", "v1")
RELEASE, RESUME = "/release_memory_occupation", "/resume_memory_occupation"
PAUSE, CONTINUE = clients.post("/pause_generation", mode="abort"), clients.post("/continue_generation")
TOKEN = clients.post("/generate", text="a")
LOAD = clients.post("/update_weights_from_disk", model_path="/m", weight_version="v")


@pytest.fixture(scope="module")
def two() -> Iterator[fakes.Fakes]:
    with fakes.Fakes.start(2) as started:
        yield started


@pytest.fixture
def one() -> Iterator[fakes.Fakes]:
    with fakes.Fakes.start(1) as started:
        yield started


async def test_a_fleet_goes_round_without_killing_it(two: fakes.Fakes) -> None:
    async with Fleet.connect(two.urls, policy=fakes.POLICY, lease=None) as fleet:
        assert {await each.adapter.processes() for each in fleet} == {None}
        await fleet.offload(weights=SOURCE)
        assert {each.state for each in fleet} == {State.RELEASED}
        await fleet.onload()
        assert {each.state for each in fleet} == {State.SERVING}
        assert {each.desired.version for each in fleet} == {"v1"}
    assert two.log().dead == 0


async def test_engines_apart_have_a_process_and_memory_each() -> None:
    with fakes.Fakes.start(2, apart=True, tag_mib=16) as started:
        async with Fleet.connect(started.urls, policy=fakes.MEASURED, lease=None) as fleet:
            found = [process.pid for each in fleet for process in (await each.adapter.processes() or ())]
            assert found == list(started.pids)
            done = await fleet.offload(weights=SOURCE)
            assert {each.verdicts["memory_returned"].word for each in done} == {"proved"}
            await fleet.onload()


def test_nobody_else_gets_the_port_of_a_fake_engine_on_this_host(two: fakes.Fakes) -> None:
    """The library finds processes by port alone: an engine on 127.0.0.1 would be taken for the fake one too."""
    for port in two.ports:
        with socket.socket() as other, pytest.raises(OSError):
            other.bind(("127.0.0.1", port))


async def test_the_needed_calls_are_twelve_and_leave_it_serving(two: fakes.Fakes) -> None:
    two.log()
    async with clients.bare() as session:
        await clients.in_phases(session, two.bases, clients.needed("/m", "v"))
        log = two.log()
        assert (log.total, log.connections, log.dead) == (24, 2, 0)
        await clients.in_phases(session, two.bases, [(each,) for each in clients.users("/m", "v")])
        assert two.log().total == 14
        assert [await clients.ask(session, base, TOKEN) for base in two.bases] == [200, 200]


async def test_a_cycle_is_sent_again_as_it_was_seen(two: fakes.Fakes) -> None:
    async with Fleet.connect(two.urls, policy=fakes.POLICY, lease=None) as fleet, clients.bare() as session:
        two.set(recording=True)
        two.log()
        await fleet.offload(weights=SOURCE)
        await fleet.onload()
        seen = two.log()
        await clients.replay(session, two.bases, clients.sequences(seen.requests, 2))
        again = two.log()
        two.set(recording=False)
    assert again.calls == seen.calls
    assert again.dead == 0


KILLING = {
    "a release while requests run": (tags := clients.tags(RELEASE, "weights"),),
    "a release of a released tag": (PAUSE, tags, tags),
    "a resume of a mapped tag": (clients.tags(RESUME, "kv_cache"),),
    "a load without weights": (PAUSE, tags, LOAD),
    "a token without KV": (PAUSE, clients.tags(RELEASE, "kv_cache"), CONTINUE, TOKEN),
}


@pytest.mark.parametrize("sent", KILLING.values(), ids=KILLING)
async def test_it_dies_where_sglang_does(one: fakes.Fakes, sent: tuple[clients.Ask, ...]) -> None:
    if len(sent) == 1 and sent[0] == tags:
        one.set(engine={"run_s": 30})
    async with clients.bare() as session:
        for each in sent[:-1]:
            assert await clients.ask(session, one.bases[0], each) == 200
        with pytest.raises(aiohttp.ClientError):
            await clients.ask(session, one.bases[0], sent[-1])
        with pytest.raises(aiohttp.ClientConnectorError):
            await clients.ask(session, one.bases[0], clients.Ask("GET", "/ping"))


async def test_a_flush_waits_in_the_engine_for_the_last_request(one: fakes.Fakes) -> None:
    one.set(engine={"run_s": 0.2})
    async with clients.bare() as session:
        assert await clients.ask(session, one.bases[0], clients.post("/flush_cache")) == 400
        assert await clients.ask(session, one.bases[0], clients.post("/flush_cache?timeout=30")) == 200
    assert time.monotonic() >= one.log().run_until[0]


async def test_a_paused_engine_is_not_ready_and_a_health_check_leaves_it_so(one: fakes.Fakes) -> None:
    async with clients.bare() as session:

        async def status(path: str) -> int:
            return await clients.ask(session, one.bases[0], clients.Ask("GET", path))

        assert [await status("/ready"), await status("/ping")] == [200, 200]
        await clients.ask(session, one.bases[0], PAUSE)
        assert [await status("/ready"), await status("/ping")] == [503, 200]
        assert await status("/health") == 503
        await clients.ask(session, one.bases[0], CONTINUE)
        assert [await status("/ready"), await status("/ping")] == [503, 503]
        assert [await status("/health"), await status("/ready")] == [200, 200]


def test_slow_calls_take_the_same_time_again() -> None:
    host, engine, other = Host(apart=False), FakeEngine(0, 0, False), FakeEngine(1, 0, False)
    assert host.delay_s(engine, "POST", "/flush_cache") == 0
    host.slow = "all"
    drawn = [host.delay_s(engine, "GET", "/ping") for _ in range(3)]
    assert len(set(drawn)) == 3
    assert all(0.05 <= each <= 0.5 for each in drawn)
    assert host.delay_s(other, "GET", "/ping") not in drawn
    engine.asked.clear()
    assert [host.delay_s(engine, "GET", "/ping") for _ in range(3)] == drawn
    host.slow = "effects"
    assert host.delay_s(engine, "GET", "/ping") == 0
    assert host.delay_s(engine, "POST", "/flush_cache?timeout=1") >= 0.05


async def test_a_slow_call_takes_effect_when_it_is_answered(one: fakes.Fakes) -> None:
    one.set(slow="all", slow_s=[0.1, 0.1])
    async with clients.bare() as session:
        begun = time.perf_counter()
        assert await clients.ask(session, one.bases[0], PAUSE) == 200
        assert time.perf_counter() - begun >= 0.1
        one.set(slow="")
        assert await clients.ask(session, one.bases[0], clients.Ask("GET", "/ready")) == 503


def test_the_fake_server_needs_nothing_of_the_library() -> None:
    """It has to cost less than the client that is measured, and 1,000 of it have to fit."""
    text = Path(fakes.SERVER).read_text()
    assert "import lifecycle" not in text
    assert "from lifecycle" not in text
