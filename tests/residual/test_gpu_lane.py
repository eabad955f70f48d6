"""What of `make gpu` needs no GPU: its order and time, what it must find, and the report on real engines."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GPU = Path(__file__).parents[1] / "gpu"
MIB = 1 << 20


def load(name: str) -> Any:
    """A module of tests/gpu, whose folder is on no path here."""
    spec = importlib.util.spec_from_file_location(name, GPU / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lease, report, servers = load("lease"), load("engine_report"), load("engine_servers")


def cycle(mode: str, weights: str) -> dict[str, Any]:
    """A cycle that meets every target: all but 20 MiB of 6 GiB come back, beside a context of 500 MiB."""
    full, empty = 6644 * MIB, 520 * MIB
    return {
        "mode": mode,
        "weights": weights,
        "bytes_at": {**dict.fromkeys(report.STATES, full), "released": empty},
        "command_s": {"pause": 0.1},
        "memory_returned": True,
        "same_answers": True,
        "in_flight": [{"tokens": 80, "reason": "abort" if mode == "abort" else "length"}] * 4,
    }


GOOD: dict[str, Any] = {
    "machine": {"gpu": "a GPU"},
    "asked": {"engine": "vllm"},
    "engine": "vLLM 0.32.0",
    "weights_bytes": 2048 * MIB,
    "kv_bytes": 4096 * MIB,
    "startup_s": 60.0,
    "cycles": [cycle("abort", "from disk"), cycle("keep", "kept")],
}


def changed(*path: Any, to: Any) -> dict[str, Any]:
    figures = copy.deepcopy(GOOD)
    inner: Any = figures
    for each in path[:-1]:
        inner = inner[each]
    inner[path[-1]] = to
    return figures


def test_figures_that_meet_every_target_miss_none() -> None:
    assert report.missed(GOOD) == {"every state": [], "residual": [], "in flight": [], "parity": []}
    page = report.page(GOOD)
    assert "No target is missed." in page
    assert "| released | 520 MiB | 520 MiB |" in page


@pytest.mark.parametrize(
    ("figures", "subject", "says"),
    [
        (changed("error", to="ServerNotReady: x"), "every state", "ServerNotReady"),
        (changed("cycles", to=[cycle("abort", "kept")]), "every state", "1 of 2 cycles"),
        (changed("cycles", 0, "bytes_at", to={"serving": 1}), "every state", "released was not reached"),
        (changed("cycles", 0, "bytes_at", "paused", to="no process"), "every state", "no process"),
        (changed("cycles", 1, "bytes_at", "released", to=6000 * MIB), "residual", "10.5% of its tags"),
        (changed("cycles", 1, "bytes_at", "released", to="unread"), "residual", "unknown"),
        (changed("cycles", 0, "memory_returned", to=False), "residual", "was not proved"),
        (changed("cycles", 0, "in_flight", to=[]), "in flight", "no request was in flight"),
        (
            changed("cycles", 1, "in_flight", 0, to={"tokens": 3, "reason": "abort"}),
            "in flight",
            "abort after 3 tokens",
        ),
        (changed("cycles", 0, "in_flight", to=[{"tokens": 9, "reason": "length"}]), "in flight", "had ended before"),
        (changed("cycles", 1, "same_answers", to=False), "parity", "other answers"),
    ],
)
def test_a_target_that_is_missed_is_named(figures: dict[str, Any], subject: str, says: str) -> None:
    missed = report.missed(figures)
    assert any(says in each for each in missed[subject]), missed
    assert says in report.page(figures)


@pytest.mark.parametrize(
    ("asked", "gpu", "vllm"),
    [("", False, False), ("1", True, False), ("gpu,vllm", True, True), ("sglang", True, False)],
)
def test_what_must_be_there_is_named(monkeypatch: pytest.MonkeyPatch, asked: str, gpu: bool, vllm: bool) -> None:
    monkeypatch.setenv("LIFECYCLE_GPU_REQUIRED", asked)
    assert (lease.is_required(), lease.is_required("vllm")) == (gpu, vllm)


def test_no_more_time_is_given_than_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIFECYCLE_GPU_LIMIT_S", raising=False)
    assert lease.left_s(600) == 600
    monkeypatch.setenv("LIFECYCLE_GPU_LIMIT_S", "1e9")
    assert lease.left_s(600) == 600
    monkeypatch.setenv("LIFECYCLE_GPU_LIMIT_S", "0")
    assert lease.left_s(600) == 0
    monkeypatch.setenv("LIFECYCLE_GPU_LIMIT_S", "soon")
    with pytest.raises(ValueError, match="must be a number of seconds, got 'soon'"):
        lease.left_s(600)


def test_every_module_of_the_lane_has_its_place() -> None:
    assert {path.stem for path in GPU.glob("test_*.py")} == set(lease.ORDER)
    assert lease.place("test_gpu") < lease.place("test_torch_on_gpu") < lease.place("test_engines_on_gpu")


def test_an_engine_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert servers.unavailable("vllm") == "vllm is not installed here"
    (tmp_path / "vllm" / "entrypoints" / "openai").mkdir(parents=True)
    for folder in ("vllm", "vllm/entrypoints", "vllm/entrypoints/openai"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "vllm" / "entrypoints" / "openai" / "api_server.py").write_text("import no_such_kernels")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert servers.unavailable("vllm") == (
        "vllm cannot be imported: ModuleNotFoundError: No module named 'no_such_kernels'"
    )


def test_a_model_of_so_many_gib() -> None:
    for gib in (1.0, 2.0, 4.0):
        assert servers.layers_of(gib) * servers.LAYER_PARAMETERS * 2 == pytest.approx(gib * (1 << 30), rel=0.05)


@pytest.mark.slow
def test_the_lane_fails_without_a_gpu_where_one_is_required() -> None:
    environment = {**os.environ, "LIFECYCLE_GPU_REQUIRED": "vllm"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(GPU)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 4, ended.stdout
    assert "needs an NVIDIA GPU" in ended.stderr + ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_driver_and_its_report_on_a_loopback_engine_of_the_same_dialect(engine: str, tmp_path: Path) -> None:
    options = ["--device", "loopback", "--threshold-gib", "0.25", "--tokens", "120", "--out", str(tmp_path)]
    command = [sys.executable, str(GPU / "engine_cycles.py"), engine, *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "No target is missed." in (tmp_path / f"{engine}_cycles.md").read_text()
