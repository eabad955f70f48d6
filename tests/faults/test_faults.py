"""The kill matrix."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from points import DRIVES, Drive, Trace, cases, spread, traced
from recoveries import Matrix
from three_engines import SIZES, Sizes, ThreeEngines

from lifecycle import Fleet, Policy

pytestmark = pytest.mark.slow

SOURCES = ("FromDisk", "Kept", "Pushed")

@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_x(sizes: Sizes, kind: str, tmp_path: Path, monkeypatch, report: Callable[[str], None]) -> None:
    import time
    policy = Policy(residual_threshold_gib=sizes.threshold_gib, settle_s=0.5, poll_s=0.02)
    with ThreeEngines(sizes, tmp_path, backup=kind == "Kept", pushes=kind == "Pushed") as engines:
        monkeypatch.setenv("LIFECYCLE_STATE_DIR", str(tmp_path / "trace"))
        traces = {}
        serving = "a"
        for drive in DRIVES:
            async def go():
                async with Fleet.connect(engines.urls, policy=policy) as fleet:
                    return await traced(fleet, engines.source(kind, "a"), drive)
            t = time.time()
            traces[drive] = asyncio.run(go())
            print(drive, time.time() - t, len(traces[drive].effects), traces[drive].seconds)
        for e in traces["moves"].effects: print(e.engine, e)
        every = cases(traces, SIZES.index(sizes))
        print(len(every))
        matrix = Matrix(engines, kind, policy)
        bad = 0
        for number, case in enumerate(spread(every, int(os.environ.get("N", "4")), seed=int(os.environ.get("SEED", "1")), part=SIZES.index(sizes) * 3 + SOURCES.index(kind))):
            folder = tmp_path / f"{number}"
            monkeypatch.setenv("LIFECYCLE_STATE_DIR", str(folder))
            t = time.time()
            try:
                print(matrix.tried(case, traces[case.drive], folder / "engines.sqlite3"))
            except Exception as error:
                bad += 1
                print("BAD", case, repr(error)[:1500])
                for i, p in enumerate(engines.processes):
                    engines.start_again(i)
                matrix._serving = "a"
            print(round(time.time() - t, 2))
        assert not bad
