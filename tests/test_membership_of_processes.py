"""Members of a fleet that are real processes: started late, killed, started again at the same address."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import ConfigurationError, Fleet, FromDisk, Policy, State
from lifecycle.store import Store
from lifecycle.sync import Fleet as BlockingFleet

pytestmark = pytest.mark.slow

POLICY = Policy(residual_threshold_gib=0.15, settle_s=1.0)


def started(port: int = 0) -> LoopbackProcess:
    return LoopbackProcess.start(weights_mib=96, kv_mib=96, port=port)


@pytest.fixture
def first() -> Iterator[LoopbackProcess]:
    """An engine of the fleet."""
    with started() as process:
        yield process


def url(process: LoopbackProcess, name: str) -> str:
    return f"loopback://127.0.0.1:{process.port}?name={name}"


def killed(process: LoopbackProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


async def test_an_engine_that_was_killed_is_replaced_by_one_at_its_address(
    first: LoopbackProcess, tmp_path: Path
) -> None:
    source = FromDisk(str(first.weights), "step-1")
    with started() as second:
        urls = [url(first, "a"), url(second, "b")]
        async with Fleet.connect(urls, policy=POLICY, store=Store(tmp_path / "s.sqlite3")) as fleet:
            async with fleet.offloaded(weights=source):
                pass
            killed(second)
            with started(second.port) as again:
                engine = await fleet.replace("b", f"loopback://localhost:{again.port}", deadline_s=60.0)
                assert engine is fleet["b"]
                assert (engine.state, engine.weights_version) == (State.SERVING, "step-1")
                with pytest.raises(ConfigurationError, match=r"is a of this fleet already: they share the address"):
                    await fleet.adopt(f"sglang://localhost:{first.port}?name=other", deadline_s=10.0)
                async with fleet.offloaded() as window:
                    assert [each.memory_is_free for each in window.engines] == [True, True]
                await fleet.retire("b", deadline_s=10.0)
                assert [each.name for each in fleet] == ["a"]


def test_engines_join_and_leave_a_blocking_fleet(first: LoopbackProcess) -> None:
    source = FromDisk(str(first.weights), "step-1")
    with BlockingFleet.connect([url(first, "a")], policy=POLICY) as fleet, started() as second:
        with fleet.offloaded(weights=source):
            pass
        engine = fleet.adopt(url(second, "b"), deadline_s=60.0)
        assert engine.verify() is State.SERVING
        assert engine.weights_version == "step-1"
        with started() as third:
            assert fleet.replace("b", url(third, "c"), deadline_s=60.0).name == "c"
            assert [each.name for each in fleet] == ["a", "c"]
            fleet.retire("c", deadline_s=10.0)
        assert len(fleet) == 1
