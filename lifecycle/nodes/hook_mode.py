"""torch_memory_saver's hook mode against GPU architecture and CUDA wheel: what crashes is refused beforehand.

`preload` (its default: LD_PRELOAD over cudaMalloc) ends the process without a traceback on Blackwell (compute
capability 10 and up) with CUDA 12 wheels; `torch` (a pluggable allocator) does not. Source: miles, CUDA 12.9, RTX 5090.
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
from .visible_devices import visible

HookMode = Literal["torch", "preload"]

#: Ours, where `auto` is the default and an unknown value an error; and theirs, where everything but `torch` is preload.
MODE, MILES_MODE = "LIFECYCLE_HOOK_MODE", "MILES_TMS_HOOK_MODE"
ESCAPE, MILES_ESCAPE = "LIFECYCLE_ALLOW_PRELOAD_ON_BLACKWELL", "MILES_TMS_ALLOW_PRELOAD_ON_BLACKWELL"

BLACKWELL_MAJOR = 10
SAFE_CUDA_MAJOR = 13

_log = logging.getLogger("lifecycle.hook_mode")


class HookModeUnsafe(ConfigurationError):
    """The hook mode would crash the process on one of its GPUs; the message has the remedies."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A visible device, as far as the hook mode is concerned."""

    name: str
    major: int
    minor: int

    @property
    def blackwell(self) -> bool:
        """Whether it is of the architecture, or a later one, on which `preload` crashes with CUDA 12."""
        return self.major >= BLACKWELL_MAJOR

    def __str__(self) -> str:
        return f"{self.name} (sm_{self.major}{self.minor})"


def judge(mode: str | None, gpus: Sequence[Gpu], cuda: str | None, escape: str | None) -> Verdict:
    """Whether this mode is safe on every one of these GPUs: the truth table.

    `mode` is the variable's value: exactly "torch" is torch, and everything else, None too, means preload. `cuda` is
    the wheel's CUDA version. `escape` is the escape variable's value, of which only "1" counts.
    """
    if not gpus:
        return NotApplicable(reason="no GPU is visible")
    if mode == "torch":
        return Proved(grade=Grade.REPORTED, reason="hook mode torch is safe on every GPU")
    risky = next((gpu for gpu in gpus if gpu.blackwell), None)
    if risky is None:
        return Proved(grade=Grade.REPORTED, reason=f"hook mode preload is safe on {gpus[0]}")
    major = major_of(cuda)
    if major is not None and major >= SAFE_CUDA_MAJOR:
        return Proved(grade=Grade.REPORTED, reason=f"hook mode preload on {risky} is safe with CUDA {cuda}")
    if escape == "1":
        why = f"hook mode preload on {risky} with CUDA {cuda or 'unknown'} was allowed by {MILES_ESCAPE}=1"
        return Proved(grade=Grade.DECLARED, reason=why)
    return Refuted(reason=_refusal(mode, risky, cuda))


def choose(gpus: Sequence[Gpu], cuda: str | None) -> HookMode:
    """The mode that `auto` means here: preload, which releases more, unless it would crash."""
    return "torch" if isinstance(judge("preload", gpus, cuda, None), Refuted) else "preload"


def configured(environ: Mapping[str, str]) -> HookMode | Literal["auto"]:
    """The mode that this environment asks for; ConfigurationError for an unknown LIFECYCLE_HOOK_MODE."""
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


def resolve(environ: Mapping[str, str], gpus: Sequence[Gpu], cuda: str | None) -> HookMode:
    """The mode to use with this environment on these GPUs."""
    asked = configured(environ)
    return choose(gpus, cuda) if asked == "auto" else asked


def escaped(environ: Mapping[str, str]) -> str | None:
    """The value of the escape variable, under either name."""
    return environ.get(ESCAPE, environ.get(MILES_ESCAPE))


def require_safe_hook_mode(environ: Mapping[str, str] | None = None, *, nvml: NvmlDriver | None = None) -> None:
    """The hook mode of this process is safe on every GPU that it sees; HookModeUnsafe otherwise.

    For frameworks that start engines themselves: follows the table, so MILES_TMS_HOOK_MODE unset, empty or unknown
    means preload. Everything is read now, not at import. It is an exception, so `python -O` keeps it.
    """
    here = os.environ if environ is None else environ
    gpus = visible_gpus(here, nvml=nvml)
    if isinstance(gpus, Unmeasurable):
        _log.warning("the hook mode was not checked: %s", gpus.reason)
        return
    verdict = judge(here.get(MILES_MODE), gpus, installed_cuda(), here.get(MILES_ESCAPE))
    if isinstance(verdict, Refuted):
        raise HookModeUnsafe(verdict.reason)
    if isinstance(verdict, Proved):
        level = logging.WARNING if verdict.grade is Grade.DECLARED else logging.INFO
        _log.log(level, "%s", verdict.reason)


def in_use(mode: HookMode, *, nvml: NvmlDriver | None = None) -> Verdict:
    """Whether the mode that this process uses is safe on every GPU that it sees, however it was chosen."""
    gpus = visible_gpus(os.environ, nvml=nvml)
    return gpus if isinstance(gpus, Unmeasurable) else judge(mode, gpus, installed_cuda(), escaped(os.environ))


def visible_gpus(environ: Mapping[str, str], *, nvml: NvmlDriver | None = None) -> tuple[Gpu, ...] | Unmeasurable:
    """Every device that a process with this environment sees; empty where there is none.

    Asks the driver; torch where the driver's library cannot be asked and torch is there.
    """
    try:
        devices = visible((nvml or driver()).snapshot().devices, environ)
    except DriverUnavailable as error:
        if not any(Path("/dev").glob("nvidia[0-9]*")):
            return ()
        return _torch_gpus() or Unmeasurable(reason=f"there is a GPU, and {error}")
    return tuple(Gpu(device.name, device.major, device.minor) for device in devices)


def _torch_gpus() -> tuple[Gpu, ...]:
    """What torch says, where it is installed: imported only here, and only where the driver cannot be asked."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return ()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [(torch.cuda.get_device_name(each), *torch.cuda.get_device_capability(each)) for each in range(count)]
    return tuple(Gpu(*each) for each in found)


def _refusal(mode: str | None, gpu: Gpu, cuda: str | None) -> str:
    said = f"{MILES_MODE} is unset" if mode is None else f"{MILES_MODE} is {mode!r}"
    return (
        f"hook mode preload crashes the process without a traceback on {gpu} with CUDA {cuda or 'unknown'} wheels "
        f"({said}, which means preload). Either set {MILES_MODE}=torch; or install a torch wheel for CUDA "
        f"{SAFE_CUDA_MAJOR} or later; or, at your own risk, set {MILES_ESCAPE}=1"
    )
