"""Each release of SGLang in the field is driven by what it has: its answers, recorded or read, are replayed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from lifecycle.adapters.sglang import SGLangAdapter
from lifecycle.adapters.sglang.plan import CLOSE_PUSH
from lifecycle.adapters.sglang.versions import VERSIONS
from sglang_server import RecordedServer

from lifecycle import ConfigurationError, Engine, Fact, Facts, FromDisk, Policy, Proved, State, doctor
from lifecycle.core.commands import Command, Pause, Resume, UpdateWeights
from lifecycle.core.facts import Contents, Grade
from lifecycle.core.observation import Probe
from lifecycle.core.sources import Pushed
from lifecycle.nodes.address import parse

#: One release of each range.
RELEASES = ("0.5.11", "0.5.12.post1", "0.5.15", "0.5.16", "0.5.18", "0.5.20", "0.5.22", "0.5.23")

#: What is resident cannot be measured of a server that is a part of the test.
UNMEASURED = Policy(unprovable="warn", deadlines_s={"pause": 5, "drain": 2, "resume": 5})

SERVING = Facts().learn(
    {
        Fact.ADMISSION: "open",
        Fact.MAPPED: {"weights": True, "kv_cache": True},
        Fact.CONTENTS: {"weights": Contents("launched", "default")},
        Fact.CACHE_FRESH: True,
    },
    Grade.REPORTED,
)
EVERYTHING = frozenset({Fact.BOOT, Fact.ADMISSION, Fact.CLOSED, Fact.RUNNING, Fact.CONTENTS, Fact.CHECKSUM})


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3])


@asynccontextmanager
async def driven(version: str, options: str = "", **how: Any) -> AsyncIterator[tuple[RecordedServer, SGLangAdapter]]:
    """A server of this version, and an adapter that has connected; nothing of that is in what the server has seen."""
    async with RecordedServer(version, **how) as server:
        adapter = SGLangAdapter(parse(server.url + options))
        try:
            await adapter.connect(deadline_s=10)
            adapter._at_connect = None
            server.seen.clear()
            yield server, adapter
        finally:
            await adapter.aclose()


async def carried_out(adapter: SGLangAdapter, command: Command, facts: Facts = SERVING) -> list[str]:
    """The outcomes of the calls of a command; of a push its calls alone."""
    calls = [call for call in adapter.plan(command, facts) if call.name != "push"]
    return [(await adapter.send(call, deadline_s=5)).outcome for call in calls]


def test_there_is_a_release_here_for_each_range() -> None:
    assert [VERSIONS.find(version) for version in RELEASES] == list(VERSIONS)


@pytest.mark.parametrize("version", RELEASES)
async def test_an_abort_ends_every_request_and_leaves_it_idle(version: str) -> None:
    async with driven(version, "?abort=retract", running=4, waiting=1) as (server, adapter):
        assert set(await carried_out(adapter, Pause("abort"))) == {"done"}
        assert (server.aborted, server.running, server.waiting) == (5, 0, 0)
        idle = await adapter.idle_within(Facts(paused_by="abort"), wait_s=1.0, deadline_s=5)
        assert isinstance(idle, Proved)
        by_retract = "POST /abort_request" in server.sent()
        assert by_retract is (version == "0.5.23")
        assert adapter._known().pause["abort"].drains


async def test_counts_that_stand_still_are_waited_for_by_nobody() -> None:
    """Those of a scheduler that was paused a while ago say how old they are."""
    async with driven("0.5.23", running=2) as (server, adapter):
        assert (await adapter.observe(frozenset({Fact.RUNNING}), deadline_s=5)).running == 2
        await carried_out(adapter, Pause("keep"))
        asked, server.counted_at = len(server.sent("/v1/loads")), server.counted_at - 5
        assert (await adapter.observe(frozenset({Fact.RUNNING}), deadline_s=5)).running is None
        assert len(server.sent("/v1/loads")) == asked + 1


@pytest.mark.parametrize("version", RELEASES)
async def test_kept_requests_drain_only_where_a_queue_counts_as_idle(version: str) -> None:
    """Where they do not, keep is no mode of it: the release that would follow ends the server."""
    async with driven(version, running=2) as (server, adapter):
        assert ("keep" in adapter._known().pause) is (release(version) >= (0, 5, 21))
        await carried_out(adapter, Pause("keep"))
        idle = await adapter.idle_within(Facts(paused_by="keep"), wait_s=1.0, deadline_s=5)
        assert isinstance(idle, Proved) is ("keep" in adapter._known().pause)
        assert server.waiting == 2


@pytest.mark.parametrize("version", RELEASES)
async def test_a_push_has_a_session_where_there_are_any(version: str) -> None:
    sessions = release(version) >= (0, 5, 21)
    async with driven(version) as (server, adapter):
        names = [call.name for call in adapter.plan(UpdateWeights(Pushed(None, "v2")), SERVING)]
        begin, end = ("begin_weight_update", "end_weight_update") if sessions else ("flush_cache", "flush_cache")
        assert names == [begin, "push", end, *(["flush_cache"] if sessions else [])]
        facts = SERVING
        for call in adapter.plan(UpdateWeights(Pushed(None, "v2")), SERVING):
            if call.name == "push":
                assert facts.contents == {"weights": None}, "unknown from the beginning on, whatever becomes of it"
                call = adapter.push_call("tensor", {"serialized_named_tensors": ["AAAA"]}, "v2")
            assert (await adapter.send(call, deadline_s=5)).outcome == "done"
            facts = facts.learn(call.effect, Grade.ACKNOWLEDGED, cause=call.name)
        assert facts.contents == {"weights": Contents("loaded", "v2")}
        assert (facts.cache_fresh, server.session, server.label) == (True, False, "v2")


@pytest.mark.parametrize("version", RELEASES)
async def test_a_push_that_failed_is_over_once_the_scheduler_has_answered(version: str) -> None:
    async with driven(version, session=True) as (server, adapter):
        close = adapter.close_push_call()
        assert close.name == CLOSE_PUSH
        assert (await adapter.send(close, deadline_s=5)).outcome == "done"
        asked = server.sent("/end_weight_update", "/server_info")
        sessions = release(version) >= (0, 5, 21)
        assert asked == (["POST /end_weight_update"] if sessions else ["GET /server_info"])
        server.script("GET /server_info", (502, b"<html>bad gateway</html>"))
        assert (await adapter.send(close, deadline_s=5)).outcome == ("done" if sessions else "lost")


@pytest.mark.parametrize("version", RELEASES)
async def test_what_it_says_of_its_admission(version: str) -> None:
    """Before 0.5.20 a token says that it is open, and before 0.5.23 nothing that it is closed."""
    async with driven(version) as (server, adapter):
        assert (Fact.CLOSED in adapter._known().observable) is (version == "0.5.23")
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).admission == "open"
        assert ("POST /generate" in server.sent()) is (release(version) < (0, 5, 20))
        await carried_out(adapter, Pause("abort"))
        server.seen.clear()
        seen = await adapter.observe(EVERYTHING, deadline_s=5)
        assert seen.admission == ("closed" if version == "0.5.23" else None)
        assert seen.alive
        assert server.sent() == [], "one that this adapter closed is not asked for a token, which would wait there"


@pytest.mark.parametrize("version", ["0.5.15", "0.5.22"])
async def test_one_that_somebody_else_closed_is_not_taken_for_open(version: str) -> None:
    async with driven(version, gate_closed=True) as (_, adapter):
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).admission is None


async def test_after_a_continue_it_is_asked_again() -> None:
    async with driven("0.5.15") as (server, adapter):
        await carried_out(adapter, Pause("abort"))
        server.script("POST /continue_generation", (500, b""))
        continued = adapter.plan(Resume(), SERVING)[0]
        assert (await adapter.send(continued, deadline_s=5)).outcome == "rejected"
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).admission is None
        server.gate_closed = False
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).admission == "open"


@pytest.mark.parametrize("version", RELEASES)
async def test_requests_are_counted_while_it_is_paused_where_that_can_be(version: str) -> None:
    """Where the counts have a time they stand still; before the scheduler counts when it is asked."""
    async with driven(version, running=3) as (server, adapter):
        await carried_out(adapter, Pause("keep"))
        seen = await adapter.observe(frozenset({Fact.ADMISSION, Fact.RUNNING}), deadline_s=2)
        assert seen.running == (3 if release(version) < (0, 5, 13) else None)
        assert (len(server.sent("/v1/loads")) == 1) is (release(version) < (0, 5, 13)), (
            "asked again until the time moves"
        )


@pytest.mark.parametrize("version", RELEASES)
async def test_checksums_where_there_are_any(version: str) -> None:
    async with driven(version, "?checksum=true") as (_, adapter):
        there = version != "0.5.11"
        assert (Fact.CHECKSUM in adapter._known().observable) is there
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).checksum == ("default" if there else None)


@pytest.mark.parametrize("version", RELEASES)
async def test_what_was_loaded_since_the_launch_is_no_launch_source(version: str) -> None:
    for load in ({"path": "/models/step-1", "label": "default"}, {"label": "step-1"}):
        async with driven(version, **load) as (_, adapter):
            known = adapter._known().launch_source
            both_are_live = release(version) < (0, 5, 16) and "path" in load
            assert known == (FromDisk("/models/step-1", "default") if both_are_live else None)
    async with driven(version) as (_, adapter):
        assert adapter._known().launch_source == FromDisk("/models/tiny", "default")
    async with driven(version, scripted={"GET /model_info": [(500, b"")]}) as (_, adapter):
        assert adapter._known().launch_source is None


@pytest.mark.parametrize("version", RELEASES)
async def test_an_engine_of_it_is_paused_drained_and_serves_again(version: str) -> None:
    async with RecordedServer(version, running=2) as server:
        engine = await Engine(SGLangAdapter(parse(server.url)), name="e", lease=None, policy=UNMEASURED).connect()
        assert engine.state is State.SERVING
        await engine.pause("abort")
        await engine.drain()
        assert (engine.state, server.aborted, engine.facts.paused_by) == (State.DRAINED, 2, "abort")
        await engine.resume()
        assert (engine.state, server.gate_closed, server.paused) == (State.SERVING, False, False)
        await engine.aclose()


async def test_a_token_is_enough_where_there_is_no_ready() -> None:
    async with driven("0.5.15") as (server, adapter):
        assert isinstance(await adapter.answers(Probe(), deadline_s=5), Proved)
        assert server.sent("/ready", "/health") == []


@pytest.mark.parametrize("version", ["0.5.10", "0.6.0", "main"])
async def test_a_version_that_nobody_knows_is_refused_with_those_that_are(version: str) -> None:
    async with RecordedServer(version) as server:
        adapter = SGLangAdapter(parse(server.url))
        with pytest.raises(ConfigurationError, match=r"is not among the versions .*0\.5\.23 to before 0\.5\.24"):
            await adapter.connect(deadline_s=5)
        await adapter.aclose()
        assert server.sent() == []


@pytest.mark.parametrize(("version", "nearest"), [("0.5.10", "0.5.11"), ("0.6.0", "0.5.23"), ("main", "0.5.23")])
async def test_it_is_driven_as_the_nearest_where_that_is_asked_for(version: str, nearest: str) -> None:
    async with driven(version, "?unknown_version=warn") as (_, adapter):
        assert adapter.version_known_by.startswith(f"{nearest} to before")
        assert any("is not among the versions" in note and nearest in note for note in adapter._known().notes)


@pytest.mark.parametrize("version", ["0.5.22", "0.5.23"])
async def test_the_doctor_says_which_ranges_there_are_and_which_it_is_in(version: str) -> None:
    async with RecordedServer(version) as server:
        engine = await Engine(SGLangAdapter(parse(server.url)), name="e", lease=None, policy=UNMEASURED).connect()
        finding = await doctor.version(engine)
        await engine.aclose()
    assert (finding.level == "ok") is (version == "0.5.23")
    assert f"driven as one of {VERSIONS.find(version)}" in finding.said
    assert f"it knows {VERSIONS.known}" in finding.said


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ({}, False),
        ({"dp_size": 2}, True),
        ({"disaggregation_mode": "decode"}, True),
        ({"tokenizer_worker_num": 2}, True),
    ],
    ids=["alone", "ranks", "decode", "tokenizers"],
)
async def test_where_it_was_not_seen_to_be_the_same_an_abort_is_its_own(settings: dict[str, Any], own: bool) -> None:
    async with driven("0.5.23", "?abort=retract", settings=settings) as (_, adapter):
        (first, *more) = adapter.plan(Pause("abort"), SERVING)
        assert (first.args["mode"], len(more)) == (("abort", 0) if own else ("retract", 1))
        assert any("is its own: it takes a second" in note for note in adapter._known().notes) is own


@pytest.mark.parametrize("options", ["", "?abort=own"])
async def test_its_own_abort_is_asked_for_unless_another_is(options: str) -> None:
    async with driven("0.5.23", options) as (_, adapter):
        assert [call.args for call in adapter.plan(Pause("abort"), SERVING)] == [{"mode": "abort"}]
