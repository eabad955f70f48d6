"""How a running engine was started: the variables of its processes that decide what a release does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.readings import Process
from ..core.verdicts import NotApplicable, Refuted, Unmeasurable, Verdict
from .cuda_wheel import cuda_of_process
from .driver import NvmlDriver
from .hook_mode import MILES_MODE, MODE, configured, escaped, judge, resolve, visible_gpus
from .process_memory import tree

#: torch reads both names; torch_memory_saver 0.0.10 checks only the first. Source: its entrypoint, and torch 2.9.
ALLOCATOR_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")

PRELOAD, NCCL_GRAPHS = "LD_PRELOAD", "NCCL_GRAPH_REGISTER"

#: All that is told of a process's environment to others, with what begins with `TMS_`: the rest may hold secrets.
TOLD = frozenset({PRELOAD, NCCL_GRAPHS, *ALLOCATOR_NAMES})

#: With it torch_memory_saver keeps its backup's host memory; without, a resume frees it. Source: its README, 0.0.10.
RETAIN = "TMS_RETAIN_CPU_BACKUP"


@dataclass(frozen=True, slots=True)
class Launched:
    """One process of an engine: its environment, and the CUDA version of the torch that it has loaded."""

    pid: int
    environ: Mapping[str, str]
    cuda: str | None


def launched_with(processes: Sequence[Process]) -> tuple[Launched, ...] | Unmeasurable:
    """How every process below these was started; those that were born with the same variables stand there once each."""
    found = []
    for pid in sorted({pid for process in processes for pid in tree(process)}):
        try:
            found.append(Launched(pid, environ_of(pid), cuda_of_process(pid)))
        except PermissionError:
            return Unmeasurable(reason=f"pid {pid} belongs to another user; run as that user or as root")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between the listing and the reading
    return tuple(found) or Unmeasurable(reason="no process of the engine is left to look at")


def told_of(processes: Sequence[Process]) -> tuple[Launched, ...] | Unmeasurable:
    """`launched_with`, with the variables that decide what a release does and no others."""
    found = launched_with(processes)
    if isinstance(found, Unmeasurable):
        return found
    return tuple(Launched(each.pid, _told(each.environ), each.cuda) for each in found)


def _told(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name in TOLD or name.startswith("TMS_")}


def environ_of(pid: int) -> dict[str, str]:
    """The variables with which this process was started."""
    raw = Path(f"/proc/{pid}/environ").read_bytes()
    pairs = (part.partition(b"=") for part in raw.split(b"\0") if b"=" in part)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}


def hook_mode_verdict(processes: Sequence[Process], *, nvml: NvmlDriver | None = None) -> Verdict:
    """Whether the hook mode of every process below these is safe on the GPUs that it sees; the worst of them."""
    found = launched_with(processes)
    if isinstance(found, Unmeasurable):
        return found
    # Which CUDA a child will load is told by the one of them that has loaded torch.
    cuda = next((each.cuda for each in found if each.cuda is not None), None)
    verdicts = [_of_one(each, each.cuda or cuda, nvml) for each in found]
    for worst in (Refuted, Unmeasurable):
        bad = next((verdict for verdict in verdicts if isinstance(verdict, worst)), None)
        if bad is not None:
            return bad
    return next((verdict for verdict in verdicts if not isinstance(verdict, NotApplicable)), verdicts[0])


def _of_one(process: Launched, cuda: str | None, nvml: NvmlDriver | None) -> Verdict:
    gpus = visible_gpus(process.environ, nvml=nvml)
    if isinstance(gpus, Unmeasurable):
        return gpus
    asked = process.environ.get(MILES_MODE)
    if MODE in process.environ:
        try:
            configured(process.environ)
        except ValueError as error:
            return Refuted(reason=f"pid {process.pid} was started with {error}")
        asked = resolve(process.environ, gpus, cuda)
    loaded = _preloaded(process.environ)
    verdict = judge("preload" if loaded else asked, gpus, cuda, escaped(process.environ))
    if asked == "torch" and isinstance(verdict, Refuted):
        # Its variables ask for torch, and whoever started it preloads all the same: SGLang does, on NVIDIA GPUs.
        told = f"pid {process.pid} was to use hook mode torch and was started with {PRELOAD}={loaded[0]}"
        return Refuted(reason=f"{told}; start it without that library. {verdict.reason}")
    return verdict


def preloads_twice(environ: Mapping[str, str]) -> bool:
    """Whether two libraries of torch_memory_saver are preloaded: with more than one it refuses to start."""
    return len(_preloaded(environ)) > 1


def _preloaded(environ: Mapping[str, str]) -> list[str]:
    """The libraries of torch_memory_saver that are preloaded."""
    return [path for path in environ.get(PRELOAD, "").replace(" ", ":").split(":") if "torch_memory_saver" in path]


def retains_backup(processes: Sequence[Process]) -> bool:
    """Whether these processes are known to keep the host memory of a backup from release to release."""
    if any(process.agent is not None for process in processes):
        return False
    return any(_environ_or_none(pid).get(RETAIN) == "1" for process in processes for pid in tree(process))


def _environ_or_none(pid: int) -> Mapping[str, str]:
    try:
        return environ_of(pid)
    except OSError:
        return {}


def expandable(environ: Mapping[str, str]) -> str | None:
    """The allocator setting that torch_memory_saver cannot live with, as it stands there; None where there is none."""
    for name in ALLOCATOR_NAMES:
        settings = environ.get(name, "").replace(" ", "").lower()
        if "expandable_segments:true" in settings or "expandable_segments:1" in settings:
            return f"{name}={environ[name]}"
    return None
