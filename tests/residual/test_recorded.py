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
from lifecycle.nodes.nvml import Host, measure


def recordings(folder: Path = RECORDED) -> list[Any]:
    """Every recorded stage: who held memory then, and the driver's answers."""
    return [
        pytest.param(stage.get("holders") or [stage["holder"]], stage["answers"], id=f"{path.stem}-{name}")
        for path in sorted(folder.glob("*.json"))
        for name, stage in json.loads(path.read_text()).items()
    ]


@pytest.mark.parametrize(("holders", "answers"), recordings())
def test_a_recorded_driver_is_measured_as_it_was(holders: list[int], answers: dict[str, Any]) -> None:
    snapshot = NvmlDriver(StandInNvml(answers)).snapshot()
    host = Host(lambda pid: (pid,), lambda pid: True, lambda pid: "recorded")
    listed = {use.pid: use.used_bytes for uses in snapshot.uses.values() for use in uses}
    reading = measure(snapshot, frozenset(holders), host)
    assert isinstance(reading, Reading)
    assert reading.resident_bytes == sum(listed[pid] or 0 for pid in holders)
    assert reading.whole[snapshot.devices[0].uuid] >= reading.resident_bytes
    assert isinstance(measure(snapshot, frozenset({-1}), host), Unmeasurable)
