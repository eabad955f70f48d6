"""Checks before torch_memory_saver is first used: the hook mode, torch's allocator settings, missing packages."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
from lifecycle.adapters.torch_memory_saver import TorchEngine, hooks
from lifecycle.adapters.torch_memory_saver.errors import MissingPackage
from torch_rig import seeded

from lifecycle import ConfigurationError, Grade, GuardRefused, NotApplicable, Policy, Unmeasurable
from lifecycle.engine.preconditions import hook_mode_of
from lifecycle.nodes import hook_mode
from lifecycle.nodes.hook_mode import Gpu, HookModeUnsafe
from lifecycle.nodes.process_env import ALLOCATOR_NAMES

BLACKWELL, HOPPER = Gpu("NVIDIA RTX 5090", 12, 0), Gpu("NVIDIA H100", 9, 0)
LIBRARY = "/x/torch_memory_saver_hook_mode_preload_cu12.abi3.so"


# hook mode and allocator


@pytest.fixture
def unused(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A stand-in for torch_memory_saver before its first use in the process."""
    saver = types.SimpleNamespace(_impl=None, hook_mode=None)
    monkeypatch.setitem(sys.modules, "torch_memory_saver", types.SimpleNamespace(torch_memory_saver=saver))
    monkeypatch.setattr(hooks, "_fixed", [])
    for name in (*ALLOCATOR_NAMES, "LD_PRELOAD", "LIFECYCLE_HOOK_MODE", "MILES_TMS_HOOK_MODE"):
        monkeypatch.delenv(name, raising=False)
    return saver


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
@pytest.mark.parametrize("value", ["expandable_segments:True", "max_split_size_mb:64, expandable_segments: true"])
def test_expandable_segments_are_refused(unused, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name):
        hooks.memory_saver("auto")
    with pytest.raises(ConfigurationError, match=name):
        TorchEngine("policy", device="cuda")


def test_expandable_segments_that_are_off_pass(unused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:False")
    assert hooks.memory_saver("auto") == (unused, "torch")


def test_the_hook_mode_is_set_before_first_use_and_never_changes(unused, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hooks.memory_saver("torch") == (unused, "torch")
    assert unused.hook_mode == "torch"
    monkeypatch.setenv("LD_PRELOAD", "/x/torch_memory_saver_hook_mode_preload_cu13.abi3.so")
    with pytest.raises(ConfigurationError, match="cannot change to 'preload': the mode is fixed at first use"):
        hooks.memory_saver("preload")


def test_a_hook_mode_already_used_in_the_process_cannot_change(unused) -> None:
    unused._impl = types.SimpleNamespace(_hook_mode="preload")
    with pytest.raises(ConfigurationError, match="used in this process with hook mode 'preload'"):
        hooks.memory_saver("torch")


def test_preload_without_its_library_is_refused(unused) -> None:
    with pytest.raises(ConfigurationError, match="LD_PRELOAD before the process starts"):
        hooks.memory_saver("preload")


def test_an_unknown_hook_mode_of_the_environment_is_refused(unused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_HOOK_MODE", "Torch")
    with pytest.raises(ConfigurationError, match="one of auto, torch, preload"):
        hooks.memory_saver("auto")


def test_auto_is_preload_where_its_library_is_there(unused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/x/torch_memory_saver_hook_mode_preload_cu13.abi3.so:/y/other.so")
    assert hooks.memory_saver("auto")[1] == "preload"


def test_a_device_that_cannot_be_released_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="devices are cuda and cpu"):
        TorchEngine("policy", device="meta")


def on(monkeypatch: pytest.MonkeyPatch, gpu: Gpu, cuda: str) -> None:
    """Makes this process see this GPU and have a torch build for this CUDA."""
    for module in (hooks, hook_mode):
        monkeypatch.setattr(module, "visible_gpus", lambda *args, **how: (gpu,))
        monkeypatch.setattr(module, "installed_cuda", lambda: cuda)


@pytest.mark.parametrize(
    ("gpu", "cuda", "preloaded", "mode"),
    [
        (HOPPER, "12.9", True, "preload"),
        (HOPPER, "12.9", False, "torch"),
        (BLACKWELL, "12.9", True, "torch"),
        (BLACKWELL, "13.0", True, "preload"),
    ],
)
def test_auto_is_what_is_safe_and_possible(
    unused, monkeypatch, gpu: Gpu, cuda: str, preloaded: bool, mode: str
) -> None:
    on(monkeypatch, gpu, cuda)
    monkeypatch.setenv("LD_PRELOAD", LIBRARY if preloaded else "")
    assert hooks.memory_saver("auto") == (unused, mode)
    assert unused.hook_mode == mode


def test_a_mode_that_would_crash_is_refused_before_the_saver_is_touched(unused, monkeypatch) -> None:
    on(monkeypatch, BLACKWELL, "12.9")
    monkeypatch.setenv("LD_PRELOAD", LIBRARY)
    with pytest.raises(HookModeUnsafe, match="sm_120"):
        hooks.memory_saver("preload")
    assert unused.hook_mode is None
    assert hooks.memory_saver("torch") == (unused, "torch"), "a refusal fixes nothing"


def test_auto_takes_the_mode_in_use_and_still_guards_it(unused, monkeypatch) -> None:
    unused._impl = types.SimpleNamespace(_hook_mode="preload")
    monkeypatch.setenv("LD_PRELOAD", LIBRARY)
    on(monkeypatch, BLACKWELL, "12.9")
    with pytest.raises(HookModeUnsafe):
        hooks.memory_saver("auto")
    on(monkeypatch, HOPPER, "12.9")
    assert hooks.memory_saver("auto")[1] == "preload"


def test_the_way_out_that_a_refusal_names_is_open(unused, monkeypatch) -> None:
    unused._impl = types.SimpleNamespace(_hook_mode="preload")
    monkeypatch.setenv("LD_PRELOAD", LIBRARY)
    with pytest.raises(ConfigurationError, match="pass hook_mode='preload'"):
        hooks.memory_saver("torch")
    assert hooks.memory_saver("preload")[1] == "preload"


# the guard of a release


#: Accepts what a machine without a GPU cannot measure, so that only the guard refuses.
UNSEEN = Policy(unprovable="warn", accept={"memory_returned": Grade.ACKNOWLEDGED})


async def drained(mode: str) -> TorchEngine:
    """A drained engine on a stand-in for a CUDA device."""
    engine = TorchEngine("policy", device="cuda", hook_mode=mode, policy=UNSEEN)
    with engine.region("weights"):
        model = seeded(0, width=8, vocabulary=16)
    engine.attach(model, generate=lambda probe: [1])
    await engine.connect()
    await engine.pause()
    await engine.drain()
    return engine


async def test_a_release_is_refused_in_a_mode_that_crashes(log: list[str], monkeypatch) -> None:
    """The mode is passed as an argument, which the environment does not show."""
    monkeypatch.setenv("LD_PRELOAD", LIBRARY)
    engine = await drained("preload")
    assert (engine.capabilities.saver, engine.capabilities.hook_mode) == ("torch_memory_saver", "preload")
    on(monkeypatch, BLACKWELL, "12.9")
    with pytest.raises(GuardRefused, match="hook mode preload crashes") as refused:
        await engine.release()
    assert "hook_mode_safe" in refused.value.reasons
    assert not [line for line in log if line.startswith("pause")]
    await engine.aclose()


async def test_the_mode_in_use_is_judged_and_not_what_the_environment_leaves_unsaid(log, monkeypatch) -> None:
    engine = await drained("torch")
    on(monkeypatch, BLACKWELL, "12.9")
    verdict = await hook_mode_of(engine, deadline_s=5)
    assert "hook mode torch is safe" in verdict.reason
    monkeypatch.setattr(hook_mode, "visible_gpus", lambda *args, **how: Unmeasurable(reason="the driver is silent"))
    with pytest.raises(GuardRefused, match="the driver is silent"):
        await engine.release()
    await engine.aclose()


async def test_on_a_cpu_there_is_no_mode_to_guard() -> None:
    engine = TorchEngine("policy", device="cpu", policy=UNSEEN)
    with engine.region("weights"):
        model = seeded(0, width=8, vocabulary=16)
    engine.attach(model, generate=lambda probe: [1])
    await engine.connect()
    assert isinstance(await hook_mode_of(engine, deadline_s=5), NotApplicable)
    await engine.aclose()


# packages


def test_torch_memory_saver_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_memory_saver", None)
    with pytest.raises(MissingPackage, match=r"engine-lifecycle\[torch-memory-saver\]"):
        hooks.memory_saver("torch")


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_a_package_that_is_not_installed_is_named(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; import lifecycle.adapters.torch_memory_saver"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert f"needs {package}; pip install 'engine-lifecycle[torch]'" in ended.stderr
