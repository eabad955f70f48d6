"""A real vLLM whose engine process is killed: its front end lives on, for seconds or for ever, and is no engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time

import psutil
import pytest
from vllm_lane import VLLMLane, ask, fleet, streams
from vllm_real import RealVLLM

from lifecycle import State, Unreachable


async def test_its_engine_process_is_killed_while_streams_run(vllm_lane: VLLMLane) -> None:
    server = vllm_lane.serve("plain")
    async with fleet(server) as engines:
        running = await asyncio.to_thread(streams, server, 1500)
        engine = engines["e"]
        await engine.pause("keep")
        below = psutil.Process(server.pid).children(recursive=True)
        os.kill(server.engine_pid, signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(Unreachable) as silent:
            await engine.drain(deadline_s=5)
        assert time.monotonic() - started < 6
        print(f"found {silent.value.settled} after {time.monotonic() - started:.1f} s: {silent.value}")
        assert silent.value.settled is State.FAILED
        assert not engine.memory_is_free
        for each in running:
            await asyncio.to_thread(each.join)
            assert each.reason is None, "none of its tokens was its last"
            assert each.error is not None
            assert each.error["code"] == 500
        await until_it_listens_no_more(server)
        if server.alive:  # it carried out a call when its engine process died, which is never answered
            found = await engine.recover()
            assert found.state is State.FAILED
            assert re.search(r"pids? .* not ended, and holds? .* memory until then: end (it|them)", found.reason)
        for process in [psutil.Process(server.pid), *below] if server.alive else below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(below, timeout=10)
        assert (await engine.recover()).state is State.GONE
        assert engine.memory_is_free


async def until_it_listens_no_more(server: RealVLLM) -> None:
    """Its port is refused: after some 5 s."""
    async with asyncio.timeout(30):
        while True:
            try:
                await asyncio.to_thread(ask, server, "/health")
            except OSError as error:
                if "refused" in str(error):
                    return
            await asyncio.sleep(0.2)
