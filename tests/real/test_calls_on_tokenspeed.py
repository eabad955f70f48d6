"""The adapter's calls on tokenspeed's real controllers and scheduler: each fact that the adapter goes by."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterator

import pytest
from lifecycle.adapters.tokenspeed import TokenspeedAdapter
from tokenspeed_lane import KEY, RealControlPlane
from tokenspeed_questions import greedy

from lifecycle import Fact, Facts, Reply
from lifecycle.core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume
from lifecycle.core.facts import Contents, Grade
from lifecycle.core.verdicts import Pending, Proved
from lifecycle.nodes.address import parse


@pytest.fixture
def plane() -> Iterator[RealControlPlane]:
    """A real control plane."""
    with RealControlPlane() as server:
        yield server


def adapter_of(plane: RealControlPlane) -> TokenspeedAdapter:
    """An adapter of this server, whose one application has one key."""
    return TokenspeedAdapter(parse(plane.url.replace("http", "tokenspeed") + f"?control_key={KEY}&api_key={KEY}"))


SERVING = Facts().learn(
    {
        Fact.ADMISSION: "open",
        Fact.MAPPED: {"weights": True, "kv_cache": True},
        Fact.CONTENTS: {"weights": Contents("launched", "default")},
        Fact.CACHE_FRESH: True,
    },
    Grade.REPORTED,
)


async def carried_out(adapter: TokenspeedAdapter, command: Command, known: Facts) -> tuple[list[Reply], Facts]:
    """The replies to the calls of a command, and what is known after them."""
    replies = []
    for call in adapter.plan(command, known):
        replies.append(await adapter.send(call, deadline_s=20))
        known = known.learn(call.effect, Grade.ACKNOWLEDGED, cause=call.name)
    return replies, known


def generate(plane: RealControlPlane, rid: str, tokens: int) -> list[int]:
    """The tokens of one request."""
    body = json.dumps(greedy(rid, "hello", tokens)).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    with urllib.request.urlopen(urllib.request.Request(plane.url + "/generate", body, headers), timeout=60) as answer:
        ids: list[int] = json.loads(answer.read())["output_ids"]
    return ids


async def test_the_ring_with_requests_in_flight(plane: RealControlPlane) -> None:
    adapter = adapter_of(plane)
    await adapter.connect(deadline_s=20)
    running = [asyncio.create_task(asyncio.to_thread(generate, plane, f"r-{number}", 80)) for number in range(4)]
    await asyncio.sleep(0.2)
    known = SERVING
    for command in (Pause("wait"), Drain(), Release(), RestoreWeights(), RestoreKV(), Resume()):
        replies, known = await carried_out(adapter, command, known)
        assert all(reply.outcome == "done" for reply in replies), (command, replies)
        if isinstance(command, Drain):
            assert isinstance(await adapter.prove_idle(known, deadline_s=5), Proved)
            assert all(task.done() for task in running)
        if isinstance(command, Release):
            assert isinstance(await adapter.prove_idle(known, deadline_s=5), Proved)
            late = asyncio.create_task(asyncio.to_thread(generate, plane, "late", 5))
            await asyncio.sleep(0.2)
        assert isinstance(command, Resume) or await adapter.barrier(deadline_s=5)
    assert [len(ids) for ids in await asyncio.gather(*running, late)] == [80] * 4 + [5]
    await adapter.aclose()


async def test_every_call_of_the_ring_twice(plane: RealControlPlane) -> None:
    adapter = adapter_of(plane)
    await adapter.connect(deadline_s=20)
    known = SERVING
    for command in (Pause("wait"), Release(), RestoreWeights(), RestoreKV(), Resume()):
        for call in adapter.plan(command, known):
            for _ in range(2):
                assert (await adapter.send(call, deadline_s=20)).outcome == "done", call
            known = known.learn(call.effect, Grade.ACKNOWLEDGED, cause=call.name)
    assert await asyncio.to_thread(generate, plane, "after", 3)
    await adapter.aclose()


async def test_a_late_pause_and_a_resume(plane: RealControlPlane) -> None:
    """The resume cuts it off, and the engine is open: no second pause comes to its turn."""
    adapter = adapter_of(plane)
    await adapter.connect(deadline_s=20)
    running = asyncio.create_task(asyncio.to_thread(generate, plane, "long", 300))
    await asyncio.sleep(0.2)
    (pause,) = adapter.plan(Pause("wait"), SERVING)
    assert (await adapter.send(pause, deadline_s=0.2)).late
    known = SERVING.learn(pause.effect, Grade.ACKNOWLEDGED, cause=pause.name)
    for _ in range(2):
        assert isinstance(await adapter.idle_within(known, wait_s=0.1, deadline_s=5), Pending)
    (resume,) = adapter.plan(Resume(), known)
    assert (await adapter.send(resume, deadline_s=10)).outcome == "done"
    assert await asyncio.to_thread(generate, plane, "meanwhile", 3)
    assert len(await running) == 300
    await adapter.aclose()


async def test_a_release_that_is_cut_off(plane: RealControlPlane) -> None:
    ours, others = adapter_of(plane), adapter_of(plane)
    await asyncio.gather(ours.connect(deadline_s=20), others.connect(deadline_s=20))
    running = asyncio.create_task(asyncio.to_thread(generate, plane, "long", 200))
    await asyncio.sleep(0.2)
    (release,) = ours.plan(Release(), SERVING.learn({Fact.ADMISSION: "closed"}, Grade.REPORTED))
    releasing = asyncio.create_task(ours.send(release, deadline_s=20))
    await asyncio.sleep(0.2)
    assert (await others.send(others.plan(Resume(), SERVING)[0], deadline_s=10)).outcome == "done"
    reply = await releasing
    assert (reply.outcome, reply.detail) == ("lost", "resumed before release drained")
    assert (await ours.observe(frozenset({Fact.BOOT}), deadline_s=5)).admission == "open"
    await running
    await asyncio.gather(ours.aclose(), others.aclose())
