"""The environment that each process of an engine must be started with, by kind of engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..nodes.cuda_wheel import major_of
from ..nodes.hook_mode import MILES_MODE, MODE, HookMode
from ..nodes.process_env import ALLOCATOR_NAMES, NCCL_GRAPHS, PRELOAD, preloaded

EngineKind = Literal["sglang", "vllm", "torch"]
ENGINES: tuple[str, ...] = get_args(EngineKind)

_EXPANDABLE = "expandable_segments"


@dataclass(frozen=True, slots=True)
class LaunchEnvironment:
    """Variables to set, and notes on what variables cannot say. `hook_mode` is None where the engine has none."""

    variables: Mapping[str, str]
    notes: tuple[str, ...] = ()
    hook_mode: HookMode | None = None


@dataclass(frozen=True, slots=True)
class _EngineTraits:
    """What launching one kind of engine needs, beside what all need."""

    variables: Mapping[str, str]
    notes: tuple[str, ...]
    #: Notes for hook mode torch.
    torch_mode_notes: tuple[str, ...]
    #: Whether it releases memory through torch_memory_saver, and so has a hook mode.
    uses_memory_saver: bool = True
    #: The note where it sets LD_PRELOAD for its own children; None where its launcher must.
    sets_preload: str | None = None


_TORCH_MODE = "set torch_memory_saver.hook_mode = 'torch' in each process before its first use"

_TRAITS: Mapping[EngineKind, _EngineTraits] = {
    "sglang": _EngineTraits(
        variables={NCCL_GRAPHS: "0"},
        notes=("start SGLang with --enable-memory-saver: without it a release answers 200 and frees nothing",),
        torch_mode_notes=(_TORCH_MODE, "SGLang itself chooses 'torch' on Intel GPUs only"),
        sets_preload="SGLang sets LD_PRELOAD for the processes that it starts; for Ray actors ask with --ray",
    ),
    "vllm": _EngineTraits(
        variables={"VLLM_SERVER_DEV_MODE": "1"},
        notes=("start vLLM with --enable-sleep-mode: without it a sleep frees nothing",),
        torch_mode_notes=(),
        uses_memory_saver=False,
    ),
    "torch": _EngineTraits(variables={NCCL_GRAPHS: "0"}, notes=(), torch_mode_notes=(_TORCH_MODE,)),
}


def launch_environment(
    kind: EngineKind, mode: HookMode, cuda: str | None, environ: Mapping[str, str], *, spawned: bool = False
) -> LaunchEnvironment:
    """Returns the environment for each process of an engine of this kind.

    `mode` is the hook mode, `cuda` the CUDA version of the torch wheel ("12.9"), `environ` what the process would get
    otherwise. `spawned`: another launcher starts the processes (Ray actors), so that the engine cannot set
    LD_PRELOAD for them.
    """
    traits = _TRAITS[kind]
    variables = {name: _without_expandable(environ.get(name, "")) for name in ALLOCATOR_NAMES} | dict(traits.variables)
    if not traits.uses_memory_saver:
        return LaunchEnvironment(variables, traits.notes)
    variables |= {MODE: mode, MILES_MODE: mode}
    notes = [*(traits.torch_mode_notes if mode == "torch" else ()), *traits.notes]
    if mode == "preload":
        library = preload_library(cuda)
        if traits.sets_preload is not None and not spawned:
            notes.append(traits.sets_preload)
        elif library is None:
            notes.append(f"torch_memory_saver is not installed here: {PRELOAD} must name its preload library")
        else:
            # With two libraries of torch_memory_saver it refuses to start: exactly one stays.
            variables[PRELOAD] = ":".join([str(library), *preloaded(environ)[1]])
    return LaunchEnvironment(variables, tuple(notes), mode)


def preload_library(cuda: str | None) -> Path | None:
    """Returns torch_memory_saver's library for LD_PRELOAD, of the wheel's CUDA major; None where it is not installed.

    Source: torch_memory_saver 0.0.10: torch_memory_saver_hook_mode_preload_cu12.abi3.so beside its package.
    """
    spec = importlib.util.find_spec("torch_memory_saver")
    if spec is None or spec.origin is None:
        return None
    folder, stem = Path(spec.origin).parent.parent, "torch_memory_saver_hook_mode_preload"
    major = major_of(cuda)
    names = [f"{stem}_cu{major}.abi3.so"] if major is not None else []
    return next((folder / name for name in [*names, f"{stem}.abi3.so"] if (folder / name).exists()), None)


def _without_expandable(settings: str) -> str:
    """The allocator settings with expandable segments off: torch_memory_saver cannot release memory in them."""
    parts = [part.strip() for part in settings.split(",") if part.strip()]
    kept = [part for part in parts if not part.startswith(f"{_EXPANDABLE}:")]
    return ",".join([*kept, f"{_EXPANDABLE}:False"])
