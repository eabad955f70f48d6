"""A driver killed at every point of a cycle: the engine comes home by recover() and onload(), nothing overridden."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from crash import POINTS, Point, brought_home, killed_at
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import FromDisk, Policy

pytestmark = pytest.mark.slow

SIZES = {"equal": {"weights_mib": 288, "kv_mib": 288}, "distinct": {"weights_mib": 288, "kv_mib": 352}}
THRESHOLDS_GIB = {"above": 3.0, "below": 0.25}

#: The points that are tried of every combination, and those of one; where LIFECYCLE_TEST_LONG is set, all are of all.
FEW = (Point("release", "between", 1), Point("release", "after", 2))
MORE = (*FEW, Point("pause", "after"), Point("drain", "prove"), Point("resume", "after"))


@pytest.fixture(scope="module", params=SIZES)
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[str, LoopbackProcess]]:
    with LoopbackProcess.start(**SIZES[request.param]) as started:
        yield request.param, started


@pytest.mark.parametrize("threshold", THRESHOLDS_GIB)
def test_a_driver_that_is_killed_leaves_an_engine_that_comes_home(
    engine: tuple[str, LoopbackProcess], threshold: str, report: Callable[[str], None]
) -> None:
    sizes, process = engine
    url, source = process.url.replace("http", "loopback"), FromDisk(str(process.weights), "v1")
    policy = Policy(residual_threshold_gib=THRESHOLDS_GIB[threshold], poll_s=0.01)
    ways: Counter[str] = Counter()
    some = MORE if (sizes, threshold) == ("equal", "above") else FEW
    for point in POINTS if "LIFECYCLE_TEST_LONG" in os.environ else some:
        killed_at(point, url, source, policy)
        path = asyncio.run(brought_home(url, source, policy))
        print(f"{point}: {', '.join(path)}")
        assert path[-1] == "serving", f"{point}: {path}"
        assert process.returncode is None, f"{point}: {path}"
        ways["recover() and onload()" if any(step.startswith("recovered") for step in path) else "onload()"] += 1
    killed = f"driver killed, tags of {sizes} size, threshold {threshold} them"
    report(f"{killed}, points of death: {sum(ways.values())}")
    for way, number in sorted(ways.items()):
        report(f"{killed}, home by {way}, nothing overridden: {number}")
