"""The truth table of torch_memory_saver's hook mode, one case a row, and the reading of mode, GPUs and wheel."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import types
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from residual.stand_in_nvml import StandInNvml, gpu

from lifecycle import (
    ConfigurationError,
    HookModeUnsafe,
    NotApplicable,
    Proved,
    Refuted,
    Unmeasurable,
    require_safe_hook_mode,
)
from lifecycle.core.facts import Grade
from lifecycle.nodes import cuda_wheel, hook_mode, process_env
from lifecycle.nodes.driver import NvmlDriver
from lifecycle.nodes.hook_mode import Gpu, choose, configured, in_use, judge, resolve
from lifecycle.nodes.processes import by_pid
from lifecycle.nodes.this_host import ThisHost

HOPPER, ADA = Gpu("H100", 9, 0), Gpu("L40S", 8, 9)
B200, RTX5090, RUBIN = Gpu("B200", 10, 0), Gpu("RTX 5090", 12, 0), Gpu("Rubin", 13, 0)

# mode, GPUs, the wheel's CUDA, escape variable -> result
TABLE = [
    (None, [], None, None, "none"),
    ("preload", [], "12.9", None, "none"),
    ("torch", [], "12.9", None, "none"),
    ("nonsense", [], "12.9", None, "none"),
    ("torch", [HOPPER], "12.9", None, "pass"),
    ("torch", [B200], "12.9", None, "pass"),
    ("torch", [RTX5090], None, None, "pass"),
    ("torch", [RTX5090], "13.0", None, "pass"),
    ("torch", [ADA, RTX5090], "12.9", None, "pass"),
    (None, [HOPPER], "12.9", None, "pass"),
    ("", [HOPPER], "12.9", None, "pass"),
    ("preload", [HOPPER], "12.9", None, "pass"),
    ("PRELOAD", [ADA], None, None, "pass"),
    ("nonsense", [ADA], "11.8", None, "pass"),
    (None, [B200], "13.0", None, "pass"),
    ("", [B200], "13.0", None, "pass"),
    ("preload", [RTX5090], "13", None, "pass"),
    ("nonsense", [RTX5090], "14.1", None, "pass"),
    (None, [B200], "12.9", "1", "warn"),
    ("preload", [RTX5090], None, "1", "warn"),
    ("preload", [RTX5090], "twelve", "1", "warn"),
    ("TORCH", [RTX5090], "12.9", "1", "warn"),
    (None, [B200], "12.9", None, "refuse"),
    ("", [B200], "12.9", None, "refuse"),
    ("preload", [B200], "12.9", None, "refuse"),
    ("nonsense", [B200], "12.9", None, "refuse"),
    ("TORCH", [RTX5090], "12.9", None, "refuse"),
    ("Torch ", [RTX5090], "12.9", None, "refuse"),
    ("preload", [RTX5090], None, None, "refuse"),
    ("preload", [RTX5090], "", None, "refuse"),
    ("preload", [RTX5090], "twelve", None, "refuse"),
    ("preload", [RUBIN], "12.9", None, "refuse"),
    ("preload", [HOPPER, RTX5090], "12.9", None, "refuse"),
    ("preload", [RTX5090, HOPPER], "12.9", None, "refuse"),
    ("preload", [B200], "12.9", "0", "refuse"),
    ("preload", [B200], "12.9", "", "refuse"),
    ("preload", [B200], "12.9", "true", "refuse"),
    ("preload", [B200], "12.9", " 1", "refuse"),
    ("preload", [B200], "12.9", "yes", "refuse"),
]


@pytest.mark.parametrize(("mode", "gpus", "cuda", "escape", "result"), TABLE)
def test_the_truth_table(mode: str | None, gpus: list[Gpu], cuda: str | None, escape: str | None, result: str) -> None:
    verdict = judge(mode, gpus, cuda, escape)
    if result == "refuse":
        assert isinstance(verdict, Refuted)
    elif result == "none":
        assert isinstance(verdict, NotApplicable)
    else:
        assert isinstance(verdict, Proved)
        assert (verdict.grade is Grade.ASSERTED) is (result == "warn")


@pytest.mark.parametrize(("mode", "said"), [(None, "is unset"), ("", "is ''"), ("nonsense", "is 'nonsense'")])
def test_a_refusal_names_the_gpu_the_wheel_the_variable_and_three_remedies(mode: str | None, said: str) -> None:
    reason = judge(mode, [HOPPER, RTX5090], "12.9", None).reason
    assert "RTX 5090" in reason
    assert "sm_120" in reason
    assert "CUDA 12.9" in reason
    assert f"MILES_TMS_HOOK_MODE {said}" in reason
    assert "MILES_TMS_HOOK_MODE=torch" in reason
    assert "CUDA 13 or later" in reason
    assert "MILES_TMS_ALLOW_PRELOAD_ON_BLACKWELL=1" in reason


@pytest.mark.parametrize(
    ("environ", "gpus", "cuda", "mode"),
    [
        ({}, [HOPPER], "12.9", "preload"),
        ({}, [RTX5090], "12.9", "torch"),
        ({}, [HOPPER, RTX5090], "12.9", "torch"),
        ({}, [RTX5090], "13.0", "preload"),
        ({}, [RTX5090], None, "torch"),
        ({}, [], None, "preload"),
        ({"LIFECYCLE_HOOK_MODE": "auto"}, [RTX5090], "12.9", "torch"),
        ({"LIFECYCLE_HOOK_MODE": "preload"}, [RTX5090], "12.9", "preload"),
        ({"LIFECYCLE_HOOK_MODE": "torch"}, [HOPPER], "12.9", "torch"),
        ({"MILES_TMS_HOOK_MODE": "nonsense"}, [RTX5090], "12.9", "preload"),
        ({"MILES_TMS_HOOK_MODE": ""}, [RTX5090], "12.9", "preload"),
        ({"MILES_TMS_HOOK_MODE": "torch"}, [HOPPER], "12.9", "torch"),
        ({"LIFECYCLE_HOOK_MODE": "preload", "MILES_TMS_HOOK_MODE": "torch"}, [HOPPER], "12.9", "preload"),
    ],
)
def test_auto_takes_torch_only_where_preload_would_crash(environ, gpus, cuda, mode) -> None:
    assert resolve(environ, gpus, cuda) == mode
    if not environ:
        assert choose(gpus, cuda) == mode


@pytest.mark.parametrize("value", ["", "Torch", "none", "1"])
def test_an_unknown_mode_of_ours_is_an_error(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"LIFECYCLE_HOOK_MODE='.*': one of auto, torch, preload"):
        configured({"LIFECYCLE_HOOK_MODE": value})


def blackwell(index: int = 0) -> dict[str, object]:
    return gpu(index, name="NVIDIA RTX 5090", capability=[12, 0])


@pytest.fixture
def cuda_12(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_mode, "installed_cuda", lambda: "12.9")


@pytest.mark.usefixtures("cuda_12")
def test_the_function_for_frameworks_checks_every_visible_device() -> None:
    nvml = NvmlDriver(StandInNvml.of(gpu(0), blackwell(1)))
    ordered = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    with pytest.raises(HookModeUnsafe, match="sm_120"):
        require_safe_hook_mode({}, nvml=nvml)
    require_safe_hook_mode({**ordered, "CUDA_VISIBLE_DEVICES": "0"}, nvml=nvml)
    require_safe_hook_mode({"CUDA_VISIBLE_DEVICES": ""}, nvml=nvml)
    require_safe_hook_mode({"MILES_TMS_HOOK_MODE": "torch"}, nvml=nvml)
    with pytest.raises(HookModeUnsafe):
        require_safe_hook_mode({**ordered, "CUDA_VISIBLE_DEVICES": "0,1"}, nvml=nvml)
    with pytest.raises(HookModeUnsafe, match="'auto'"):
        require_safe_hook_mode({"MILES_TMS_HOOK_MODE": "auto"}, nvml=nvml)


@pytest.mark.usefixtures("cuda_12")
def test_the_environment_is_read_when_called(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = NvmlDriver(StandInNvml.of(blackwell()))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("MILES_TMS_HOOK_MODE", "torch")
    require_safe_hook_mode(nvml=nvml)
    monkeypatch.delenv("MILES_TMS_HOOK_MODE")
    with pytest.raises(HookModeUnsafe):
        require_safe_hook_mode(nvml=nvml)


@pytest.mark.usefixtures("cuda_12")
def test_the_mode_in_use_is_judged_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("MILES_TMS_HOOK_MODE", "preload")
    nvml = NvmlDriver(StandInNvml.of(blackwell()))
    assert isinstance(in_use("torch", nvml=nvml), Proved)
    monkeypatch.setenv("MILES_TMS_HOOK_MODE", "torch")
    assert isinstance(in_use("preload", nvml=nvml), Refuted)
    monkeypatch.setattr(hook_mode, "visible_gpus", lambda *args, **how: Unmeasurable(reason="no answer"))
    assert isinstance(in_use("torch"), Unmeasurable)


@pytest.mark.usefixtures("cuda_12")
def test_a_refusal_names_the_variable_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = NvmlDriver(StandInNvml.of(blackwell()))
    ours = {"LIFECYCLE_HOOK_MODE": "preload", "MILES_TMS_HOOK_MODE": "torch"}
    for environ, named in ((ours, "LIFECYCLE_HOOK_MODE"), ({"MILES_TMS_HOOK_MODE": "preload"}, "MILES_TMS_HOOK_MODE")):
        monkeypatch.setattr(process_env, "environ_of", lambda pid, environ=environ: environ)
        reason = process_env.hook_mode_verdict([by_pid(os.getpid())], nvml=nvml).reason
        assert f"({named} is 'preload'" in reason
        assert f"set {named}=torch" in reason
    loaded = {"MILES_TMS_HOOK_MODE": "torch", "LD_PRELOAD": "/x/torch_memory_saver_hook_mode_preload.abi3.so"}
    monkeypatch.setattr(process_env, "environ_of", lambda pid: loaded)
    reason = process_env.hook_mode_verdict([by_pid(os.getpid())], nvml=nvml).reason
    assert f"LD_PRELOAD={loaded['LD_PRELOAD']}; start it without that library: hook mode preload crashes" in reason
    assert "MILES_TMS_HOOK_MODE is" not in reason
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LIFECYCLE_HOOK_MODE", "preload")
    assert "set LIFECYCLE_ALLOW_PRELOAD_ON_BLACKWELL=1" in in_use("preload", nvml=nvml).reason


async def test_a_driver_that_hangs_is_unmeasurable(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    monkeypatch.setattr(hook_mode, "visible_gpus", lambda *args, **how: answer.wait(10))
    try:
        verdict = await ThisHost().mode_in_use("torch", deadline_s=0.05)
        assert verdict == Unmeasurable(reason="reading the GPUs of this process took more than 0.1 s")
    finally:
        answer.set()


def test_a_backup_is_retained_only_where_that_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    here = by_pid(os.getpid())
    monkeypatch.setattr(process_env, "environ_of", lambda pid: {"TMS_RETAIN_CPU_BACKUP": "1"})
    assert process_env.retains_backup([here])
    assert not process_env.retains_backup([replace(here, agent="node-2:30999")]), "its environment is not here"
    for environ in ({}, {"TMS_RETAIN_CPU_BACKUP": "0"}):
        monkeypatch.setattr(process_env, "environ_of", lambda pid, environ=environ: environ)
        assert not process_env.retains_backup([here])

    def another_users(pid: int) -> dict[str, str]:
        raise PermissionError(pid)

    monkeypatch.setattr(process_env, "environ_of", another_users)
    assert not process_env.retains_backup([here])


@pytest.mark.usefixtures("cuda_12")
def test_what_was_allowed_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    nvml = NvmlDriver(StandInNvml.of(blackwell()))
    with caplog.at_level(logging.INFO, logger="lifecycle.hook_mode"):
        require_safe_hook_mode({"MILES_TMS_ALLOW_PRELOAD_ON_BLACKWELL": "1"}, nvml=nvml)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_it_is_no_assert_and_no_import_of_torch() -> None:
    """Under -O an assert is gone; HookModeUnsafe is not."""
    code = (
        "import sys; sys.path[:0] = ['tests']\n"
        "from residual.stand_in_nvml import StandInNvml, gpu\n"
        "from lifecycle.nodes import hook_mode\n"
        "from lifecycle.nodes.driver import NvmlDriver\n"
        "hook_mode.installed_cuda = lambda: '12.9'\n"
        "try: hook_mode.require_safe_hook_mode({}, nvml=NvmlDriver(StandInNvml.of(gpu(capability=[10, 3]))))\n"
        "except hook_mode.HookModeUnsafe as error: print('refused', 'sm_103' in str(error), 'torch' in sys.modules)"
    )
    root = Path(__file__).parent.parent
    ran = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert ran.stdout == "refused True False\n", ran.stderr


def test_no_driver_and_no_device_file_is_no_gpu() -> None:
    stand_in = StandInNvml.of()
    stand_in.broken = 12
    gpus = hook_mode.visible_gpus({}, nvml=NvmlDriver(stand_in))
    present = any(Path("/dev").glob("nvidia[0-9]*"))
    assert isinstance(gpus, Unmeasurable) if present else gpus == ()


VERSION_FILE = (
    "from typing import Optional\n__version__ = '2.11.0'\ncuda: Optional[str] = {}\nhip: Optional[str] = None\n"
)


@pytest.mark.parametrize(("line", "cuda"), [("'12.9'", "12.9"), ("'13.0'", "13.0"), ("None", None)])
def test_the_wheel_is_read_without_importing_it(monkeypatch, tmp_path: Path, line: str, cuda: str | None) -> None:
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it was imported')")
    (package / "version.py").write_text(VERSION_FILE.format(line))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # where torch's own tests run beside these
    assert cuda_wheel.installed_cuda() == cuda


@pytest.mark.parametrize(
    ("version", "requires", "cuda"),
    [
        ("2.11.0+cu130", [], "13.0"),
        ("2.8.0+cu129", [], "12.9"),
        ("2.8.0", ["nvidia-cuda-runtime-cu12==12.8.90 ; sys_platform == 'linux'"], "12.8.90"),
        ("2.11.0", ["filelock", "nvidia-cuda-runtime==13.0.96; platform_system == 'Linux'"], "13.0.96"),
        ("2.11.0+cpu", ["filelock"], None),
    ],
)
def test_the_wheel_by_its_metadata(monkeypatch, version: str, requires: list[str], cuda: str | None) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    assert cuda_wheel._in_metadata() == cuda


def test_the_version_of_a_loaded_torch_is_read_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = types.SimpleNamespace(version=types.SimpleNamespace(cuda="12.8"))
    monkeypatch.setitem(sys.modules, "torch", loaded)
    assert cuda_wheel.installed_cuda() == "12.8"


def test_a_process_without_torch_has_no_cuda_version() -> None:
    assert cuda_wheel.cuda_of_process(os.getpid()) is None
    assert cuda_wheel.cuda_of_process(1 << 30) is None
