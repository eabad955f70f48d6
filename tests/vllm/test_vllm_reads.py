"""What reads of a vLLM server tell, and what is not believed of them."""

from __future__ import annotations

import asyncio
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lifecycle.adapters.http import Answer
from lifecycle.adapters.vllm import VLLMAdapter, answers
from lifecycle.adapters.vllm.versions import VERSIONS
from vllm_driving import driven, facts
from vllm_server import DIED, RecordedServer, config, error

from lifecycle import Call, Fact, Grade
from lifecycle.core.observation import Probe
from lifecycle.core.verdicts import Pending, Proved, Refuted
from lifecycle.rules.identity import own_identity, processes_of

EVERYTHING = frozenset({Fact.BOOT, Fact.ADMISSION, Fact.CLOSED, Fact.RUNNING, Fact.MAPPED, Fact.CONTENTS})
READS = [
    ({Fact.BOOT}, ["health", "server_info"]),
    ({Fact.ADMISSION}, ["is_paused"]),
    ({Fact.CONTENTS}, ["weight_info"]),
    ({Fact.MAPPED}, ["health", "server_info"]),
    (EVERYTHING, ["is_paused", "load", "server_info", "weight_info"]),
]


@pytest.mark.parametrize(("want", "reads"), READS, ids=lambda each: " ".join(sorted(each)))
async def test_it_reads_what_tells_the_wanted_facts_and_nothing_else(want: set[Fact], reads: list[str]) -> None:
    async with driven() as (server, adapter):
        seen = await adapter.observe(frozenset(want), deadline_s=5)
        assert sorted(request.path[1:] for request in server.seen) == reads
        assert seen.alive
        assert server.sent() == []


async def test_the_first_look_is_the_answer_that_connect_was_given() -> None:
    async with driven() as (server, adapter):
        await adapter.connect(deadline_s=5)
        server.seen.clear()
        assert (await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)).boot is not None
        assert server.seen == []
        await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)
        assert server.seen != []


async def test_its_boot_is_its_instance_joined_with_its_process() -> None:
    async with driven() as (server, adapter):
        seen = await adapter.observe(EVERYTHING, deadline_s=5)
        assert own_identity(seen.boot) == "1f4c9"
        assert [process.pid for process in processes_of(seen.boot)] == [os.getpid()]
        server.config["instance_id"] = "77aa0"
        assert own_identity((await adapter.boot_anew(deadline_s=5)).boot) == "77aa0"


async def test_admission_is_what_is_paused_and_never_what_sleeps() -> None:
    async with driven() as (server, adapter):
        server.script("GET /is_sleeping", (200, {"is_sleeping": True}))
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).admission == "open"
        server.paused = "abort"
        seen = await adapter.observe(EVERYTHING, deadline_s=5)
        assert (seen.admission, seen.released_tags) == ("closed", None)
        assert not any(request.path == "/is_sleeping" for request in server.seen)
        for odd in ({"is_paused": "yes"}, {}, [], b"<html>"):
            server.script("GET /is_paused", (200, odd))
            assert (await adapter.observe(EVERYTHING, deadline_s=5)).admission is None


async def test_the_label_of_the_weights() -> None:
    async with driven(label="step-3") as (_, adapter):
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).weights_label == "step-3"


async def test_a_checksum_where_it_is_asked_for() -> None:
    async with driven(options="checksum=true") as (server, adapter):
        want = frozenset({Fact.CHECKSUM})
        first = (await adapter.observe(want, deadline_s=5)).checksum
        server.label = "other"
        assert first != (await adapter.observe(want, deadline_s=5)).checksum
        server.script("POST /weight_checker", (200, {"checksums": {}}))
        assert (await adapter.observe(want, deadline_s=5)).checksum is None
    async with driven("0.31.0", options="checksum=true") as (_, adapter):
        assert Fact.CHECKSUM not in adapter._known().observable


# load


async def answered(adapter: VLLMAdapter, server: RecordedServer) -> None:
    """A completion is answered, after `/load` was asked while it ran."""
    server.generates.clear()
    asking = asyncio.create_task(adapter.answers(Probe(), deadline_s=10))
    await server.loads.wait()
    server.generates.set()
    assert isinstance(await asking, Proved)


@pytest.mark.parametrize("tracks", [True, False])
async def test_a_load_of_none_says_nothing_and_one_of_some_says_that_they_run_where_it_is_open(tracks: bool) -> None:
    """The count drifts: a stream that its client drops as it begins is taken off twice. Found by `make real`."""
    async with driven(tracks_load=tracks) as (server, adapter):
        await answered(adapter, server)
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).running is None
        server.paused = "abort"
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).running is None
        server.open_requests = 3
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).running is None, "kept and queued ones are counted too"
        server.paused = None
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).running == (3 if tracks else None)


@pytest.mark.parametrize("tracks", [True, False])
async def test_open_requests_are_told_once_load_was_seen_to_count_and_not_of_the_next_process(tracks: bool) -> None:
    async def opened() -> int | None:
        await adapter.observe(EVERYTHING, deadline_s=5)
        counts = await adapter.request_counts(deadline_s=5)
        assert counts is not None
        return counts.open

    async with driven(tracks_load=tracks) as (server, adapter):
        assert await opened() is None, "nothing is known of /load yet"
        await answered(adapter, server)
        assert await opened() == (0 if tracks else None)
        server.open_requests = -1
        assert await opened() is None, "it has drifted"
        server.open_requests = 0
        server.config["instance_id"] = "77aa0"
        assert await opened() is None


async def test_a_load_of_one_of_several_front_ends_is_not_believed() -> None:
    settings = config()
    settings["parallel_config"]["_api_process_count"] = 4
    async with driven(tracks_load=True, config=settings) as (server, adapter):
        server.open_requests, server.paused = 1, "abort"
        await adapter.observe(EVERYTHING, deadline_s=5)
        server.open_requests = 0
        assert (await adapter.observe(EVERYTHING, deadline_s=5)).running is None


# silence, and what is wrong with its ranks


async def test_a_front_end_that_listens_no_more_and_lives_is_named() -> None:
    """So a real one stays that carried out a call when its engine process was killed (test_death_on_vllm.py)."""
    async with driven() as (server, adapter):
        await server.stop_listening()
        seen = await adapter.observe(EVERYTHING, deadline_s=5)
        assert seen.alive is None
        family = (
            rf"pids? {os.getpid()}(, \d+)* ha(s|ve) not ended, and holds? (its|their) memory until then: end (it|them)"
        )
        assert re.search(family, seen.detail)


async def test_what_there_was_no_time_to_ask_says_nothing_of_who_listens() -> None:
    async with driven() as (_, adapter):
        assert not await adapter.barrier(deadline_s=0)
        seen = await adapter.observe(EVERYTHING, deadline_s=0)
        assert (seen.alive, seen.detail) == (None, "it did not answer: no time was left to send it")
        await adapter.aclose()


async def test_a_front_end_without_its_engine_is_silent() -> None:
    async with driven() as (server, adapter):
        server.script("GET /is_paused", DIED)
        seen = await adapter.observe(EVERYTHING, deadline_s=5)
        assert (seen.boot, seen.alive) == (None, None)
        assert "its engine process has ended" in seen.detail
        server.scripted.clear()
        server.script("GET /health", (503, b""))
        assert (await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)).boot is None
        server.script("GET /is_paused", error(500, "odd"))
        assert (await adapter.observe(frozenset({Fact.ADMISSION, Fact.BOOT}), deadline_s=5)).boot is None


async def test_a_server_that_stopped_answering_is_not_taken_for_gone() -> None:
    async with driven() as (server, adapter):
        server._server.close()
        await server.__aexit__()
        seen = await adapter.observe(EVERYTHING, deadline_s=5)
        assert (seen.boot, seen.alive) == (None, None), "its process lives: it is that of this test"
        assert await adapter.barrier(deadline_s=5), "no call can take effect where nothing listens"


async def test_a_barrier_is_an_answer_of_the_engine_process() -> None:
    async with driven() as (server, adapter):
        assert await adapter.barrier(deadline_s=5)
        server.script("GET /is_paused", error(500, "Server shutting down"))
        assert not await adapter.barrier(deadline_s=5)


# a token


async def test_a_token_is_one() -> None:
    async with driven() as (server, adapter):
        verdict = await adapter.answers(Probe(tokens=3), deadline_s=5)
        assert isinstance(verdict, Proved)
        assert verdict.grade is Grade.MEASURED
        assert verdict.figures["output_ids"] == (7, 7, 7)
        (request,) = [each for each in server.seen if each.path == "/v1/completions"]
        assert request.body["model"] == "tiny"
        assert request.body["temperature"] == 0


async def test_a_503_of_a_paused_engine_is_known_for_what_it_is() -> None:
    async with driven("0.33.0") as (server, adapter):
        server.paused = "abort"
        verdict = await adapter.answers(Probe(), deadline_s=5)
        assert isinstance(verdict, Pending)
        assert "it says that it is paused" in verdict.reason
        server.script("POST /v1/completions", error(503, "queue full", "Service Unavailable"))
        assert "takes no more requests" in (await adapter.answers(Probe(), deadline_s=5)).reason


ODD = [
    error(500, "EngineCore encountered an issue"),
    (200, {"choices": []}),
    (200, {"choices": [{"finish_reason": "abort"}], "usage": {"completion_tokens": 1}}),
    (200, {"choices": [{"finish_reason": "length"}], "usage": {"completion_tokens": 0}}),
    (200, b""),
]


@pytest.mark.parametrize("answer", ODD, ids=str)
async def test_what_is_no_token(answer) -> None:
    async with driven() as (server, adapter):
        server.script("POST /v1/completions", answer)
        assert isinstance(await adapter.answers(Probe(), deadline_s=5), Refuted)


async def test_a_request_that_queues_behind_kept_ones_needs_no_token_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr("lifecycle.adapters.vllm.adapter.QUEUED_S", 0.1)
    async with driven() as (server, adapter):
        server.generates.clear()
        verdict = await adapter.answers(Probe(), deadline_s=5)
        assert isinstance(verdict, Proved)
        assert "a new one queues" in verdict.reason


# answers of any kind

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts, max_size=3),
    max_leaves=8,
)
NAMES = ("vllm_config", "instance_id", "model_config", "status", "tags", "level", "is_paused", "choices", "usage")
NAMES += ("data", "engines", "checksums", "weight_version", "server_load", "success", "results", "version")
OBJECTS = st.dictionaries(st.sampled_from(NAMES), JSON | st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3))
CALLS = [Call(name, {"tags": ["weights"], "level": "1"}) for name in ("pause", "sleep", "wake_up", "collective_rpc")]


@given(st.integers(100, 599), st.binary() | JSON | OBJECTS)
def test_no_answer_raises(status: int, value: object) -> None:
    import json

    answer = Answer(status, value if isinstance(value, bytes) else json.dumps(value).encode())
    answers.config_of(answer)
    answers.why_not(answer, answer)
    answers.paused(answer)
    answers.server_load(answer)
    answers.weights_label(answer)
    answers.model_name(answer)
    answers.checksum_of(answer)
    answers.tokens_generated(answer)
    answers.faults(answer)
    answers.generated(answer)
    for each in VERSIONS:
        for call in CALLS:
            answers.refusal(call, answer, each.effects)


async def test_facts_of_an_engine_that_serves_are_those_of_the_tests() -> None:
    assert facts().admission == "open"
