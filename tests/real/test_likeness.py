"""Real SGLang and loopback were asked the same; where they answer differently, `likeness.py` lists why."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from lane import Lane
from likeness import verdict
from make_model import checkpoint
from played import ANSWERS, agree, to_loopback
from record import Recorder, everything, kill, unauthorized

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
    return to_loopback(play, "loopback", tmp_path_factory.mktemp("checkpoints"), LIKE_THE_REAL_ONE)


def test_loopback_answers_as_sglang_does(
    asked_loopback: Path, asked_real: Path, record_property: pytest.RecordProperty
) -> None:
    agree(verdict(asked_real, asked_loopback), record_property)
