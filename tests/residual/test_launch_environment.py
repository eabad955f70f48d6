"""What frameworks call to start engines: the environment of each process, a strict number, a forced default."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lifecycle import ConfigurationError, apply_offload_defaults, parse_env_positive_float
from lifecycle.cli import env
from lifecycle.launch.environment import launch_environment, preload_library

pytestmark = pytest.mark.usefixtures("bare_environment")

THRESHOLD = "LIFECYCLE_RESIDUAL_THRESHOLD_GIB"
MILES = "MILES_MAX_RESIDUAL_GPU_MEM_GB"


@pytest.mark.parametrize("engine", ["sglang", "torch"])
def test_env_prints_the_variables_of_every_process(monkeypatch: pytest.MonkeyPatch, run: Any, engine: str) -> None:
    monkeypatch.setenv(MILES, "2.5")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64,expandable_segments:True")
    variables = json.loads(run(env, "--engine", engine, "--json")[1])["env_vars"]
    assert variables["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64,expandable_segments:False"
    assert variables["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:False"
    assert variables["NCCL_GRAPH_REGISTER"] == "0"
    assert variables["LIFECYCLE_HOOK_MODE"] == variables["MILES_TMS_HOOK_MODE"]
    assert (variables[THRESHOLD], variables[MILES]) == ("2.5", "2.5")
    code, out = run(env, "--engine", engine)
    assert code == 0
    assert "export NCCL_GRAPH_REGISTER=0" in out


def test_env_of_vllm_and_of_nothing_known(run: Any) -> None:
    code, out = run(env, "--engine", "vllm")
    assert code == 0
    assert "export VLLM_SERVER_DEV_MODE=1" in out
    assert "NCCL_GRAPH_REGISTER" not in out
    with pytest.raises(ConfigurationError, match="one of sglang, vllm, torch"):
        run(env, "--engine", "mlx")


@pytest.fixture
def saver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A site with torch_memory_saver's files in it."""
    (tmp_path / "torch_memory_saver").mkdir()
    (tmp_path / "torch_memory_saver" / "__init__.py").touch()
    for suffix in ("_cu12", "_cu13", ""):
        (tmp_path / f"torch_memory_saver_hook_mode_preload{suffix}.abi3.so").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("cuda", "name"), [("12.9", "_cu12"), ("13.0", "_cu13"), ("14.0", ""), (None, "")])
def test_the_right_library_is_preloaded(saver: Path, cuda: str | None, name: str) -> None:
    library = saver / f"torch_memory_saver_hook_mode_preload{name}.abi3.so"
    assert preload_library(cuda) == library
    before = {"LD_PRELOAD": "/lib/a.so:/old/torch_memory_saver_hook_mode_preload.abi3.so"}
    launch = launch_environment("torch", "preload", cuda, before)
    assert launch.variables["LD_PRELOAD"] == f"{library}:/lib/a.so"


def test_ld_preload_is_set_where_sglang_does_not_start_the_process(saver: Path) -> None:
    assert "LD_PRELOAD" not in launch_environment("sglang", "preload", "12.9", {}).variables
    assert "LD_PRELOAD" in launch_environment("sglang", "preload", "12.9", {}, spawned=True).variables
    assert "LD_PRELOAD" not in launch_environment("torch", "torch", "12.9", {}).variables


# what frameworks call


@pytest.mark.parametrize(("text", "value"), [(None, 3.0), ("2.5", 2.5), (" 1e1 ", 10.0)])
def test_a_number_from_the_environment(text: str | None, value: float) -> None:
    assert parse_env_positive_float("X", 3.0, {} if text is None else {"X": text}) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3GB", "must be a number"),
        ("", "must be a number"),
        ("nan", "must be a finite number"),
        ("inf", "must be a finite number"),
        ("-inf", "must be a finite number"),
        ("0", "must be > 0"),
        ("-1", "must be > 0"),
    ],
)
def test_a_variable_that_is_no_positive_finite_number(monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setenv("X", text)
    with pytest.raises(ConfigurationError, match=said) as refused:
        parse_env_positive_float("X", 3.0)
    assert f"X {said}" in str(refused.value)
    assert repr(text) in str(refused.value)


def offload(environ: dict[str, str], **given: bool) -> tuple[bool, dict[str, bool]]:
    args = SimpleNamespace(**given)
    return apply_offload_defaults(args, environ), vars(args)


def test_offload_is_forced_on_for_a_shared_gpu() -> None:
    assert offload({"RLIX_CONTROL_PLANE": "rlix"}, offload_rollout=False) == (True, {"offload_rollout": True})
    assert offload({"RLIX_CONTROL_PLANE": "rlix"}) == (True, {"offload_rollout": True})


def test_offload_is_left_alone_without_the_variable() -> None:
    assert offload({}, offload_rollout=False) == (False, {"offload_rollout": False})


@pytest.mark.parametrize("value", ["", "RLIX", "other", "1"])
def test_offload_is_left_alone_for_another_value(value: str) -> None:
    assert offload({"RLIX_CONTROL_PLANE": value}) == (False, {})


def test_forcing_offload_twice_changes_nothing() -> None:
    assert offload({"RLIX_CONTROL_PLANE": "rlix"}, offload_rollout=True) == (False, {"offload_rollout": True})


def test_offload_of_the_trainer_is_untouched() -> None:
    assert offload({"RLIX_CONTROL_PLANE": "rlix"}, offload_train=False) == (
        True,
        {"offload_train": False, "offload_rollout": True},
    )
