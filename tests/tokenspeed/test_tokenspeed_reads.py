"""What is read of a tokenspeed server, and of answers that are odd."""

from __future__ import annotations

import time
from typing import Any

import pytest
from lifecycle.adapters.http import Answer
from lifecycle.adapters.tokenspeed import adapter as adapter_module
from lifecycle.adapters.tokenspeed.answers import count, generated, refused_tags, requests_of
from tokenspeed_driving import closed, driven, facts
from tokenspeed_server import ENGINE_GONE

from lifecycle import Fact, Pause, Probe
from lifecycle.core.verdicts import Pending, Proved, Refuted

EVERYTHING = frozenset(Fact)


async def test_what_an_observation_tells() -> None:
    async with driven(requests=2, label="v7") as (server, adapter):
        seen = await adapter.observe(EVERYTHING, deadline_s=5)
        assert (seen.alive, seen.running, seen.weights_label, seen.released_tags) == (True, 2, "v7", None)
        assert seen.boot is not None
        assert server.started in seen.boot
        assert server.sent() == []


async def test_a_boot_is_one_read() -> None:
    async with driven() as (server, adapter):
        await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)
        assert [str(each) for each in server.seen] == ["GET /get_server_info"]


async def test_another_start_is_another_boot() -> None:
    async with driven() as (server, adapter):
        before = (await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)).boot
        server.started = "2026-11-30T09:00:07Z"
        assert (await adapter.boot_anew(deadline_s=5)).boot != before


async def test_open_is_believed_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with driven() as (_, adapter):
        assert (await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)).admission == "open"
        later = time.monotonic() + adapter_module.YOUNG_S
        monkeypatch.setattr(adapter_module.time, "monotonic", lambda: later + 0.1)
        assert (await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)).admission is None


async def test_requests_of_a_closed_engine_may_be_held() -> None:
    async with driven(requests=1) as (server, adapter):
        for call in adapter.plan(Pause("wait"), facts()):
            await adapter.send(call, deadline_s=5)
        assert (await adapter.observe(frozenset({Fact.RUNNING}), deadline_s=5)).running is None
        server.requests = 0
        assert (await adapter.observe(frozenset({Fact.RUNNING}), deadline_s=5)).running == 0


async def test_an_engine_that_is_gone_is_silent_and_not_known_to_have_ended() -> None:
    async with driven() as (server, adapter):
        server.script("GET /get_server_info", ENGINE_GONE)
        seen = await adapter.observe(EVERYTHING, deadline_s=5)
        assert (seen.boot, seen.alive) == (None, None)
        assert "whose engine does not answer" in seen.detail


async def test_health_generate_is_not_asked() -> None:
    async with driven() as (server, adapter):
        verdict = await adapter.answers(Probe(tokens=3), deadline_s=5)
        assert isinstance(verdict, Proved)
        assert verdict.figures["output_ids"] == (7, 7, 7)
        assert [str(each) for each in server.seen] == ["POST /generate"]


META = {"completion_tokens": 1, "finish_reason": {"type": "length"}}
ODD: list[Any] = [
    (200, {"text": "a", "output_ids": [1]}),
    (200, {"output_ids": [], "meta_info": {**META, "completion_tokens": 0}}),
    (200, {"output_ids": [1], "meta_info": {**META, "finish_reason": {"type": "abort"}}}),
    (200, {"output_ids": [1], "meta_info": {**META, "completion_tokens": "one"}}),
    (200, []),
    (200, b"<html>"),
    (503, {"error": "no worker"}),
]


@pytest.mark.parametrize("shape", ODD, ids=str)
async def test_what_is_no_token(shape: Any) -> None:
    async with driven() as (server, adapter):
        server.script("POST /generate", shape)
        assert isinstance(await adapter.answers(Probe(), deadline_s=5), Refuted)


def test_a_token_in_a_list_of_one() -> None:
    body = b'[{"output_ids": [4], "meta_info": {"completion_tokens": 1, "finish_reason": null}}]'
    assert isinstance(generated(Answer(200, body)), Proved)


@pytest.mark.parametrize(
    ("info", "loads", "requests"),
    [
        ({}, b'{"loads": [{"num_reqs": 0}]}', 0),
        ({"active_requests": 2}, b'{"loads": [{"num_reqs": 0}]}', 2),
        ({}, b'{"loads": [{"num_reqs": 1}, {"num_reqs": 2}]}', 3),
        ({}, b'{"loads": []}', None),
        ({}, b'{"loads": [{"num_reqs": "1"}]}', None),
        ({"active_requests": "2"}, b'{"loads": [{"num_reqs": 1}]}', None),
        ({}, b"<html>", None),
    ],
)
def test_how_many_requests_it_has(info: dict[str, Any], loads: bytes, requests: int | None) -> None:
    assert requests_of(info, Answer(200, loads)) == requests


def test_tags_that_a_refusal_names() -> None:
    prefix = "tags not released: "
    assert refused_tags("tags not released: ['weights', 'kv_cache']", prefix) == {"weights", "kv_cache"}
    assert refused_tags("invalid tags: ['weights']; valid: []", prefix) == frozenset()


@pytest.mark.parametrize(
    ("value", "number"), [(2.0, 2), (3, 3), (2.5, None), (True, None), (-1, None), ("1", None), (float("nan"), None)]
)
def test_numbers_of_protobuf(value: Any, number: int | None) -> None:
    assert count(value) == number


@pytest.mark.parametrize("mapped", [False, None])
async def test_whether_it_is_idle_is_read_where_memory_may_be_released(mapped: bool | None) -> None:
    async with driven() as (server, adapter):
        known = closed(mapped={"weights": True, "kv_cache": mapped})
        for asked in (adapter.prove_idle(known, deadline_s=5), adapter.idle_within(known, wait_s=1, deadline_s=5)):
            assert isinstance(await asked, Proved)
        assert not server.sent("/pause_generation"), "it would thaw the scheduler"


UNKNOWN = {"mapped": {"weights": None, "kv_cache": None}}


async def test_a_count_from_before_its_scheduler_went_on_is_not_believed() -> None:
    """Its load is what it published last: none, while it takes three requests in, whose clients have left since."""
    async with driven() as (server, adapter):

        def load() -> dict[str, int]:
            told = len(server.sent("/release_memory_occupation"))  # those of a kind are answered one after the other
            return {"dp_rank": 0, "num_reqs": 3 if told >= 2 else 0, "num_waiting_reqs": 0, "num_pages": 0}

        server._load = load  # type: ignore[method-assign]
        verdict = await adapter.prove_idle(closed(**UNKNOWN), deadline_s=5)
        assert isinstance(verdict, Pending)
        assert "memory may be released, and it has 3 requests" in verdict.reason
        assert server.released == set()
        assert not server.sent("/pause_generation", "/continue_generation")


@pytest.mark.parametrize("path", ["/release_memory_occupation", "/resume_memory_occupation"])
async def test_it_is_not_idle_while_a_call_that_moves_memory_may_be_under_way(path: str) -> None:
    """It is answered behind that one: a release that got no answer may wait for requests to end."""
    async with driven() as (server, adapter):
        server.hangs.add(path)
        verdict = await adapter.prove_idle(closed(**UNKNOWN), deadline_s=0.3)
        assert isinstance(verdict, Pending)
        assert "calls that its scheduler always refuses got no answer" in verdict.reason


async def test_one_that_is_known_to_be_released_is_counted_once() -> None:
    """A release drains first, and its scheduler stays frozen."""
    async with driven() as (server, adapter):
        known = closed(mapped={"weights": False, "kv_cache": None})
        assert isinstance(await adapter.prove_idle(known, deadline_s=5), Proved)
        assert server.sent() == []
