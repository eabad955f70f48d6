"""What became of requests: what two counts say together, when they are made, and what is said where they are not."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Any

import journals
import pytest
from rig import V1, new_engine, serving

from lifecycle import Engine, Fleet, FleetError, GuardRefused, OperationFailed, State, Transition
from lifecycle.core.encoding import decode, encode
from lifecycle.core.journal import StateEntered
from lifecycle.core.json_text import JsonWriter
from lifecycle.core.ports import CountsRequests
from lifecycle.core.requests import NOT_KNOWN, RequestCounts, RequestFates
from lifecycle.rules.fates import fates_between, impossible, later
from lifecycle.rules.violations import violations
from lifecycle.testing import DIE, HANG, LOST_AFTER, QUICK, REJECTED, Journal, ScriptedAdapter, ScriptedRouter, scripted
from lifecycle.testing.journal import Entry


def counts(ended: int | None = None, finished: int | None = None, **more: Any) -> RequestCounts:
    return RequestCounts("engine", more.pop("boot", "b1"), ended, finished, **more)


def by_router(open_now: int | None) -> RequestCounts:
    return RequestCounts("router", "router", open=open_now)


# what two counts say


@pytest.mark.parametrize(
    ("before", "now", "fates"),
    [
        (counts(7, 5, aborted=2, refused=1, open=4), counts(11, 6, aborted=5, refused=3, open=2), (4, 1, 3, 2, 2)),
        (counts(7, 5, aborted=2), counts(7, 5, aborted=2), (0, 0, 0, None, None)),
        (counts(7, 5), counts(11, 5), (4, 0, 4, None, None)),  # nothing that ended did so by itself
        (counts(7, 5), counts(11, 7), (4, 2, None, None, None)),  # the others may have failed
        (counts(7), counts(11), (4, None, None, None, None)),
        (counts(7), counts(7), (0, 0, 0, None, None)),
        (counts(7, 5, doubtful=(3,)), counts(11, 5, doubtful=(3,)), (4, 0, 4, None, None)),
        (counts(7, 5, doubtful=(3,)), counts(11, 5, doubtful=(4,)), (4, None, None, None, None)),
        (counts(7, 5, doubtful=(3, 9)), counts(11, 5, doubtful=(7, 9)), (4, 0, 4, None, None)),
        (counts(7, 5, doubtful=(3, 9)), counts(11, 5, doubtful=(7,)), (4, None, None, None, None)),
        (counts(7, 5, doubtful=(3,)), counts(11, 5, doubtful=(2,)), (4, None, None, None, None)),
        (counts(2, 2), counts(3, 5), (1, None, None, None, None)),  # prompts, and calls of several of them
        (counts(2, 2, aborted=0, open=1), counts(1, 4, aborted=1, open=3), (None, 2, 1, 3, None)),
    ],
)
def test_two_counts_of_one_boot_make_the_fates(before: Any, now: Any, fates: tuple[int | None, ...]) -> None:
    made = fates_between(before, now)
    assert made == RequestFates(*fates, source="engine")
    assert impossible(made) is None


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (None, counts(1)),
        (counts(1), None),
        (counts(1, boot="b1"), counts(5, boot="b2")),  # another process has counted more by now
        (counts(1, boot=None), counts(5, boot=None)),
        (counts(5), counts(1)),
        (by_router(4), counts(5, boot="router")),
        (by_router(2), by_router(4)),  # it sent more meanwhile
        (by_router(None), by_router(4)),
        (by_router(4), by_router(None)),
        (by_router(4), by_router(-1)),  # no router has fewer than none
        (by_router(-1), by_router(-1)),
    ],
)
def test_two_counts_that_do_not_belong_together_say_nothing(before: Any, now: Any) -> None:
    assert fates_between(before, now) == NOT_KNOWN
    assert str(NOT_KNOWN) == "unknown"
    assert not NOT_KNOWN.are_known


def test_a_router_tells_what_ended_and_not_how() -> None:
    made = fates_between(by_router(5), by_router(2))
    assert made == RequestFates(ended=3, kept=2, source="router")
    assert str(made) == "3 ended, unknown finished, unknown aborted, 2 kept, unknown refused (by the router)"
    assert fates_between(by_router(5), by_router(5)) == RequestFates(0, 0, 0, 5, source="router")


@pytest.mark.parametrize(
    ("fates", "why"),
    [
        (RequestFates(ended=-1, source="engine"), "-1 requests are said to be ended"),
        (RequestFates(ended=2, finished=2, aborted=1, source="engine"), "2 finished and 1 were aborted, of 2"),
        (RequestFates(source="engine"), "nothing is known, and counted by engine"),
        (RequestFates(kept=1), "they are known, and counted by nobody"),
    ],
)
def test_fates_that_nothing_can_have_counted(fates: RequestFates, why: str) -> None:
    assert why in str(impossible(fates))


def test_later_fates_take_nothing_back_that_ended() -> None:
    first = RequestFates(4, 1, 3, 2, 0, "engine")
    assert later(first, RequestFates(5, 1, 4, 0, 0, "engine")) is None
    assert later(first, NOT_KNOWN) is None
    assert later(first, RequestFates(4, 1, 2, 2, 0, "engine")) == "aborted fell from 3 to 2"


def test_fates_are_json_both_ways_and_an_earlier_entry_has_none() -> None:
    edge = StateEntered("succeeded", State.DRAINING, State.DRAINED, requests=RequestFates(4, 1, 3, 2, 0, "engine"))
    assert decode(StateEntered, encode(edge)) == edge
    assert json.loads(JsonWriter().text(edge)) == encode(edge)
    earlier = {name: value for name, value in encode(edge).items() if name != "requests"}
    assert decode(StateEntered, earlier).requests is None


# when it is counted


class Counting(ScriptedAdapter):
    """An engine that counts its requests: each answer is one of `counted`, the last one for ever, or its failure."""

    counted: deque[Any]

    async def request_counts(self, *, deadline_s: float) -> RequestCounts | None:
        self.journal.append(Entry(self.name, "call", "counts"))
        answer = self.counted.popleft() if len(self.counted) > 1 else self.counted[0]
        if answer is HANG:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]


FOUR = (counts(0, 0, aborted=0, refused=0, open=4), counts(4, 1, aborted=3, refused=0, open=0))
LAST = counts(4, 1, aborted=3, refused=2, open=1)


async def counting(*answers: Any, **how: Any) -> Engine:
    adapter = Counting("e", **how)
    adapter.counted = deque(answers)
    return await scripted(adapter, policy=QUICK).connect()


async def test_it_is_counted_before_the_pause_once_drained_and_before_the_resume() -> None:
    engine = await counting(*FOUR, LAST)
    assert (await engine.pause()).requests is None
    drained = await engine.drain()
    assert drained.requests == RequestFates(4, 1, 3, 0, 0, "engine")
    resumed = await engine.resume()
    assert resumed.requests == RequestFates(4, 1, 3, 1, 2, "engine")
    asked = [entry.name or entry.kind for entry in engine.adapter.journal if entry.kind in ("call", "idle")]
    assert asked == ["counts", "pause", "idle", "counts", "counts", "resume"]


async def test_the_journal_says_what_became_of_the_requests() -> None:
    with journals.kept() as entries:
        engine = await counting(*FOUR, LAST)
        await engine.pause()
        await engine.drain()
        await engine.resume()
    edges = [entry.event for entry in entries if isinstance(entry.event, StateEntered)]
    said = {edge.dest: edge.requests for edge in edges if edge.requests is not None}
    assert said == {
        State.DRAINED: RequestFates(4, 1, 3, 0, 0, "engine"),
        State.SERVING: RequestFates(4, 1, 3, 1, 2, "engine"),
    }
    assert list(violations(entries)) == []


async def test_an_engine_that_does_not_count_is_unknown_and_asked_nothing() -> None:
    engine = await serving("e")
    assert not isinstance(engine.adapter, CountsRequests)
    await engine.pause()
    assert (await engine.drain()).requests == NOT_KNOWN
    assert (await engine.resume()).requests == NOT_KNOWN


@pytest.mark.parametrize("bad", [None, OSError("no answer"), HANG, counts(4, boot="b2"), counts(-1)], ids=str)
@pytest.mark.parametrize("at", [0, 1, 2])
async def test_a_count_that_is_missing_fails_no_command(at: int, bad: Any) -> None:
    answers = [*FOUR, LAST]
    answers[at] = bad
    engine = await counting(*answers)
    await engine.pause(deadline_s=1.0)
    drained = await engine.drain(deadline_s=1.0)
    resumed = await engine.resume(deadline_s=1.0)
    assert engine.state is State.SERVING
    told = {1: (drained,), 2: (resumed,)}.get(at, (drained, resumed))
    unknown = [edge.requests is not None and edge.requests.ended is None for edge in told]
    assert unknown == [True] * len(told)
    if at:
        assert (resumed if at == 1 else drained).requests.are_known


async def test_what_was_counted_of_one_pause_says_nothing_of_the_next() -> None:
    engine = await counting(*FOUR, LAST, counts(9, 6, aborted=3), counts(10, 6, aborted=4))
    for _ in range(2):
        await engine.pause()
        drained = await engine.drain()
        resumed = await engine.resume()
    assert drained.requests == RequestFates(1, 0, 1, source="engine")
    assert resumed.requests == RequestFates(1, 0, 1, source="engine")


async def test_a_second_pause_keeps_what_was_counted_before_the_first() -> None:
    engine = await counting(*FOUR)
    await engine.pause("keep")
    await engine.pause("abort")
    assert (await engine.drain()).requests == RequestFates(4, 1, 3, 0, 0, "engine")


async def test_a_count_that_is_lower_than_the_last_one_says_nothing() -> None:
    """The counter began anew, and has passed what it was before the pause."""
    engine = await counting(*FOUR, counts(3, 1, aborted=2, refused=0, open=0))
    await engine.pause()
    assert (await engine.drain()).requests.are_known
    assert (await engine.resume()).requests == NOT_KNOWN


async def test_a_driver_that_came_later_knows_nothing() -> None:
    first = await counting(*FOUR, LAST)
    await first.pause()
    second = await scripted(first.adapter, policy=QUICK).connect()
    assert second.state is State.DRAINED
    await second.update_weights(V1)
    assert (await second.resume()).requests == NOT_KNOWN


# where it fails


async def edges_of(engine: Engine) -> list[Transition]:
    seen: list[Transition] = []
    engine._session.observers = type(engine._session.observers)([Hears(seen)])
    return seen


class Hears:
    def __init__(self, seen: list[Transition]) -> None:
        self._seen = seen

    def transition(self, record: Transition) -> None:
        self._seen.append(record)


def told(seen: list[Transition]) -> list[tuple[State, RequestFates]]:
    return [(edge.dest, edge.requests) for edge in seen if edge.requests is not None]


async def test_after_a_release_that_failed_the_resume_still_tells() -> None:
    engine = await counting(*FOUR, LAST)
    await engine.pause()
    await engine.drain()
    engine.adapter.script("release", REJECTED)
    with pytest.raises(OperationFailed, match="release"):
        await engine.release(weights=V1)
    assert engine.state is State.DRAINED
    await engine.update_weights(V1)
    assert (await engine.resume()).requests == RequestFates(4, 1, 3, 1, 2, "engine")


async def test_a_drain_that_is_cancelled_leaves_it_to_the_resume() -> None:
    engine = await counting(FOUR[0], LAST)
    await engine.pause()
    engine.adapter.always("prove_idle", HANG)
    drain = asyncio.ensure_future(engine.drain())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while engine.state is not State.DRAINING:  # noqa: ASYNC110 - a command of its own enters it
            await asyncio.sleep(0)
    drain.cancel()
    await asyncio.wait({drain})
    engine.adapter.as_modelled()
    assert (await engine.resume()).requests == RequestFates(4, 1, 3, 1, 2, "engine")


async def test_of_an_engine_that_has_ended_it_is_unknown() -> None:
    engine = await counting(*FOUR)
    seen = await edges_of(engine)
    await engine.pause()
    engine.adapter.script("prove_idle", DIE)
    with pytest.raises(OperationFailed):
        await engine.drain(deadline_s=1.0)
    if engine.state is not State.GONE:
        await engine.recover()
    assert engine.state is State.GONE
    assert told(seen) == [(State.GONE, NOT_KNOWN)]


async def test_an_engine_that_others_opened_says_nothing() -> None:
    engine = await counting(*FOUR, LAST)
    seen = await edges_of(engine)
    await engine.pause()
    engine._session.go("contradicted", reason="somebody opened it")
    await engine.recover()
    while engine.state is not State.SERVING:
        await (engine.resume() if engine.state is not State.PAUSED else engine.drain())
    assert {fates for _, fates in told(seen)} == {NOT_KNOWN}


async def test_a_resume_that_failed_says_nothing_the_next_time() -> None:
    """It was open meanwhile, and what ended then came later."""
    engine = await counting(*FOUR, LAST, counts(40, 37, aborted=3))
    await engine.pause()
    await engine.drain()
    engine.adapter.script("resume", LOST_AFTER)
    with pytest.raises(OperationFailed, match="resume"):
        await engine.resume(deadline_s=1.0)
    await engine.recover()
    if engine.state is not State.SERVING:
        assert (await engine.resume()).requests == NOT_KNOWN


# by a router


class CountingRouter(ScriptedRouter):
    """A router that counts what it has sent and what has not ended."""

    def __init__(self, journal: Journal, *in_flight: Any) -> None:
        super().__init__(journal)
        self.counts = deque(in_flight)

    async def in_flight(self, engine: str) -> int | None:
        count = self.counts.popleft()
        if isinstance(count, Exception):
            raise count
        return count  # type: ignore[no-any-return]


async def routed(*in_flight: Any) -> tuple[Fleet, CountingRouter]:
    journal = Journal()
    router = CountingRouter(journal, *in_flight)
    fleet = Fleet([new_engine("a", journal=journal, has_router=True)], policy=QUICK, router=router)
    await fleet.__aenter__()
    return fleet, router


async def test_where_the_engine_does_not_tell_its_router_does() -> None:
    fleet, router = await routed(5, 2, 1)
    seen = await edges_of(fleet.engines[0])
    await fleet.offload(weights=V1)
    await fleet.onload()
    assert not router.counts
    assert told(seen) == [
        (State.DRAINED, RequestFates(ended=3, kept=2, source="router")),
        (State.SERVING, RequestFates(ended=4, kept=1, source="router")),
    ]


async def test_a_router_that_is_open_again_is_not_asked() -> None:
    """It sends more requests then: what it counts as open says nothing of those that were."""
    fleet, router = await routed(5, 2, 1, 9, 9)
    await fleet.offload(weights=V1)
    await fleet.onload()
    with pytest.raises(GuardRefused, match="derouted"):
        await fleet.engines[0].pause()
    assert list(router.counts) == [9, 9]


@pytest.mark.parametrize("nothing", [None, RuntimeError("it is down")])
async def test_a_router_that_does_not_tell_is_asked_once_and_fails_nothing(nothing: Any) -> None:
    fleet, router = await routed(nothing)
    seen = await edges_of(fleet.engines[0])
    await fleet.offload(weights=V1)
    await fleet.onload()
    assert not router.counts
    assert told(seen) == [(State.DRAINED, NOT_KNOWN), (State.SERVING, NOT_KNOWN)]


@pytest.mark.parametrize(
    ("told_then", "drained", "resumed"),
    [
        ((-1, 4, 3), NOT_KNOWN, NOT_KNOWN),
        ((-1, -1, -1), NOT_KNOWN, NOT_KNOWN),
        ((5, -1, 2), NOT_KNOWN, RequestFates(ended=3, kept=2, source="router")),
        ((5, 2, -1), RequestFates(ended=3, kept=2, source="router"), NOT_KNOWN),
    ],
)
async def test_a_router_that_tells_of_fewer_than_none_tells_nothing(
    told_then: tuple[int, ...], drained: RequestFates, resumed: RequestFates
) -> None:
    fleet, router = await routed(*told_then)
    seen = await edges_of(fleet.engines[0])
    await fleet.offload(weights=V1)
    await fleet.onload()
    assert not router.counts
    assert told(seen) == [(State.DRAINED, drained), (State.SERVING, resumed)]


async def test_a_move_that_fails_tells_once_its_engines_serve_again() -> None:
    fleet, _ = await routed(5, 2, 0)
    seen = await edges_of(fleet.engines[0])
    fleet.engines[0].adapter.script("release", REJECTED)
    with pytest.raises(FleetError):
        await fleet.offload(weights=V1)
    assert told(seen)[-1] == (State.SERVING, RequestFates(ended=5, kept=0, source="router"))
