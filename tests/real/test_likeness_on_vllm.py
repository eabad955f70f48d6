"""Real vLLM and the loopback engine's dialect were asked the same; `vllm_likeness.py` lists where they differ."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from make_model import tiny_checkpoint
from played import ANSWERS, agree, to_loopback
from record import Recorder
from vllm_lane import KEY, VLLMLane
from vllm_likeness import verdict
from vllm_record import everything, kill, unauthorized

#: The two that answer are started alike, so that requests are in flight on both when the questions ask for it.
LIKE_THE_REAL_ONE: dict[str, Any] = {
    "dialect": "vllm:0.32",
    "cpu_like": True,
    "weights_mib": 64,
    "kv_mib": 64,
    "api_key": KEY,
    "arguments": ["--enable-server-load-tracking", "--max-running-requests", "16", "--step-delay-s", "0.005"],
}


def play(url: str, folder: Path, checkpoints: tuple[Path, Path]) -> None:
    """Everything was asked of the server, and at last what ends it."""
    shutil.rmtree(folder, ignore_errors=True)
    unauthorized(Recorder(url, folder))
    recorder = Recorder(url, folder, headers={"Authorization": f"Bearer {KEY}"})
    everything(recorder, *map(str, checkpoints))
    kill(recorder)


@pytest.fixture(scope="module")
def asked_real(vllm_lane: VLLMLane) -> Path:
    """What the real one answered."""
    play(vllm_lane.serve("keyed").url, ANSWERS / "vllm", (tiny_checkpoint(1), tiny_checkpoint(0)))
    return ANSWERS / "vllm"


@pytest.fixture(scope="module")
def asked_loopback(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What loopback answered."""
    return to_loopback(play, "loopback-vllm", tmp_path_factory.mktemp("checkpoints"), LIKE_THE_REAL_ONE)


def test_loopback_answers_as_vllm_does(
    asked_loopback: Path, asked_real: Path, record_property: pytest.RecordProperty
) -> None:
    agree(verdict(asked_real, asked_loopback), record_property)
