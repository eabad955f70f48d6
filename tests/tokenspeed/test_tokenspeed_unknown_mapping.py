"""A tokenspeed of which nobody knows what is released: no pause is sent to it, since that thaws its scheduler."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import Fleet, Policy, State

MIB = 72
POLICY = Policy(residual_threshold_gib=0.15, settle_s=1.0, poll_s=0.02, pause_mode="wait")


@pytest.fixture
def released() -> Iterator[LoopbackProcess]:
    """An engine that somebody else has paused, and released the memory of."""
    with LoopbackProcess.start(weights_mib=MIB, kv_mib=MIB, dialect="tokenspeed") as process:
        post(process, "/pause_generation", {"mode": "wait"})
        post(process, "/release_memory_occupation", {"tags": ["weights", "kv_cache"]})
        yield process


def post(process: LoopbackProcess, path: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(process.url + path, json.dumps(body).encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    urllib.request.urlopen(request, timeout=20).close()


def is_frozen(process: LoopbackProcess) -> bool:
    """Whether its scheduler refuses to go on, as a release has left it."""
    try:
        post(process, "/continue_generation", {})
    except urllib.error.HTTPError as refused:
        return "Failed to continue generation" in refused.read().decode()
    return False


@pytest.mark.slow  # it starts an engine
async def test_recover_sends_no_pause_over_memory_that_may_be_gone(released: LoopbackProcess) -> None:
    url = f"tokenspeed://127.0.0.1:{released.port}?name=e"
    async with Fleet.connect([url], policy=POLICY) as fleet:
        engine = fleet["e"]
        assert engine.state is State.FAILED
        found = await engine.recover(deadline_s=10)
        assert found.state is State.FAILED
        assert re.search("it was not closed: whether kv_cache, weights is released is not known", found.reason)
        assert "sizes=" in found.reason, "what to do"
    assert is_frozen(released), "nothing has thawed it"
