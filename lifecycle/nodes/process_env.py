"""How a running engine was started: the environment variables of its processes that decide what a release does."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ..core.readings import Process
from ..core.verdicts import NotApplicable, Refuted, Unmeasurable, Verdict
from .cuda_wheel import cuda_of_process
from .driver import NvmlDriver
from .hook_mode import MODE, configured, crash, escaped, judge, mode_variable, resolve, visible_gpus
from .port import ProcessEnv
from .processes import none_left, of_other_user, pids_of_trees

#: torch reads both names; torch_memory_saver 0.0.10 checks only the first. Source: its entrypoint, and torch 2.9.
ALLOCATOR_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")

PRELOAD, NCCL_GRAPHS = "LD_PRELOAD", "NCCL_GRAPH_REGISTER"

#: The variables that may leave the host, beside those that begin with SHAREABLE_PREFIX: any other may hold a secret.
SHAREABLE = frozenset({PRELOAD, NCCL_GRAPHS, *ALLOCATOR_NAMES})
SHAREABLE_PREFIX = "TMS_"

#: With it torch_memory_saver keeps its backup's host memory; without, a resume frees it. Source: its README, 0.0.10.
RETAIN = "TMS_RETAIN_CPU_BACKUP"


def process_env(processes: Sequence[Process]) -> tuple[ProcessEnv, ...] | Unmeasurable:
    """Returns the whole environment with which each process of these trees was started; it may hold secrets."""
    return env_of(pids_of_trees(processes)) or none_left(processes)


def env_of(pids: Collection[int]) -> tuple[ProcessEnv, ...] | Unmeasurable:
    """Returns the same of each of these processes; nothing where all have ended."""
    found = []
    for pid in sorted(pids):
        try:
            found.append(ProcessEnv(pid, environ_of(pid), cuda_of_process(pid)))
        except PermissionError:
            return of_other_user(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between the listing and the reading
    return tuple(found)


def shareable(found: Sequence[ProcessEnv]) -> tuple[ProcessEnv, ...]:
    """Returns these with the variables that decide what a release does and no others."""
    return tuple(ProcessEnv(each.pid, _shareable(each.environ), each.cuda) for each in found)


def _shareable(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name in SHAREABLE or name.startswith(SHAREABLE_PREFIX)}


def environ_of(pid: int) -> dict[str, str]:
    """Returns the variables with which this process was started. Raises OSError where they cannot be read."""
    raw = Path(f"/proc/{pid}/environ").read_bytes()
    pairs = (part.partition(b"=") for part in raw.split(b"\0") if b"=" in part)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}


def hook_mode_verdict(processes: Sequence[Process], *, nvml: NvmlDriver | None = None) -> Verdict:
    """Returns whether the hook mode of every process of these trees is safe on the GPUs that it sees.

    Of several verdicts it is the worst: Refuted, then Unmeasurable, then one about a process that sees a GPU.
    """
    found = process_env(processes)
    return found if isinstance(found, Unmeasurable) else verdict_on(found, nvml=nvml)


def verdict_on(found: Sequence[ProcessEnv], *, nvml: NvmlDriver | None = None) -> Verdict:
    """Returns the same of the processes of one engine that were started with these environments."""
    # A process that has not loaded torch yet will load the one that another process of its tree has loaded.
    cuda = next((each.cuda for each in found if each.cuda is not None), None)
    verdicts = [_verdict_of(each, each.cuda or cuda, nvml) for each in found]
    for worst in (Refuted, Unmeasurable):
        bad = next((verdict for verdict in verdicts if isinstance(verdict, worst)), None)
        if bad is not None:
            return bad
    return next((verdict for verdict in verdicts if not isinstance(verdict, NotApplicable)), verdicts[0])


def _verdict_of(process: ProcessEnv, cuda: str | None, nvml: NvmlDriver | None) -> Verdict:
    environ, variable = process.environ, mode_variable(process.environ)
    gpus = visible_gpus(environ, nvml=nvml)
    if isinstance(gpus, Unmeasurable):
        return gpus
    mode = environ.get(variable)
    if variable == MODE:
        try:
            configured(environ)
        except ValueError as error:
            return Refuted(reason=f"pid {process.pid} was started with {error}")
        mode = resolve(environ, gpus, cuda)
    libraries, _ = preloaded(environ)
    verdict = judge("preload" if libraries else mode, gpus, cuda, escaped(environ), variable=variable)
    if mode == "torch" and isinstance(verdict, Refuted):
        # The parent may preload the library whatever the variables say.
        # Source: sglang 0.5.23 sets LD_PRELOAD for its children on NVIDIA GPUs.
        contradiction = f"pid {process.pid} was to use hook mode torch and was started with {PRELOAD}={libraries[0]}"
        gpu = next(gpu for gpu in gpus if gpu.blackwell)
        return Refuted(reason=f"{contradiction}; start it without that library: {crash(gpu, cuda)}")
    return verdict


def preloads_twice(environ: Mapping[str, str]) -> bool:
    """Returns whether two libraries of torch_memory_saver are preloaded, with which it refuses to start."""
    return len(preloaded(environ)[0]) > 1


def preloaded(environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Returns the libraries of torch_memory_saver in LD_PRELOAD, and the others.

    Colons or spaces separate them. Source: ld.so(8).
    """
    paths = [path for path in environ.get(PRELOAD, "").replace(" ", ":").split(":") if path]
    savers = [path for path in paths if "torch_memory_saver" in path]
    return savers, [path for path in paths if path not in savers]


def retains_backup(processes: Sequence[Process]) -> bool:
    """Returns whether these processes are known to keep the host memory of a backup from release to release.

    False where a process is on another node or its environment cannot be read.
    """
    return not any(process.agent is not None for process in processes) and retained_by(pids_of_trees(processes))


def retained_by(pids: Collection[int]) -> bool:
    """Returns the same of the processes of these pids, which are on this host."""
    return any(_environ_or_none(pid).get(RETAIN) == "1" for pid in pids)


def _environ_or_none(pid: int) -> Mapping[str, str]:
    try:
        return environ_of(pid)
    except OSError:
        return {}


def expandable(environ: Mapping[str, str]) -> str | None:
    """Returns `NAME=VALUE` of the allocator setting that turns expandable segments on; None where they are off.

    Memory in expandable segments cannot be released by torch_memory_saver.
    """
    for name in ALLOCATOR_NAMES:
        settings = environ.get(name, "").replace(" ", "").lower()
        if "expandable_segments:true" in settings or "expandable_segments:1" in settings:
            return f"{name}={environ[name]}"
    return None
