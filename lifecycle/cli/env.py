"""`lifecycle env`: what must hold when an engine is started."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigurationError
from ..core.facts import Grade
from ..core.verdicts import Proved, Refuted, Unmeasurable, Verdict
from ..launch.environment import ENGINES, LaunchEnvironment, launch_environment
from ..nodes.cuda_wheel import installed_cuda
from ..nodes.hook_mode import MODE, Gpu, escaped, judge, resolve, visible_gpus
from . import FAILED, OK

if TYPE_CHECKING:
    from ..settings.schema import Loaded


def environment_of(engine: str, loaded: Loaded, *, ray: bool = False) -> tuple[LaunchEnvironment, Verdict]:
    """Returns the variables for an engine of this kind started from here, and whether its hook mode is safe here."""
    if engine not in ENGINES:
        raise ConfigurationError(f"--engine {engine!r}: one of {', '.join(ENGINES)}")
    settings, cuda = loaded.settings, installed_cuda()
    found = visible_gpus(os.environ)
    gpus: tuple[Gpu, ...] = () if isinstance(found, Unmeasurable) else found
    environ = {**os.environ, **settings.environment()}
    mode = resolve(environ, gpus, cuda)
    kind: Any = engine
    launch = launch_environment(kind, mode, cuda, os.environ, spawned=ray)
    if launch.hook_mode is None:
        verdict: Verdict = Proved(grade=Grade.REPORTED, reason=f"{engine} has no hook mode")
    elif isinstance(found, Unmeasurable):
        verdict = found
    else:
        verdict = judge(mode, gpus, cuda, escaped(environ), variable=MODE)
    return replace(launch, variables=settings.environment() | dict(launch.variables)), verdict


def env(
    engine: Annotated[str, typer.Option(help=f"One of {', '.join(ENGINES)}.")],
    file: Annotated[Path | None, typer.Argument(metavar="[fleet.toml]", help="Settings of a fleet.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Ray starts the processes: a runtime_env.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """The environment to give to each process of an engine. Exit 1 where its hook mode would crash it here."""
    from ..settings.schema import load

    launch, verdict = environment_of(engine, load(file), ray=ray)
    if as_json:
        report = {"env_vars": dict(launch.variables), "notes": list(launch.notes), "hook_mode": str(verdict)}
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in launch.variables.items()))
        print("\n".join(f"# {line}" for line in (*launch.notes, f"hook mode: {verdict}")))
    return FAILED if isinstance(verdict, Refuted) else OK


def register(app: typer.Typer) -> None:
    """`lifecycle env` is a command of `app`."""
    app.command()(env)
