"""`lifecycle cycle --parity`: the same prompts get the same tokens after the cycles as before them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights

from lifecycle.cli.parity import PROMPTS, Parity
from lifecycle.core.verdicts import Grade, NotApplicable, Proved, Refuted
from lifecycle.testing import ScriptedAdapter, capabilities, scripted

SMALL = ("--threshold-gib", "0.25")


def test_the_same_weights_give_the_same_tokens(lifecycle, address: str, engine: LoopbackProcess) -> None:
    weights = ("--weights", str(engine.weights), "--version", "again")
    told = lifecycle("cycle", address, *weights, *SMALL, "--times", "2", "--parity")
    assert told.returncode == 0, told.stderr
    assert told.stdout.count(f"{address}: returned ") == 2
    assert f"parity ok: {len(PROMPTS)} prompts, {len(PROMPTS)} different outputs" in told.stdout


def test_other_weights_are_told_apart(lifecycle, address: str, engine: LoopbackProcess, tmp_path: Path) -> None:
    other = make_weights(tmp_path / "other.safetensors", seed=7, weights_mib=96)
    broken = lifecycle("cycle", address, "--weights", str(other), "--version", "v7", *SMALL, "--parity", "--json")
    assert broken.returncode == 1
    told = json.loads(broken.stdout)
    assert not told["ok"]
    assert len(told["done"]) == 1
    (parity,) = told["parity"].values()
    assert parity.startswith("broken on ")
    assert "before" in parity


async def compared(*answers: object) -> Parity:
    """What came of one engine that answers so: each prompt before, each prompt after."""
    engine = scripted(ScriptedAdapter("e", capabilities()))
    await engine.connect()
    engine.adapter.script("answers", *answers)
    parity = Parity()
    await parity.record_baseline([engine])
    await parity.compare([engine])
    return parity


def ids(*tokens: int) -> Proved:
    return Proved(grade=Grade.MEASURED, figures={"output_ids": tokens})


BEFORE = [ids(1), ids(2), ids(3), ids(3)]


@pytest.mark.parametrize(
    ("answers", "found", "broken"),
    [
        ([*BEFORE, *BEFORE], "ok: 4 prompts, 3 different outputs", False),
        ([*BEFORE, *BEFORE[:3], ids(4)], "broken on 1 of 4 prompts; '2 + 2 =': [3] before, [4] now", True),
        ([*BEFORE, Refuted(reason="no token")], "unknown: 'The capital of France is' was not answered", True),
        ([Proved(grade=Grade.MEASURED), *BEFORE, *BEFORE], "ok: 4 prompts", False),  # it queued, and was asked again
        ([NotApplicable(reason="prefill")] * 2, "not applicable", False),
    ],
)
async def test_what_is_found(answers: list[object], found: str, broken: bool) -> None:
    parity = await compared(*answers)
    assert parity.found["e"].startswith(found)
    assert parity.broken == (["e"] if broken else [])


async def test_an_engine_that_does_not_serve_is_not_asked() -> None:
    engine = scripted(ScriptedAdapter("e", capabilities()))
    await engine.connect()
    await engine.pause()
    parity = Parity()
    await parity.record_baseline([engine])
    await engine.resume()
    await parity.compare([engine])
    assert parity.found == {"e": "unknown: it was paused, not serving"}
