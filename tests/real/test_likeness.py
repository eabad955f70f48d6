"""Real SGLang and loopback were asked the same; where they answer differently, `likeness.py` lists why."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from build_env import CACHE
from lane import Lane
from lifecycle.adapters.loopback import LoopbackProcess, make_weights
from likeness import ALLOWED, verdict
from make_model import checkpoint
from record import Recorder, everything, kill, unauthorized

ANSWERS = CACHE / "answers"

#: The two that answer are started alike, so that requests are in flight on both when the questions ask for it.
LIKE_THE_REAL_ONE: dict[str, Any] = {
    "weights_mib": 64,
    "kv_mib": 64,
    "api_key": "user",
    "admin_api_key": "adm",
    "arguments": ["--enable-metrics", "--max-running-requests", "4", "--step-delay-s", "0.02"],
}


def play(url: str, folder: Path, checkpoints: tuple[Path, Path]) -> None:
    """Everything was asked of the server, and at last what kills it."""
    shutil.rmtree(folder, ignore_errors=True)
    recorder = Recorder(url, folder, keys=("user", "adm"))
    unauthorized(recorder)
    recorder.ask("continue_after_keys", "POST", "/continue_generation", {})
    everything(recorder, [str(path) for path in checkpoints])
    kill(recorder, "release_busy")


@pytest.fixture(scope="module")
def asked_real(lane: Lane) -> Path:
    """What the real one answered."""
    server = lane.serve("keyed")
    play(server.url, ANSWERS / "sglang", (checkpoint(1), checkpoint(0)))
    return ANSWERS / "sglang"


@pytest.fixture(scope="module")
def asked_loopback(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What loopback answered."""
    folder = tmp_path_factory.mktemp("checkpoints")
    first, second = (make_weights(folder / f"{seed}.safetensors", seed=seed, weights_mib=64) for seed in (1, 0))
    with LoopbackProcess.start(weights=first, **LIKE_THE_REAL_ONE) as process:
        play(process.url, ANSWERS / "loopback", (first, second))
    return ANSWERS / "loopback"


def test_loopback_answers_as_sglang_does(
    asked_loopback: Path, asked_real: Path, record_property: pytest.RecordProperty
) -> None:
    lines, alike = verdict(asked_real, asked_loopback)
    print("\n".join(lines))
    record_property("likeness", lines[-1])
    assert alike, "\n".join(lines)
    assert int(lines[-1].split()[4]) >= 40
    assert lines[-1].endswith("listed differences)")
    assert int(lines[-1].split("(")[1].split()[0]) <= ALLOWED
