"""Real vLLM and the loopback engine's dialect were asked the same; `vllm_likeness.py` lists where they differ."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from build_env import CACHE
from lifecycle.adapters.loopback import LoopbackProcess, make_weights
from likeness import ALLOWED
from make_model import tiny_checkpoint
from record import Recorder
from vllm_lane import KEY, VLLMLane
from vllm_likeness import verdict
from vllm_record import everything, kill, unauthorized

ANSWERS = CACHE / "answers"

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
    folder = tmp_path_factory.mktemp("checkpoints")
    first, second = (make_weights(folder / f"{seed}.safetensors", seed=seed, weights_mib=64) for seed in (1, 0))
    with LoopbackProcess.start(weights=first, **LIKE_THE_REAL_ONE) as process:
        play(process.url, ANSWERS / "loopback-vllm", (first, second))
    return ANSWERS / "loopback-vllm"


def test_loopback_answers_as_vllm_does(
    asked_loopback: Path, asked_real: Path, record_property: pytest.RecordProperty
) -> None:
    lines, alike = verdict(asked_real, asked_loopback)
    print("\n".join(lines))
    record_property("likeness", lines[-1])
    assert alike, "\n".join(lines)
    assert int(lines[-1].split()[4]) >= 40
    assert int(lines[-1].split("(")[1].split()[0]) <= ALLOWED
