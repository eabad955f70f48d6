"""What a real driver answered (`make gpu GPU_REPORT=FOLDER`), fed to the probe: files of `recorded/`, if any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stand_in_nvml import RECORDED, StandInNvml

from lifecycle import Unmeasurable
from lifecycle.core.readings import Reading
from lifecycle.nodes.driver import NvmlDriver
from lifecycle.nodes.nvml import ProcFs, measure


def recordings(folder: Path = RECORDED) -> list[Any]:
    """Every recorded stage: the pids that held memory then, and the driver's answers."""
    return [
        pytest.param(stage.get("holders") or [stage["holder"]], stage["answers"], id=f"{path.stem}-{name}")
        for path in sorted(folder.glob("*.json"))
        for name, stage in json.loads(path.read_text()).items()
    ]


@pytest.mark.parametrize(("holders", "answers"), recordings())
def test_a_recorded_driver_is_measured_as_it_was(holders: list[int], answers: dict[str, Any]) -> None:
    snapshot = NvmlDriver(StandInNvml(answers)).snapshot()
    proc_fs = ProcFs(lambda pid: (pid,), lambda pid: True, lambda pid: "recorded")
    listed = {use.pid: use.used_bytes for usages in snapshot.usages.values() for use in usages}
    reading = measure(snapshot, frozenset(holders), proc_fs)
    assert isinstance(reading, Reading)
    assert reading.resident_bytes == sum(listed[pid] or 0 for pid in holders)
    assert reading.whole[snapshot.devices[0].uuid] >= reading.resident_bytes
    assert isinstance(measure(snapshot, frozenset({-1}), proc_fs), Unmeasurable)
