"""What must hold before torch_memory_saver is used for the first time in a process: its hook mode, the allocator."""

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

Asked = Literal["auto", "preload", "torch"]

#: The mode that this process uses; fixed at first use.
_fixed: list[HookMode] = []


def check_allocator(environ: Mapping[str, str]) -> None:
    """Expandable segments are off under either name; ConfigurationError says under which they are on.

    torch_memory_saver checks only the older name, and breaks under the newer. Source: torch_memory_saver 0.0.10,
    entrypoint.py.
    """
    setting = expandable(environ)
    if setting is not None:
        raise ConfigurationError(
            f"{setting}: expandable segments cannot be released by torch_memory_saver, nor shared by CUDA IPC; "
            "take expandable_segments out of it before the process starts"
        )


def hook_mode(asked: Asked, environ: Mapping[str, str], used: HookMode | None = None) -> HookMode:
    """The mode to use here: what was asked for, else what the environment says, else `used`, else what is safe.

    Raises HookModeUnsafe where it would crash the process, ConfigurationError where it cannot work in this one.
    """
    wanted = asked if asked != "auto" else configured(environ)
    if wanted == "auto" and used is not None:
        wanted = used
    gpus = visible_gpus(environ)
    if isinstance(gpus, Unmeasurable):
        raise ConfigurationError(f"the hook mode cannot be judged: {gpus.reason}")
    if wanted == "auto":
        return choose(gpus, installed_cuda()) if preloaded(environ) else "torch"
    verdict = judge(wanted, gpus, installed_cuda(), escaped(environ))
    if isinstance(verdict, Refuted):
        raise HookModeUnsafe(verdict.reason)
    if wanted == "preload" and not preloaded(environ):
        raise ConfigurationError(
            "hook mode preload needs torch_memory_saver's library in LD_PRELOAD before the process starts "
            f"(LD_PRELOAD is {environ.get('LD_PRELOAD', '')!r}); start it under "
            "torch_memory_saver.configure_subprocess(), or use hook_mode='torch'"
        )
    return wanted


def preloaded(environ: Mapping[str, str]) -> bool:
    """Whether exactly one of torch_memory_saver's libraries is preloaded, as its preload mode wants it."""
    return sum("torch_memory_saver" in part for part in environ.get("LD_PRELOAD", "").split(":")) == 1


def fix(mode: HookMode) -> HookMode:
    """This is the process's mode for good; ConfigurationError where another was used before."""
    if _fixed and _fixed[0] != mode:
        raise ConfigurationError(
            f"torch_memory_saver is in use in this process with hook mode {_fixed[0]!r}, and cannot change to "
            f"{mode!r}: the mode is fixed at first use. Start another process for it"
        )
    _fixed[:] = [mode]
    return mode


def memory_saver(asked: Asked) -> tuple[Any, HookMode]:
    """torch_memory_saver's singleton, its hook mode resolved, guarded and fixed before first use."""
    check_allocator(os.environ)
    try:
        from torch_memory_saver import torch_memory_saver as saver  # type: ignore[import-not-found,unused-ignore]
    except ModuleNotFoundError as missing:
        raise MissingPackage(
            "releasing CUDA memory needs torch_memory_saver; pip install 'engine-lifecycle[torch-memory-saver]'"
        ) from missing
    used = getattr(getattr(saver, "_impl", None), "_hook_mode", None)
    mode = hook_mode(asked, os.environ, used)
    if used not in (None, mode):
        raise ConfigurationError(
            f"torch_memory_saver was used in this process with hook mode {used!r} before this engine was made, and "
            f"cannot change to {mode!r}; pass hook_mode={used!r}"
        )
    fix(mode)
    if used is None:
        saver.hook_mode = mode
    return saver, mode
