"""The runtime_env of an actor that starts an engine: the variables that its processes need, beside what it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lifecycle import ConfigurationError
from lifecycle.launch.environment import launch_environment
from lifecycle.launch.runtime_env import EVERY_GPU, runtime_env


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The file of torch_memory_saver that is to be preloaded."""
    (tmp_path / "torch_memory_saver").mkdir()
    (tmp_path / "torch_memory_saver" / "__init__.py").touch()
    file = tmp_path / "torch_memory_saver_hook_mode_preload_cu12.abi3.so"
    file.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    return str(file)


def test_it_has_what_the_engine_needs_and_what_was_there(library: str) -> None:
    base = {"py_executable": "uv run python", "pip": ["x"], "env_vars": {"MY": "1", "LD_PRELOAD": "/lib/a.so"}}
    made = runtime_env("sglang", "preload", "12.9", base=base, threshold_gib=2.5, every_gpu=True)
    needed = launch_environment("sglang", "preload", "12.9", {}, spawned=True).variables
    assert made["py_executable"] == "uv run python"
    assert made["pip"] == ["x"]
    variables = made["env_vars"]
    assert variables["LD_PRELOAD"] == f"{library}:/lib/a.so"
    assert {**variables, "LD_PRELOAD": library} == {
        **needed,
        "MY": "1",
        "LIFECYCLE_RESIDUAL_THRESHOLD_GIB": "2.5",
        "MILES_MAX_RESIDUAL_GPU_MEM_GB": "2.5",
        EVERY_GPU: "1",
    }
    assert base["env_vars"] == {"MY": "1", "LD_PRELOAD": "/lib/a.so"}, "what was given is left as it was"


def test_what_is_preloaded_by_its_job_is_preloaded_still(library: str) -> None:
    made = runtime_env("sglang", "preload", "12.9", environ={"LD_PRELOAD": "/lib/a.so"})
    assert made["env_vars"]["LD_PRELOAD"] == f"{library}:/lib/a.so"
    assert EVERY_GPU not in made["env_vars"]
    assert "LIFECYCLE_RESIDUAL_THRESHOLD_GIB" not in made["env_vars"]


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (
            {"env_vars": {"LIFECYCLE_HOOK_MODE": "torch"}},
            "sets LIFECYCLE_HOOK_MODE='torch', and the hook mode is to be",
        ),
        ({"env_vars": {"MILES_TMS_HOOK_MODE": "torch"}}, "sets MILES_TMS_HOOK_MODE='torch'"),
        ({"env_vars": {"N": 1}}, "'N' must be text, got 1"),
        ({"env_vars": ["N=1"]}, "must be a mapping of names to text"),
    ],
)
def test_a_base_that_does_not_fit(base: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        runtime_env("sglang", "preload", "12.9", base=base)
