"""A pause by abort of two calls: what clients get, and where it is found whichever of the two did not come about."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engines import generating, post, url
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import Fleet, GuardRefused, Policy, Rejected, State, Unreachable
from lifecycle.store.sqlite import Store
from lifecycle.testing.conformance.in_flight import until_running

SLOW = ("--step-delay-s", "0.02", "--allow-faults")
#: Its own abort would ask again only after this long.
NEVER = ("--abort-poll-s", "60")


async def flight(process: LoopbackProcess, engine: Any, tokens: int = 300) -> asyncio.Task[list[int]]:
    """A request that runs."""
    task = asyncio.create_task(generating(process, "a long story about", tokens))
    await until_running(engine, 1)
    return task


async def test_it_does_not_wait_for_the_poll_of_the_engine(start: Any, policy: Policy) -> None:
    process = start(arguments=(*SLOW, *NEVER))
    async with Fleet.connect([url(process, name="e", abort="retract")], policy=policy) as fleet:
        engine = fleet["e"]
        request = await flight(process, engine)
        await engine.pause("abort")
        await engine.drain()
        assert (engine.state, engine.facts.paused_by) == (State.DRAINED, "abort")
        assert len(await asyncio.wait_for(request, 5)) in range(0, 300, 50)  # what was reported of a call (ADR 33)
        await engine.resume()


@pytest.mark.slow
async def test_an_abort_that_is_refused_leaves_its_requests_kept(start: Any, policy: Policy) -> None:
    process = start(arguments=SLOW, faults=["abort=error:503"])
    async with Fleet.connect([url(process, name="e", abort="retract")], policy=policy) as fleet:
        engine = fleet["e"]
        request = await flight(process, engine, 60)
        with pytest.raises(Rejected, match="abort_request"):
            await engine.pause("abort")
        assert (engine.state, engine.facts.paused_by) == (State.PAUSED, "keep")
        assert not request.done()
        await engine.resume()
        assert len(await asyncio.wait_for(request, 20)) == 60


@pytest.mark.slow
async def test_a_lost_answer_to_the_abort_leaves_open_what_it_was_paused_by(start: Any, policy: Policy) -> None:
    process = start(arguments=SLOW, faults=["abort=lost"])
    async with Fleet.connect([url(process, name="e", abort="retract")], policy=policy) as fleet:
        engine = fleet["e"]
        request = await flight(process, engine)
        with pytest.raises(Unreachable, match="abort_request"):
            await engine.pause("abort")
        assert (engine.state, engine.facts.paused_by) == (State.PAUSED, None)
        assert len(await asyncio.wait_for(request, 5)) < 300, "the call had its effect"
        post(process, "/_fault", {"abort": None})
        await engine.pause("abort")
        await engine.drain()
        assert (engine.state, engine.facts.paused_by) == (State.DRAINED, "abort")
        await engine.resume()


async def test_a_request_that_comes_between_the_two_is_held_and_runs_whole(start: Any, policy: Policy) -> None:
    process = start(arguments=SLOW)
    async with Fleet.connect([url(process, name="e", abort="retract")], policy=policy) as fleet:
        engine = fleet["e"]
        request, came, send = await flight(process, engine), list[asyncio.Task[list[int]]](), engine.adapter.send

        async def with_a_request_before(call: Any, *, deadline_s: float) -> Any:
            if call.name == "abort_request":
                came.append(asyncio.create_task(generating(process, "between", 5)))
                await asyncio.wait(came, timeout=0.3)
            return await send(call, deadline_s=deadline_s)

        engine.adapter.send = with_a_request_before  # type: ignore[method-assign]
        await engine.pause("abort")
        await engine.drain()
        assert len(await asyncio.wait_for(request, 5)) < 300
        assert not came[0].done()
        await engine.resume()
        assert len(await asyncio.wait_for(came[0], 10)) == 5


async def test_what_a_keep_has_put_back_is_ended_by_an_abort(start: Any, policy: Policy) -> None:
    process = start(arguments=SLOW)
    async with Fleet.connect([url(process, name="e", abort="retract")], policy=policy) as fleet:
        engine = fleet["e"]
        request = await flight(process, engine)
        await engine.pause("keep")
        assert (engine.state, engine.facts.paused_by, request.done()) == (State.PAUSED, "keep", False)
        await engine.pause("abort")
        assert len(await asyncio.wait_for(request, 5)) < 300
        await engine.drain()
        await engine.resume()


async def test_what_is_frozen_is_ended_by_an_abort(start: Any, policy: Policy) -> None:
    """Its own abort would hang then, and every later call with it."""
    process = start(arguments=SLOW)
    async with Fleet.connect([url(process, name="e", abort="retract")], policy=policy) as fleet:
        engine = fleet["e"]
        request = await flight(process, engine)
        await engine.pause("freeze")
        await engine.pause("abort")
        assert len(await asyncio.wait_for(request, 5)) < 300
        await engine.drain()
        await engine.resume()
    async with Fleet.connect([url(process, name="e", abort="own")], policy=policy) as fleet:
        await fleet["e"].pause("freeze")
        with pytest.raises(GuardRefused, match="hangs"):
            await fleet["e"].pause("abort")
        await fleet["e"].resume()


DRIVER = """
import asyncio, os, signal, sys
from pathlib import Path
from lifecycle import Fleet, Policy
from lifecycle.store.sqlite import Store

async def main(url, path):
    async with Fleet.connect([url], policy=Policy(residual_threshold_gib=0.25), store=Store(Path(path))) as fleet:
        send = fleet["e"].adapter.send

        async def last(call, *, deadline_s):
            if call.name == "abort_request":
                os.kill(os.getpid(), signal.SIGKILL)
            return await send(call, deadline_s=deadline_s)

        fleet["e"].adapter.send = last
        await fleet["e"].pause("abort")

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_driver_killed_between_the_two_leaves_an_engine_that_is_paused_and_keeps_its_requests(
    start: Any, policy: Policy, tmp_path: Path
) -> None:
    process = start(arguments=SLOW)
    async with Fleet.connect([url(process, name="other")], policy=policy) as fleet:
        request = await flight(process, fleet["other"])
    address, path = url(process, name="e", abort="retract"), str(tmp_path / "store.sqlite3")
    driver = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", DRIVER, address, path], env=os.environ, timeout=60, check=False
    )
    assert driver.returncode == -signal.SIGKILL
    async with Fleet.connect([address], policy=policy, store=Store(Path(path))) as fleet:
        engine = fleet["e"]
        assert (engine.state, engine.facts.admission) == (State.PAUSED, "closed")
        assert engine.facts.paused_by is None, "what was acknowledged in the middle of a command is not kept"
        assert not request.done()
        await engine.pause("abort")
        assert len(await asyncio.wait_for(request, 5)) < 300
        await engine.drain()
        await engine.resume()
        assert engine.state is State.SERVING
