"""Actors that die, hang or raise in the middle of a ring: what is known then, and where the engine is left."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from lifecycle.adapters.ray import SLIME, Method, Methods, RayActors
from ray_actors import TAGS_MIB, SlimeEngine, calls, until

from lifecycle import (
    DeadlineExceeded,
    Engine,
    Fact,
    Fleet,
    FleetError,
    FromDisk,
    Policy,
    Rejected,
    State,
    Unreachable,
)
from lifecycle.core.calls import Call

pytestmark = pytest.mark.slow

POLICY = Policy(residual_threshold_gib=0.2, settle_s=2.0, poll_s=0.02)
RELEASE = "release_memory_occupation"


async def drained(actor: Any) -> tuple[Engine, FromDisk]:
    """A drained engine in this actor, and the weights that it was started with."""
    told = await actor.about.remote()
    adapter = RayActors(actor, SLIME, options={"abort": "retract"})
    engine = await Engine(adapter, name="e", policy=POLICY, lease=None).connect()
    await engine.pause()
    await engine.drain()
    return engine, FromDisk(told["weights"], "v1")


async def test_an_actor_that_dies_in_its_release(ray: Any, actor_of: Callable[..., Any], tmp_path: Path) -> None:
    """It may have released, and its server ended with it: no answer, and the engine is gone."""
    actor = actor_of(SlimeEngine, str(tmp_path))
    engine, weights = await drained(actor)
    await actor.set_fault.remote(RELEASE, "dies")
    with pytest.raises(Unreachable, match=r"got no answer: ActorDiedError: .*pid") as failed:
        await engine.release(weights=weights)
    assert failed.value.settled is State.GONE
    reply = await engine.adapter.send(Call(RELEASE), deadline_s=10)
    assert (reply.outcome, reply.refused) == ("lost", True), "what is dead is not called again"
    assert "was dead before; create it again" in reply.detail
    await engine.aclose()


async def test_one_of_three_is_killed_in_a_move(ray: Any, actor_of: Callable[..., Any], tmp_path: Path) -> None:
    """The others serve again, and the error names it."""
    actors = [actor_of(SlimeEngine, str(tmp_path), number) for number in range(3)]
    told = [await each.about.remote() for each in actors]
    engines = [
        Engine(RayActors(each, SLIME, options={"abort": "retract"}), name=f"e{number}", policy=POLICY, lease=None)
        for number, each in enumerate(actors)
    ]
    async with Fleet(engines, policy=POLICY) as fleet:
        await actors[1].set_fault.remote(RELEASE, "dies")
        with pytest.raises(FleetError) as failed:
            await fleet.offload(weights=FromDisk(told[0]["weights"], "v1"))
        assert [each.engine for each in failed.value.exceptions] == ["e1"]
        assert [each.state for each in fleet] == [State.SERVING, State.GONE, State.SERVING]


async def test_a_release_that_hangs(ray: Any, actor_of: Callable[..., Any], tmp_path: Path) -> None:
    """It is left at the deadline; its server is observed meanwhile, and nothing else is called before it has ended."""
    actor = actor_of(SlimeEngine, str(tmp_path))
    engine, weights = await drained(actor)
    await actor.set_fault.remote(RELEASE, "hangs")
    begun, ticks = time.monotonic(), []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.02)

    ticking = asyncio.ensure_future(tick())
    with pytest.raises(DeadlineExceeded) as failed:
        await engine.release(weights=weights, deadline_s=3.0)
    ticking.cancel()
    assert time.monotonic() - begun < 3.5
    assert max(later - each for each, later in itertools.pairwise(ticks)) < 0.5, "the loop was free"
    assert failed.value.settled is State.FAILED, "the release may still come"
    seen = await engine.adapter.observe(frozenset({Fact.BOOT, Fact.ADMISSION, Fact.CLOSED}), deadline_s=5)
    assert (seen.alive, seen.admission) == (True, "closed")
    held = await engine.adapter.send(Call("continue_generation"), deadline_s=0.2)
    assert (held.outcome, held.refused) == ("lost", True)
    assert "release_memory_occupation(), called before, still runs" in held.detail
    assert not await engine.adapter.barrier(deadline_s=0.2)
    (tmp_path / "go").touch()
    recovery = await engine.recover(deadline_s=20)
    assert recovery.state is State.RELEASED, "it was carried out after all, and measured"
    assert [each["call"] for each in calls(tmp_path / "calls")].count(RELEASE) == 1
    assert not calls(tmp_path / "calls", "continue_generation")
    await engine.aclose()


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("raises", Rejected, "RuntimeError: out of patience"),
        ("refuses", Rejected, "HTTPError: 400 Client Error"),
        ("times out", Unreachable, "ReadTimeout: read timed out"),
    ],
)
async def test_a_release_that_raises(
    ray: Any, actor_of: Callable[..., Any], tmp_path: Path, kind: str, error: type[Exception], said: str
) -> None:
    """A refusal by the actor or its server is one; a request without an answer may have been carried out."""
    actor = actor_of(SlimeEngine, str(tmp_path))
    engine, weights = await drained(actor)
    await actor.set_fault.remote(RELEASE, kind)
    with pytest.raises(error, match=said) as failed:
        await engine.release(weights=weights)
    assert failed.value.settled is State.DRAINED, "its bytes are all there"
    await actor.set_fault.remote("", "")
    await engine.release(weights=weights)
    assert engine.memory_is_free
    await engine.aclose()


async def test_a_server_that_outlives_its_actor_is_not_gone(
    ray: Any, actor_of: Callable[..., Any], tmp_path: Path
) -> None:
    with LoopbackProcess.start(weights_mib=TAGS_MIB, kv_mib=TAGS_MIB) as server:
        actor = actor_of(SlimeEngine, str(tmp_path), starts=False)
        adapter = RayActors(actor, SLIME, url=server.url)
        engine = await Engine(adapter, name="e", policy=POLICY, lease=None).connect()
        assert engine.state is State.SERVING
        pid = (await actor.about.remote())["pid"]
        ray.kill(actor)
        await until(lambda: not os.path.exists(f"/proc/{pid}"))
        await adapter.send(Call("pause_generation"), deadline_s=5)
        with pytest.raises(Unreachable, match="it was not called: the actor of rank 0 was dead before"):
            await engine.pause()
        assert engine.state is State.SERVING, "as its server says"
        assert (await engine.adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)).alive is True
        await engine.aclose()


class Retried:
    """Ends its process in the middle of a method, which Ray would call again on the next one."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def ready(self) -> int:
        return os.getpid()

    def release(self) -> None:
        with self.file.open("a") as calls:
            calls.write("called\n")
        os._exit(1)

    def other(self, tags: Any = None) -> None: ...


PLAIN = Methods(
    pause={"abort": Method(name="other", repeatable=True)},
    resume="other",
    release=Method(name="release", effects={"weights": "discarded"}),
    restore=Method(name="other", effects={"weights": "resident"}),
)


async def test_ray_does_not_call_a_release_again(ray: Any, actor_of: Callable[..., Any], tmp_path: Path) -> None:
    """Its actor may be restarted, and its methods retried, as its author has asked for."""
    file, options = tmp_path / "calls", {"max_restarts": 1, "max_task_retries": 3}
    actor = actor_of(Retried, str(file), options=options)
    before = await actor.ready.remote()
    reply = await RayActors(actor, PLAIN).send(Call("release"), deadline_s=30)
    assert reply.outcome == "lost"
    assert not reply.refused
    assert await actor.ready.remote() != before, "Ray has started it again"
    assert file.read_text() == "called\n"


class Rank:
    """A rank that answers, raises, or says nothing."""

    def __init__(self, answer: Any = None, dies: bool = False) -> None:
        self.answer, self.dies = answer, dies

    def release(self) -> Any:
        if self.dies:
            os._exit(1)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def other(self, tags: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("answers", "outcome", "said"),
    [
        ([True, None], "done", ""),
        ([{"success": False, "message": "no saver"}, None], "rejected", "rank 0: no saver"),
        ([ValueError("no such tag"), ValueError("no such tag")], "rejected", "ValueError: no such tag"),
        ([True, ValueError("no such tag")], "lost", "rank 1: ValueError: no such tag"),
        ([True, ConnectionError("reset")], "lost", "rank 1: ConnectionError: reset"),
        ([ConnectionError("reset"), ConnectionError("reset")], "lost", "rank 1: ConnectionError: reset"),
        ([True, "dies"], "lost", "rank 1: ActorDiedError"),
    ],
    ids=str,
)
async def test_every_rank_is_called_where_that_is_asked_for(
    ray: Any, actor_of: Callable[..., Any], answers: list[Any], outcome: str, said: str
) -> None:
    ranks = [actor_of(Rank, answer=each, dies=each == "dies") for each in answers]
    reply = await RayActors(ranks, PLAIN, every_rank=True).send(Call("release"), deadline_s=30)
    assert reply.outcome == outcome
    assert said in reply.detail
    if outcome == "done":
        assert reply.value == answers, "one answer a rank, in order"
    alone = await RayActors(ranks, PLAIN).send(Call("release"), deadline_s=30)
    assert alone.value == (None if isinstance(answers[0], Exception) else answers[0])


async def test_without_a_server_the_actor_itself_is_what_is_known(ray: Any, actor_of: Callable[..., Any]) -> None:
    actor = actor_of(Rank)
    adapter = RayActors(actor, PLAIN)
    await adapter.connect(deadline_s=10)
    seen = await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)
    processes = await adapter.processes()
    assert seen.alive is True
    assert processes is not None
    assert f":{processes[0].pid}:" in (seen.boot or "")
    ray.kill(actor)
    await until(lambda: not os.path.exists(f"/proc/{processes[0].pid}"))
    assert (await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)).alive is False
