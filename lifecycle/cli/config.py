"""`lifecycle config`: the settings in force, and where each value came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.facts import Grade
from .output import say

if TYPE_CHECKING:
    from ..settings.schema import Loaded


def rows_of(loaded: Loaded) -> list[tuple[str, Any, str]]:
    """(key, value, origin) of every setting, secrets hidden."""
    settings = loaded.settings
    return [(name, _shown(getattr(settings, name)), loaded.origins[name]) for name in type(settings).model_fields]


def config(
    file: Annotated[Path | None, typer.Argument(metavar="[fleet.toml]", help="Settings of a fleet.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Show the settings in force and their origins. Variables override the file, LIFECYCLE_* override MILES_*."""
    from ..settings.schema import load

    loaded = load(file)
    rows = rows_of(loaded)
    if as_json:
        print(json.dumps({name: {"value": value, "origin": origin} for name, value, origin in rows}, indent=2))
        return 0
    texts = [(name, value if isinstance(value, str) else json.dumps(value), origin) for name, value, origin in rows]
    widths = [max(len(row[column]) for row in texts) for column in (0, 1)]
    say(f"{name.ljust(widths[0])}  {value.ljust(widths[1])}  {origin}" for name, value, origin in texts)
    if loaded.unknown:
        say(f"warning: {name} is set, and is no setting" for name in loaded.unknown)
    return 0


def register(app: typer.Typer) -> None:
    """`lifecycle config` is a command of `app`."""
    app.command()(config)


def _shown(value: Any) -> Any:
    from pydantic import SecretStr

    if isinstance(value, SecretStr):
        return "(set)"
    if isinstance(value, dict):
        return {key: each.name.lower() if isinstance(each, Grade) else each for key, each in value.items()}
    return value
