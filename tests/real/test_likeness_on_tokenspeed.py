"""tokenspeed's real control plane and the loopback engine's dialect were asked the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from build_env import CACHE
from lifecycle.adapters.loopback import LoopbackProcess
from likeness import ALLOWED
from record import Recorder
from tokenspeed_lane import KEY, RealControlPlane
from tokenspeed_likeness import verdict
from tokenspeed_record import everything, without_key

ANSWERS = CACHE / "answers"


def play(url: str, folder: Path) -> Path:
    """Everything was asked of the server."""
    shutil.rmtree(folder, ignore_errors=True)
    without_key(Recorder(url, folder))
    everything(Recorder(url, folder, headers={"Authorization": f"Bearer {KEY}"}))
    return folder


@pytest.fixture(scope="module")
def asked_real() -> Path:
    """What the real one answered."""
    with RealControlPlane() as plane:
        return play(plane.url, ANSWERS / "tokenspeed")


@pytest.fixture(scope="module")
def asked_loopback() -> Path:
    """What loopback answered."""
    arguments = ["--admin-api-key", KEY, "--step-delay-s", "0.005"]
    with LoopbackProcess.start(weights_mib=16, kv_mib=16, dialect="tokenspeed:0.1.1", arguments=arguments) as process:
        return play(process.url, ANSWERS / "loopback-tokenspeed")


def test_loopback_answers_as_tokenspeed_does(
    asked_loopback: Path, asked_real: Path, record_property: pytest.RecordProperty
) -> None:
    lines, alike = verdict(asked_real, asked_loopback)
    print("\n".join(lines))
    record_property("likeness", lines[-1])
    assert alike, "\n".join(lines)
    assert int(lines[-1].split()[4]) >= 40
    assert int(lines[-1].split("(")[1].split()[0]) <= ALLOWED


@pytest.mark.parametrize("said", ["message", "mode", "success"])
def test_what_they_say_is_the_same_too(asked_loopback: Path, asked_real: Path, said: str) -> None:
    """Likeness compares shapes. The adapter goes by the words of refusals."""
    differing = {}
    for file in sorted(asked_real.glob("*.json")):
        real, ours = (json.loads((folder / file.name).read_text()) for folder in (asked_real, asked_loopback))
        if file.name == "index.json" or not isinstance(real["body"], dict):
            continue
        words = [answer["body"].get(said) for answer in (real, ours)]
        if words[0] != words[1] and file.stem not in ("mooncake_no_store",):  # neither has a store
            differing[file.stem] = words
    assert differing == {}


def ends(folder: Path, name: str) -> set[str]:
    """How the requests ended that were in flight during this."""
    files = folder.glob(f"{name}_busy_*.json")
    return {json.loads(file.read_text())["body"]["meta_info"]["finish_reason"]["type"] for file in files}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wait", "length"),
        ("abort", "abort"),
        ("release", "length"),
        ("abort_all", "abort"),
        ("pause_cut_off", "length"),
        ("release_cut_off", "length"),
    ],
)
def test_what_became_of_those_in_flight(asked_loopback: Path, asked_real: Path, name: str, reason: str) -> None:
    assert (ends(asked_real, name), ends(asked_loopback, name)) == ({reason}, {reason})
