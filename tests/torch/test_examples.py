"""Runs the examples: a loop that learns, and does not learn without its push; an adapter for a framework's loop."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from torch_rig import built, greedy, seeded

from lifecycle import FleetError, State

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    """The example's module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_reward_rises_with_the_push_and_not_without(capsys: pytest.CaptureFixture[str]) -> None:
    grpo, begun, lines = example("colocated_grpo"), time.monotonic(), []
    for seed in (0, 1, 2):
        with_push = grpo.gain(await grpo.train(20, seed))
        without = grpo.gain(await grpo.train(20, seed, push=False))
        lines.append(f"seed {seed}: the reward rose by {with_push:.3f}, without the push by {without:.3f}")
        assert with_push > grpo.MARGIN > 2 * abs(without)
    with capsys.disabled():
        print("", *lines, f"{time.monotonic() - begun:.0f} s for six runs of 20 steps", sep="\n")


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(("options", "code"), [([], 0), (["--no-push"], 1)])
def test_the_example_runs_from_its_command_line(options: list[str], code: int) -> None:
    command = [sys.executable, EXAMPLES / "colocated_grpo.py", "--steps", "20", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180)
    lines = ended.stdout.splitlines()
    assert len([line for line in lines if "MiB given to the trainer" in line]) == 20, ended.stderr
    assert "the reward rose by" in lines[-1]
    assert ended.returncode == code


@pytest.mark.slow
def test_a_loop_with_trls_verbs() -> None:
    trl = example("trl_like")
    trained = seeded(7)
    with built() as (engine, model):
        colocated = trl.Colocated(engine)
        for _ in range(2):
            colocated.sleep()
            assert engine.memory_is_free
            colocated.wake_up(tags=["weights"])
            with pytest.raises(FleetError, match="weights_valid"):
                colocated.wake_up(tags=["kv_cache"])
            colocated.sync_weights(dict(trained.named_parameters()))
            colocated.wake_up(tags=["kv_cache"])
            assert engine.state is State.SERVING
            assert greedy(model) == greedy(trained)
        colocated.close()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_script_that_measures_a_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "gpu" / "torch_cycles.py"
    sizes = ["--gib=0.1", "--kv-gib=0.1", "--workspace-gib=0.02", "--width=512", "--cycles=2"]
    command = [sys.executable, script, "--device=cpu", f"--out={tmp_path}", *sizes]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=380)
    page = (tmp_path / "torch_cycles.md").read_text() if ended.returncode == 0 else ended.stdout + ended.stderr
    assert "logits identical, eager and by graph: 2 of 2 cycles" in page
    assert [line.split("|")[1].strip() for line in page.splitlines() if line.endswith("| 2 of 2 |")] == [
        "host staging",
        "pinned",
        "mmap",
    ]


@pytest.mark.slow
@pytest.mark.timeout(330)
def test_the_script_that_shows_what_evidence_is_worth_runs_on_a_cpu(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "gpu" / "evidence_cycles.py"
    command = [sys.executable, script, "--device=cpu", "--gib=1.5", "--threshold-gib=0.9", f"--out={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=320)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = json.loads((tmp_path / "evidence_cycles.json").read_text())
    assert {part: found["wrong"] for part, found in figures.items()} == {"sizes": [], "small": [], "look": []}
