"""Calls in this process are joined and never cancelled; the next call waits for one that outlasts its deadline."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from torch_rig import POLICY, built, greedy

from lifecycle import DeadlineExceeded, Fleet, Kept, State
from lifecycle.core.calls import Call


def slowed(engine, method: str, delay_s: float) -> list[str]:
    """A log of when this effect began and ended; it takes this much longer."""
    saver, log = engine.adapter.tenant.tags.backend, []
    original = getattr(saver, method)

    def slow(*args):
        log.append("begun")
        time.sleep(delay_s)
        original(*args)
        log.append("ended")

    setattr(saver, method, slow)
    return log


def until(log: list[str]) -> None:
    """Returns once something stands in the log."""
    end = time.monotonic() + 10
    while not log and time.monotonic() < end:
        time.sleep(0.01)


async def test_a_cancelled_release_is_joined_and_then_found() -> None:
    with built() as (engine, model):
        before = greedy(model)
        async with Fleet([engine]):
            await engine.pause()
            await engine.drain()
            log = slowed(engine, "pause", 0.3)
            release = asyncio.create_task(engine.release(["kv_cache"]))
            await asyncio.to_thread(until, log)
            release.cancel()
            with pytest.raises(asyncio.CancelledError):
                await release
            assert log == ["begun", "ended"], "the caller got it back only after the effect had ended"
            assert engine.state is State.FAILED
            assert (await engine.recover()).state is State.WEIGHTS_RESTORED
            await engine.restore_kv()
            await engine.resume()
        assert greedy(model) == before


async def test_an_effect_that_outlasts_its_deadline_is_joined_by_the_barrier() -> None:
    # 3 s for the work and half a second for the barrier: the effect begins once the guards were asked, and ends between
    with built(policy=replace(POLICY, settle_s=1.0)) as (engine, _):
        async with Fleet([engine]) as fleet:
            await engine.pause()
            await engine.drain()
            log = slowed(engine, "pause", 3.0)
            with pytest.raises(DeadlineExceeded) as late:
                await engine.release(["kv_cache"], deadline_s=4.0)
            assert log == ["begun", "ended"]
            assert late.value.settled is State.WEIGHTS_RESTORED
            assert engine.adapter.tenant.tags.released == {"kv_cache"}
            await fleet.onload()
            assert engine.state is State.SERVING


async def test_a_barrier_is_false_while_an_effect_still_runs() -> None:
    with built() as (engine, _):
        await engine.connect()
        log = slowed(engine, "synchronize", 0.5)
        reply = await engine.adapter.send(Call("synchronize"), deadline_s=0.05)
        assert (reply.outcome, reply.late) == ("lost", True)
        assert not await engine.adapter.barrier(deadline_s=0.05)
        assert await engine.adapter.barrier(deadline_s=5)
        assert log == ["begun", "ended"]


async def test_a_push_that_is_cancelled_is_joined() -> None:
    with built() as (engine, _):
        await engine.connect()
        log = slowed(engine, "synchronize", 0.3)
        sending = asyncio.create_task(engine.adapter.send(Call("synchronize"), deadline_s=5))
        await asyncio.sleep(0.05)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert log == ["begun", "ended"]


async def test_an_exception_in_an_effect_leaves_what_it_touched_unknown() -> None:
    with built() as (engine, _):
        async with Fleet([engine]) as fleet:
            await fleet.offload(weights=Kept())

            def broken() -> None:
                raise OSError("the bus fell off")

            engine.adapter.tenant.stagings["weights"].restore = broken
            with pytest.raises(Exception, match="OSError: the bus fell off"):
                await engine.restore_weights()
            assert engine.facts.contents["weights"] is None
            assert engine.state is State.WEIGHTS_RESTORED
            assert "contents unknown" in (engine.weights_refusal() or "")


async def test_closing_ends_the_thread_and_frees_the_name() -> None:
    for _ in range(2):
        with built("again") as (engine, _):
            async with Fleet([engine]):
                pass
            assert not engine.adapter._thread._thread.is_alive()
