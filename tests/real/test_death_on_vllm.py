"""A real vLLM whose engine process is killed: its front end lives for some seconds more, and is no engine."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from vllm_lane import VLLMLane, ask, fleet, streams

from lifecycle import State, Unreachable


async def test_its_engine_process_is_killed_while_streams_run(vllm_lane: VLLMLane) -> None:
    server = vllm_lane.serve("plain")
    running = await asyncio.to_thread(streams, server, 1500)
    async with fleet(server) as engines:
        engine = engines["e"]
        await engine.pause("keep")
        os.kill(server.engine_pid, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(Unreachable) as silent:
            await engine.drain(deadline_s=5)
        assert time.monotonic() - started < 6
        print(f"found {silent.value.settled} after {time.monotonic() - started:.1f} s: {silent.value}")
        assert silent.value.settled in (State.GONE, State.FAILED)
        end = time.monotonic() + 30
        while server.alive:
            assert time.monotonic() < end, "the front end has not ended"
            await asyncio.sleep(0.1)
        assert (await engine.recover()).state is State.GONE
        assert engine.memory_is_free
    for each in running:
        await asyncio.to_thread(each.join)
        assert each.reason is None, "none of its tokens was its last"
        assert each.error is not None
        assert each.error["code"] == 500
    with pytest.raises(OSError, match="refused"):
        ask(server, "/health")
