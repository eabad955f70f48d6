"""What must hold when an engine is started, as the environment to give to each of its processes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..nodes.cuda_wheel import major_of
from ..nodes.hook_mode import MILES_MODE, MODE, HookMode
from ..nodes.process_env import ALLOCATOR_NAMES

EngineKind = Literal["sglang", "vllm", "torch"]
ENGINES: tuple[str, ...] = get_args(EngineKind)

_EXPANDABLE = "expandable_segments"


@dataclass(frozen=True, slots=True)
class LaunchEnvironment:
    """Variables to set, and what cannot be said by variables."""

    variables: Mapping[str, str]
    notes: tuple[str, ...] = ()


def launch_environment(
    kind: EngineKind, mode: HookMode, cuda: str | None, environ: Mapping[str, str], *, spawned: bool = False
) -> LaunchEnvironment:
    """The environment for each process of an engine of this kind; `environ` is what it would get otherwise.

    `spawned`: somebody else starts the processes (Ray actors), so that the engine cannot set LD_PRELOAD for them.
    """
    variables = {name: _without_expandable(environ.get(name, "")) for name in ALLOCATOR_NAMES}
    if kind == "vllm":
        variables["VLLM_SERVER_DEV_MODE"] = "1"
        return LaunchEnvironment(variables, ("start vLLM with --enable-sleep-mode: without it a sleep frees nothing",))
    variables |= {MODE: mode, MILES_MODE: mode, "NCCL_GRAPH_REGISTER": "0"}
    notes = _mode_notes(kind, mode)
    if kind == "sglang":
        notes.append("start SGLang with --enable-memory-saver: without it a release answers 200 and frees nothing")
    if mode == "preload" and (kind == "torch" or spawned):
        library = preload_library(cuda)
        if library is None:
            notes.append("torch_memory_saver is not installed here: LD_PRELOAD must name its preload library")
        else:
            variables["LD_PRELOAD"] = _preloading(library, environ.get("LD_PRELOAD", ""))
    elif mode == "preload":
        notes.append("SGLang sets LD_PRELOAD for the processes that it starts; for Ray actors ask with --ray")
    return LaunchEnvironment(variables, tuple(notes))


def preload_library(cuda: str | None) -> Path | None:
    """torch_memory_saver's library for LD_PRELOAD, of the wheel's CUDA major; None where it is not installed.

    Source: torch_memory_saver 0.0.10: torch_memory_saver_hook_mode_preload_cu12.abi3.so beside its package.
    """
    spec = importlib.util.find_spec("torch_memory_saver")
    if spec is None or spec.origin is None:
        return None
    folder, stem = Path(spec.origin).parent.parent, "torch_memory_saver_hook_mode_preload"
    major = major_of(cuda)
    names = [f"{stem}_cu{major}.abi3.so"] if major is not None else []
    return next((folder / name for name in [*names, f"{stem}.abi3.so"] if (folder / name).exists()), None)


def _mode_notes(kind: EngineKind, mode: HookMode) -> list[str]:
    if mode == "preload":
        return []
    told = ["set torch_memory_saver.hook_mode = 'torch' in each process before its first use"]
    return [*told, "SGLang itself chooses 'torch' on Intel GPUs only"] if kind == "sglang" else told


def _without_expandable(settings: str) -> str:
    """The allocator settings, with expandable segments off: released memory would not be theirs to give back."""
    parts = [part.strip() for part in settings.split(",") if part.strip()]
    kept = [part for part in parts if not part.startswith(f"{_EXPANDABLE}:")]
    return ",".join([*kept, f"{_EXPANDABLE}:False"])


def _preloading(library: Path, before: str) -> str:
    """LD_PRELOAD with exactly one library of torch_memory_saver in it: with two it refuses to start."""
    kept = [path for path in before.split(":") if path and "torch_memory_saver" not in path]
    return ":".join([str(library), *kept])
