"""Checks made before torch_memory_saver is first used in a process: its hook mode and torch's allocator settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from lifecycle.core.errors import ConfigurationError
from lifecycle.core.verdicts import Refuted, Unmeasurable
from lifecycle.nodes.cuda_wheel import installed_cuda
from lifecycle.nodes.hook_mode import HookMode, HookModeUnsafe, choose, configured, escaped, judge, visible_gpus
from lifecycle.nodes.process_env import expandable

from .errors import MissingPackage

HookModeSetting = Literal["auto", "preload", "torch"]

#: The mode that this process uses: empty before the first use, then one element for good.
_fixed: list[HookMode] = []


def check_allocator(environ: Mapping[str, str]) -> None:
    """Raises ConfigurationError where expandable segments are on, under either name of torch's allocator variable.

    torch_memory_saver checks only the older name, PYTORCH_CUDA_ALLOC_CONF, and fails where they are on under the newer
    one. Source: torch_memory_saver 0.0.10, entrypoint.py.
    """
    setting = expandable(environ)
    if setting is not None:
        raise ConfigurationError(
            f"{setting}: expandable segments cannot be released by torch_memory_saver, nor shared by CUDA IPC; "
            "remove expandable_segments from it before the process starts"
        )


def hook_mode(setting: HookModeSetting, environ: Mapping[str, str], used: HookMode | None = None) -> HookMode:
    """The mode to use: that of `setting`, else of the environment, else the mode already `used`, else a safe one.

    Raises HookModeUnsafe where the mode would crash the process, ConfigurationError where it cannot work in it.
    """
    mode = setting if setting != "auto" else configured(environ)
    if mode == "auto" and used is not None:
        mode = used
    gpus = visible_gpus(environ)
    if isinstance(gpus, Unmeasurable):
        raise ConfigurationError(f"whether the hook mode is safe cannot be decided: {gpus.reason}")
    if mode == "auto":
        return choose(gpus, installed_cuda()) if preloaded(environ) else "torch"
    verdict = judge(mode, gpus, installed_cuda(), escaped(environ))
    if isinstance(verdict, Refuted):
        raise HookModeUnsafe(verdict.reason)
    if mode == "preload" and not preloaded(environ):
        raise ConfigurationError(
            "hook mode preload needs torch_memory_saver's library in LD_PRELOAD before the process starts "
            f"(LD_PRELOAD is {environ.get('LD_PRELOAD', '')!r}); start it under "
            "torch_memory_saver.configure_subprocess(), or use hook_mode='torch'"
        )
    return mode


def preloaded(environ: Mapping[str, str]) -> bool:
    """Whether LD_PRELOAD names exactly one of torch_memory_saver's libraries, as its preload mode requires."""
    return sum("torch_memory_saver" in part for part in environ.get("LD_PRELOAD", "").split(":")) == 1


def fix(mode: HookMode) -> HookMode:
    """Fixes the process's mode. Raises ConfigurationError where another one was used before."""
    if _fixed and _fixed[0] != mode:
        raise ConfigurationError(
            f"torch_memory_saver is in use in this process with hook mode {_fixed[0]!r}, and cannot change to "
            f"{mode!r}: the mode is fixed at first use. Start another process for {mode!r}"
        )
    _fixed[:] = [mode]
    return mode


def memory_saver(setting: HookModeSetting) -> tuple[Any, HookMode]:
    """torch_memory_saver's singleton and its hook mode, which is resolved, checked and fixed before the first use."""
    check_allocator(os.environ)
    try:
        from torch_memory_saver import torch_memory_saver as saver  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError as missing:
        raise MissingPackage(
            "releasing CUDA memory needs torch_memory_saver; pip install 'engine-lifecycle[torch-memory-saver]'"
        ) from missing
    used = getattr(getattr(saver, "_impl", None), "_hook_mode", None)
    mode = hook_mode(setting, os.environ, used)
    if used not in (None, mode):
        raise ConfigurationError(
            f"torch_memory_saver was used in this process with hook mode {used!r} before this engine was made, and "
            f"cannot change to {mode!r}; pass hook_mode={used!r}"
        )
    fix(mode)
    if used is None:
        saver.hook_mode = mode
    return saver, mode
