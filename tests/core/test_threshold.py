"""The residual threshold: one that nothing can exceed is warned of, and one that is exceeded says how to set it."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from rig import V1, new_engine, serve_again

from lifecycle import Fleet, NotProved, Proved, Refuted
from lifecycle.core.readings import Reading
from lifecycle.core.units import GIB
from lifecycle.rules.threshold import RESIDUAL_THRESHOLD, can_be_exceeded
from lifecycle.testing import QUICK

HOW_TO_SET_IT = r"Policy\(residual_threshold_gib=...\), on the command line --threshold-gib"


@pytest.mark.parametrize(("held_gib", "kind"), [(2.0, Refuted), (3.0, Refuted), (3.5, Proved)])
def test_a_threshold_not_below_all_that_is_held_cannot_be_exceeded(held_gib: float, kind: type) -> None:
    reading = Reading({"gpu-0": round(held_gib * GIB), "gpu-1": GIB}, (), "a test")
    assert isinstance(can_be_exceeded(reading, QUICK), kind)


async def test_the_window_of_such_an_engine_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = new_engine(policy=replace(QUICK, residual_threshold_gib=1000.0))
    async with Fleet([engine], policy=engine.policy) as fleet:
        for _ in range(2):
            async with fleet.offloaded(weights=V1):
                verdict = engine.conditions[RESIDUAL_THRESHOLD].verdict
                assert isinstance(verdict, Refuted)
                assert "the residual threshold of 1024000 MiB is not below the" in verdict.reason
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "so that nothing it keeps would ever exceed it; set it by Policy(" in warning.getMessage()


async def test_the_window_of_another_does_not(caplog: pytest.LogCaptureFixture) -> None:
    engine = await new_engine().connect()
    await engine.pause()
    await engine.drain()
    await engine.release(weights=V1)
    assert isinstance(engine.conditions[RESIDUAL_THRESHOLD].verdict, Proved)
    assert not caplog.records
    await serve_again(engine)


async def test_an_engine_that_keeps_too_much_says_which_threshold_and_how_it_is_set() -> None:
    engine = await new_engine(policy=replace(QUICK, residual_threshold_gib=0.1)).connect()
    await engine.pause()
    await engine.drain()
    with pytest.raises(NotProved, match=rf"resident exceeds 102 MiB allowed.* threshold 102 MiB.*{HOW_TO_SET_IT}"):
        await engine.release(weights=V1, deadline_s=0.2)
