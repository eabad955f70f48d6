"""torch_memory_saver's hook mode against GPU architecture and CUDA wheel: a combination that crashes is refused.

Hook mode `preload` (the default: LD_PRELOAD over cudaMalloc and cudaFree) ends the process without a traceback on
Blackwell (compute capability 10 and up) with CUDA 12 wheels; `torch` (a pluggable allocator) does not.
Source: miles, CUDA 12.9, RTX 5090.

The environment variables of miles are named here, not in launch/miles.py: this module and process_env read them in
the environment of this process and of running engines, and nodes cannot import launch.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.errors import ConfigurationError
from ..core.facts import Grade
from ..core.verdicts import NotApplicable, Proved, Refuted, Unmeasurable, Verdict
from .cuda_wheel import installed_cuda, major_of
from .driver import DriverUnavailable, NvmlDriver, driver
from .visible_devices import visible_devices

HookMode = Literal["torch", "preload"]

#: The hook mode. With our name `auto` is the default and an unknown value an error; with that of miles every value
#: but `torch` means preload. Ours counts where both are set.
MODE, MILES_MODE = "LIFECYCLE_HOOK_MODE", "MILES_TMS_HOOK_MODE"

#: The escape variable: exactly `1` allows a combination that would be refused. Ours counts where both are set.
ESCAPE, MILES_ESCAPE = "LIFECYCLE_ALLOW_PRELOAD_ON_BLACKWELL", "MILES_TMS_ALLOW_PRELOAD_ON_BLACKWELL"

BLACKWELL_MAJOR = 10
SAFE_CUDA_MAJOR = 13

_log = logging.getLogger("lifecycle.hook_mode")


class HookModeUnsafe(ConfigurationError):
    """The hook mode would crash the process on a GPU that it sees; the message has the remedies. A RuntimeError."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A visible device: its name and compute capability, which is all that the hook mode depends on."""

    name: str
    major: int
    minor: int

    @property
    def blackwell(self) -> bool:
        """Whether `preload` crashes on it with CUDA 12: Blackwell, or a later architecture."""
        return self.major >= BLACKWELL_MAJOR

    def __str__(self) -> str:
        return f"{self.name} (sm_{self.major}{self.minor})"


def judge(
    mode: str | None, gpus: Sequence[Gpu], cuda: str | None, escape: str | None, *, variable: str = MILES_MODE
) -> Verdict:
    """Returns whether this mode is safe on every one of these GPUs.

    `mode` is a variable's value: exactly "torch" is torch; everything else, None (unset) too, means preload.
    `cuda` is the CUDA version of the torch wheel ("12.9"), None if unknown. `escape` is the escape variable's value,
    of which only "1" counts. `variable` is the name of the variable that the refusal tells the operator to set.
    """
    if not gpus:
        return NotApplicable(reason="no GPU is visible")
    if mode == "torch":
        return Proved(grade=Grade.REPORTED, reason="hook mode torch is safe on every GPU")
    blackwell = next((gpu for gpu in gpus if gpu.blackwell), None)
    if blackwell is None:
        return Proved(grade=Grade.REPORTED, reason=f"hook mode preload is safe on {gpus[0]}")
    major = major_of(cuda)
    if major is not None and major >= SAFE_CUDA_MAJOR:
        return Proved(grade=Grade.REPORTED, reason=f"hook mode preload on {blackwell} is safe with CUDA {cuda}")
    escape_name = ESCAPE if variable == MODE else MILES_ESCAPE
    if escape == "1":
        reason = f"hook mode preload on {blackwell} with CUDA {cuda or 'unknown'} was allowed by {escape_name}=1"
        return Proved(grade=Grade.ASSERTED, reason=reason)
    setting = f"{variable} is unset" if mode is None else f"{variable} is {mode!r}"
    return Refuted(
        reason=f"{crash(blackwell, cuda)} ({setting}, which means preload). Either set {variable}=torch; or install a "
        f"torch wheel for CUDA {SAFE_CUDA_MAJOR} or later; or, at your own risk, set {escape_name}=1"
    )


def crash(gpu: Gpu, cuda: str | None) -> str:
    """Returns the sentence of what happens on this GPU with wheels of this CUDA version."""
    return f"hook mode preload crashes the process without a traceback on {gpu} with CUDA {cuda or 'unknown'} wheels"


def choose(gpus: Sequence[Gpu], cuda: str | None) -> HookMode:
    """Returns the mode that `auto` means on these GPUs: preload, which releases more, unless it would crash."""
    return "torch" if isinstance(judge("preload", gpus, cuda, None), Refuted) else "preload"


def configured(environ: Mapping[str, str]) -> HookMode | Literal["auto"]:
    """Returns the mode that this environment configures, `auto` where neither variable is set.

    Raises ConfigurationError for an unknown value of LIFECYCLE_HOOK_MODE.
    """
    match environ.get(MODE):
        case "torch":
            return "torch"
        case "preload":
            return "preload"
        case "auto":
            return "auto"
        case str(unknown):
            raise ConfigurationError(f"{MODE}={unknown!r}: one of auto, torch, preload")
    if MILES_MODE in environ:
        return "torch" if environ[MILES_MODE] == "torch" else "preload"
    return "auto"


def mode_variable(environ: Mapping[str, str]) -> str:
    """Returns the name of the variable that sets the hook mode in this environment: ours, or that of miles."""
    return MODE if MODE in environ else MILES_MODE


def escaped(environ: Mapping[str, str]) -> str | None:
    """Returns the value of the escape variable, under either name; None where neither is set."""
    return environ.get(ESCAPE, environ.get(MILES_ESCAPE))


def resolve(environ: Mapping[str, str], gpus: Sequence[Gpu], cuda: str | None) -> HookMode:
    """Returns the mode to use with this environment on these GPUs with this CUDA wheel; `auto` is decided by them.

    Raises ConfigurationError for an unknown value of LIFECYCLE_HOOK_MODE.
    """
    mode = configured(environ)
    return choose(gpus, cuda) if mode == "auto" else mode


def resolve_hook_mode(environ: Mapping[str, str] | None = None, *, nvml: NvmlDriver | None = None) -> HookMode:
    """Returns the hook mode to give to torch_memory_saver in processes that get this environment on this host.

    LIFECYCLE_HOOK_MODE counts first (`torch`, `preload` or `auto`), then MILES_TMS_HOOK_MODE (`torch`; every other
    value means preload). With neither set, or with `auto`, the result is preload, which releases more, unless it would
    crash on one of the visible GPUs with the installed CUDA wheel. Where there is a GPU that cannot be queried, the
    result is torch, which is safe on every GPU, and a warning is logged.

    `environ` defaults to the environment of this process. Raises ConfigurationError, a RuntimeError, for an unknown
    value of LIFECYCLE_HOOK_MODE.
    """
    environ = os.environ if environ is None else environ
    mode = configured(environ)
    if mode != "auto":
        return mode
    gpus = visible_gpus(environ, nvml=nvml)
    if isinstance(gpus, Unmeasurable):
        _log.warning("hook mode torch is used, which is safe on every GPU: %s", gpus.reason)
        return "torch"
    return choose(gpus, installed_cuda())


def require_safe_hook_mode(environ: Mapping[str, str] | None = None, *, nvml: NvmlDriver | None = None) -> None:
    """Returns only if the hook mode of this process is safe on every GPU that it sees.

    For frameworks that start engines themselves. Only the variables of miles count: MILES_TMS_HOOK_MODE unset, empty or
    unknown means preload. The environment, GPUs and wheel are read when it is called, not at import. GPUs that cannot
    be queried are logged as a warning and pass.

    `environ` defaults to the environment of this process. Raises HookModeUnsafe, a RuntimeError that `python -O` keeps.
    """
    environ = os.environ if environ is None else environ
    gpus = visible_gpus(environ, nvml=nvml)
    if isinstance(gpus, Unmeasurable):
        _log.warning("the hook mode was not checked: %s", gpus.reason)
        return
    verdict = judge(environ.get(MILES_MODE), gpus, installed_cuda(), environ.get(MILES_ESCAPE))
    if isinstance(verdict, Refuted):
        raise HookModeUnsafe(verdict.reason)
    if isinstance(verdict, Proved):
        level = logging.WARNING if verdict.grade is Grade.ASSERTED else logging.INFO
        _log.log(level, "%s", verdict.reason)


def in_use(mode: HookMode, *, nvml: NvmlDriver | None = None) -> Verdict:
    """Returns whether `mode`, which this process uses, is safe on every GPU that it sees, however it was chosen."""
    gpus = visible_gpus(os.environ, nvml=nvml)
    if isinstance(gpus, Unmeasurable):
        return gpus
    return judge(mode, gpus, installed_cuda(), escaped(os.environ), variable=mode_variable(os.environ))


def visible_gpus(environ: Mapping[str, str], *, nvml: NvmlDriver | None = None) -> tuple[Gpu, ...] | Unmeasurable:
    """Returns every device that a process with this environment sees; empty where there is none.

    The driver is queried; torch, if it is installed, where the driver's library is not available.
    """
    try:
        devices = visible_devices((nvml or driver()).snapshot().devices, environ)
    except DriverUnavailable as error:
        if not any(Path("/dev").glob("nvidia[0-9]*")):
            return ()
        return _torch_gpus() or Unmeasurable(reason=f"there is a GPU, and {error}")
    return tuple(Gpu(device.name, device.major, device.minor) for device in devices)


def _torch_gpus() -> tuple[Gpu, ...]:
    """What torch shows. It is imported only here, and only where the driver's library is not available."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return ()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [(torch.cuda.get_device_name(each), *torch.cuda.get_device_capability(each)) for each in range(count)]
    return tuple(Gpu(*each) for each in found)
