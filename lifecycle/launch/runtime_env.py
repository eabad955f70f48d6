"""A Ray runtime_env with which an actor, and the processes of the engine that it starts, have what they need.

Ray starts a worker process for each runtime_env, and sets its variables before Python begins: LD_PRELOAD takes effect
there. An actor that is created in another actor, or in a task, inherits the runtime_env of that one; its own variables
are added. One that Ray restarts has the same again. Source: ray 2.60.0, run (tests/ray/test_ray_environment.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import ConfigurationError
from ..nodes.hook_mode import MILES_MODE, MODE, HookMode
from .environment import EngineKind, launch_environment
from .miles import forwarded

#: With it Ray leaves CUDA_VISIBLE_DEVICES as it is: an actor sees every GPU of its node, by the index that that has.
EVERY_GPU = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"


def runtime_env(
    kind: EngineKind,
    mode: HookMode,
    cuda: str | None,
    *,
    base: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    threshold_gib: float | None = None,
    every_gpu: bool = False,
) -> dict[str, Any]:
    """Returns the runtime_env of an actor that starts an engine of this kind: `base`, with these variables too.

    - `mode`, `cuda`: the hook mode, and the CUDA version of the torch wheel ("12.9"), as of `launch_environment`.
    - `base`: what the actor has otherwise; whatever else is in it stays (`py_executable`, `working_dir`, `pip`).
    - `environ`: what the actor inherits, of its job or of the actor that creates it: libraries that are preloaded there
      are preloaded still.
    - `threshold_gib`: the residual threshold, for what measures it there.
    - `every_gpu`: Ray hides no GPU from the actor, as of slime's and miles'; indices are those of the node then.

    Raises ConfigurationError where `base` has variables that are no text, or another hook mode.
    """
    own = _variables(base or {})
    for name in (MODE, MILES_MODE):
        if own.get(name, mode) != mode:
            raise ConfigurationError(
                f"the runtime_env sets {name}={own[name]!r}, and the hook mode is to be {mode!r}; take out one of them"
            )
    launch = launch_environment(kind, mode, cuda, {**(environ or {}), **own}, spawned=True)
    variables = {**own, **launch.variables}
    variables |= {} if threshold_gib is None else forwarded(threshold_gib)
    variables |= {EVERY_GPU: "1"} if every_gpu else {}
    return {**(base or {}), "env_vars": variables}


def _variables(base: Mapping[str, Any]) -> dict[str, str]:
    given = base.get("env_vars") or {}
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"env_vars of a runtime_env must be a mapping of names to text, got {given!r:.200}")
    for name, value in given.items():
        if not isinstance(value, str) or not isinstance(name, str):
            raise ConfigurationError(f"env_vars of a runtime_env: {name!r} must be text, got {value!r:.80}")
    return dict(given)
