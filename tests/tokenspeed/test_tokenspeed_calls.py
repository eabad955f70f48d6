"""What becomes of calls to a tokenspeed server: done, refused by name, lost; and one pause at a time."""

from __future__ import annotations

import asyncio

import pytest
from lifecycle.adapters.tokenspeed import TokenspeedAdapter
from lifecycle.adapters.tokenspeed.plan import RELEASE, RESTORE
from tokenspeed_driving import RELEASED, closed, driven, facts
from tokenspeed_server import (
    BROKEN_OFF,
    CONTROL_OFF,
    CUT_OFF,
    IN_PROGRESS,
    NO_CONTINUE,
    PAUSE_FAILED,
    REBALANCING,
    UNAUTHORIZED,
    RecordedServer,
    Shape,
)

from lifecycle import Call, Fact, Reply
from lifecycle.core.commands import Command, Pause, Release, RestoreKV, Resume
from lifecycle.core.facts import Facts
from lifecycle.core.verdicts import REQUESTS_RUN, Pending, Proved
from lifecycle.nodes.address import parse

PATHS = {"release": f"POST /{RELEASE}", "restore": f"POST /{RESTORE}", "pause": "POST /pause_generation"}


async def sent(adapter: TokenspeedAdapter, command: Command, known: Facts, deadline_s: float = 5.0) -> Reply:
    """The reply to the first call of a command."""
    return await adapter.send(adapter.plan(command, known)[0], deadline_s=deadline_s)


async def test_a_call_is_one_request_with_its_arguments_as_the_body() -> None:
    async with driven() as (server, adapter):
        assert (await sent(adapter, Release(), closed())).outcome == "done"
        assert [(str(each), each.body) for each in server.seen] == [
            (PATHS["release"], {"tags": ["weights", "kv_cache"]})
        ]


async def test_a_release_of_what_is_released_is_done() -> None:
    async with driven(released={"weights", "kv_cache"}) as (_, adapter):
        reply = await sent(adapter, Release(), closed())
        assert (reply.outcome, reply.status) == ("done", 400)


async def test_a_restore_of_what_is_mapped_is_done() -> None:
    async with driven() as (_, adapter):
        reply = await sent(adapter, RestoreKV(), closed(**RELEASED))
        assert (reply.outcome, reply.status) == ("done", 400)


async def test_a_release_that_finds_a_part_released_is_refused() -> None:
    async with driven(released={"weights"}) as (_, adapter):
        reply = await sent(adapter, Release(), closed())
        assert (reply.outcome, reply.detail) == ("rejected", "tags already released: ['weights']")


@pytest.mark.parametrize(
    ("shape", "outcome", "words"),
    [
        (REBALANCING, "rejected", "an expert rebalance is in progress"),
        (IN_PROGRESS, "rejected", "another driver's pause or release"),
        (CONTROL_OFF, "rejected", "weight-sync control plane is unavailable"),
        (UNAUTHORIZED, "rejected", "control_key_env=NAME"),
        ((404, {"detail": "Not Found"}), "rejected", "Not Found"),
        (BROKEN_OFF, "lost", "Internal Server Error"),
        ((502, b"<html>"), "lost", "<html>"),
        ((200, {"success": False, "message": "x"}), "lost", "no answer to"),
        ((200, b"ok"), "lost", "no answer to"),
        (CUT_OFF, "lost", "resumed before release drained"),
    ],
    ids=str,
)
async def test_what_is_no_success_is_a_refusal_or_lost(shape: Shape, outcome: str, words: str) -> None:
    async with driven() as (server, adapter):
        server.script(PATHS["release"], shape)
        reply = await sent(adapter, Release(), closed())
        assert reply.outcome == outcome
        assert words in reply.detail


async def test_a_release_that_somebody_cut_off_left_an_open_engine() -> None:
    async with driven() as (server, adapter):
        await sent(adapter, Pause("wait"), facts())
        assert (await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)).admission is None
        server.script(PATHS["release"], CUT_OFF)
        await sent(adapter, Release(), closed())
        assert (await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)).admission == "open"


async def test_a_pause_that_fails_opens_the_front_end() -> None:
    async with driven() as (server, adapter):
        server.script(PATHS["pause"], PAUSE_FAILED)
        reply = await sent(adapter, Pause("wait"), facts())
        assert (reply.outcome, reply.status) == ("rejected", 500)
        assert (await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)).admission == "open"


async def test_one_that_is_never_sent_says_why() -> None:
    async with driven() as (server, adapter):
        reply = await sent(adapter, Resume(), closed(**RELEASED))
        assert (reply.outcome, server.seen) == ("rejected", [])
        assert "not known to be mapped" in reply.detail


async def test_a_continue_over_a_release_is_refused() -> None:
    async with driven() as (server, adapter):
        server.script("POST /continue_generation", NO_CONTINUE)
        reply = await sent(adapter, Resume(), closed())
        assert (reply.outcome, reply.status) == ("rejected", 500)


# one pause at a time


async def test_a_late_pause_is_asked_for_its_answer_and_not_sent_again() -> None:
    async with driven() as (server, adapter):
        server.idle.clear()
        reply = await sent(adapter, Pause("wait"), facts(), deadline_s=0.2)
        assert (reply.outcome, reply.late, reply.refused) == ("lost", True, False)
        verdict = await adapter.prove_idle(closed(running=None), deadline_s=0.4)
        assert isinstance(verdict, Pending)
        assert not await adapter.barrier(deadline_s=0.2)
        asking = asyncio.create_task(adapter.idle_within(closed(running=None), wait_s=4, deadline_s=5))
        await asyncio.sleep(0)
        server.idle.set()
        assert isinstance(await asking, Proved)
        assert server.sent("/pause_generation") == [PATHS["pause"]]


async def test_a_pause_whose_caller_leaves_stays_under_way() -> None:
    async with driven() as (server, adapter):
        server.idle.clear()
        sending = asyncio.create_task(sent(adapter, Pause("wait"), facts()))
        while not server.sent("/pause_generation"):  # noqa: ASYNC110 - the server is asked by another task
            await asyncio.sleep(0.005)
        sending.cancel()
        await asyncio.wait({sending})
        server.idle.set()
        assert (await sent(adapter, Pause("wait"), facts())).outcome == "done"
        assert len(server.sent("/pause_generation")) == 1


@pytest.mark.parametrize(("cut_off", "outcome"), [(True, "done"), (False, "lost")])
async def test_a_resume_waits_for_the_pause_that_was_under_way(cut_off: bool, outcome: str) -> None:
    """One that was cut off ends in a failure. One that comes to its turn after the resume has closed it again."""
    async with driven() as (server, adapter):
        server.idle.clear()
        await sent(adapter, Pause("wait"), facts(), deadline_s=0.1)
        resuming = asyncio.create_task(sent(adapter, Resume(), closed()))
        while not server.sent("/continue_generation"):  # noqa: ASYNC110 - the server is asked by another task
            await asyncio.sleep(0.005)
        assert not resuming.done()
        server.pause_fails = cut_off
        server.idle.set()
        assert (await resuming).outcome == outcome


# idle, and the barrier


async def test_an_engine_that_is_not_known_to_be_closed_is_not_asked() -> None:
    async with driven() as (server, adapter):
        assert isinstance(await adapter.prove_idle(facts(), deadline_s=2), Pending)
        assert server.seen == []


async def test_requests_that_run_where_none_did_are_said_to() -> None:
    async with driven(requests=2) as (server, adapter):
        server.idle.clear()
        verdict = await adapter.prove_idle(closed(), deadline_s=0.4)
        assert isinstance(verdict, Pending)
        assert verdict.figures[REQUESTS_RUN]


@pytest.mark.parametrize(("requests", "kind"), [(0, Proved), (1, Pending)])
async def test_while_memory_is_released_no_pause_is_sent(requests: int, kind: type) -> None:
    async with driven(requests=requests) as (server, adapter):
        assert isinstance(await adapter.prove_idle(closed(**RELEASED), deadline_s=2), kind)
        assert server.sent() == []


async def test_the_barrier_asks_what_is_always_refused() -> None:
    async with driven() as (server, adapter):
        assert await adapter.barrier(deadline_s=5)
        assert [str(each) for each in server.seen] == [PATHS["release"], PATHS["restore"]] * 2
        assert all(each.body == {"tags": ["lifecycle-asks"]} for each in server.seen)
        assert server.released == set()


async def test_it_has_not_returned_where_that_is_not_refused_so() -> None:
    async with driven() as (server, adapter):
        server.script(PATHS["restore"], BROKEN_OFF)
        assert not await adapter.barrier(deadline_s=5)


async def test_an_engine_without_a_saver_refuses_too() -> None:
    async with driven() as (server, adapter):
        server.arguments["enable_memory_saver"] = False
        assert await adapter.barrier(deadline_s=5)


@pytest.mark.parametrize(("requests", "over"), [(1, False), (0, True)])
async def test_a_push_that_was_lost_may_wait_for_requests(requests: int, over: bool) -> None:
    async with driven() as (server, adapter):
        await sent(adapter, Pause("wait"), facts())
        server.script("POST /update_weights_from_mooncake", BROKEN_OFF)
        await adapter.send(adapter.push_call("mooncake", {"version": 1}, "v1"), deadline_s=5)
        server.requests = requests
        assert await adapter.barrier(deadline_s=5) is over


async def test_nothing_that_listens_runs_nothing() -> None:
    async with RecordedServer() as server:
        url = server.url
    gone = TokenspeedAdapter(parse(url))
    assert await gone.barrier(deadline_s=2)
    assert (await gone.send(Call("continue_generation"), deadline_s=2)).refused
    await gone.aclose()
