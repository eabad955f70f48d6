"""The settings in force: defaults, then fleet.toml, then MILES_* aliases, then LIFECYCLE_* variables.

`load` reads the file once and yields one value. Imported only where settings are read: pydantic-settings takes a while.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError

from ..core.errors import ConfigurationError
from ..core.policy import Policy
from ..fleet.groups import Group
from .fleet_file import FleetFile, place_of
from .problems import MUST_BE_A_TABLE, Problem
from .toml_file import TomlFile
from .values import PREFIX, MilesAliases, Settings

__all__ = ["Loaded", "Settings", "load"]

MUST_BE_JSON = f"must be a valid dictionary, as JSON: {PREFIX}DEADLINES_S='{{\"drain\": 60}}'"

#: Variables of this prefix that others read.
NOT_SETTINGS = frozenset(
    f"LIFECYCLE_{name}" for name in ("STATE_DIR", "GPU_REQUIRED", "GPU_REPORT", "GPU_CYCLES", "REAL", "EXAMPLES")
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings in force, where each came from, and the fleet that the file describes."""

    settings: Settings
    #: By setting: a variable's name, the file's key, or `default`.
    origins: Mapping[str, str]
    #: Variables that look like settings and are none.
    unknown: tuple[str, ...] = ()
    #: The engines of the file, as URLs whose options are their names and groups.
    urls: tuple[str, ...] = ()
    groups: Mapping[str, Group] = field(default_factory=dict)

    @property
    def policy(self) -> Policy:
        """What engines are held to."""
        return self.settings.policy()


def load(path: Path | None = None) -> Loaded:
    """The settings in force, with those of this fleet.toml, and its fleet.

    ConfigurationError has a line for each wrong value: where it was given, the value, and what is allowed there.
    """
    toml = TomlFile.read(path) if path is not None else None
    file = None if toml is None else _checked(toml)
    given = {} if file is None else file.settings()
    try:
        settings = Settings(**given)
    except ValidationError as error:
        lines = [_reported(Problem.of(each), toml) for each in error.errors()]
        raise ConfigurationError("\n".join(dict.fromkeys(lines))) from None
    except SettingsError as error:
        raise ConfigurationError(_not_json(str(error))) from None
    origins = {name: _variable_of(name) or _key_of(name, given, path) for name in Settings.model_fields}
    urls, groups = ((), {}) if file is None else (file.urls(), file.described_groups())
    return Loaded(settings, origins, tuple(sorted(_unknown())), urls, groups)


def _checked(toml: TomlFile) -> FleetFile:
    try:
        return FleetFile.model_validate(toml.document)
    except ValidationError as error:
        problems = map(Problem.of, error.errors())
        lines = [each.at(f"{toml.place(each.key)}: {'.'.join(each.key)}") for each in problems]
        raise ConfigurationError("\n".join(lines)) from None


def _reported(problem: Problem, toml: TomlFile | None) -> str:
    """The message about a setting. It names the variable that gave the value, else the key of the file."""
    name, *below = problem.key
    secret = name.endswith("_token")
    variable = _variable_of_key(name, below) if below else _variable_of(name)
    if variable is None and toml is not None:
        key = (*place_of(name), *below)
        return problem.at(f"{toml.place(key)}: {'.'.join(key)}", secret=secret)
    if problem.message == MUST_BE_A_TABLE:
        problem = replace(problem, message=MUST_BE_JSON)
    return problem.at(variable or ".".join(problem.key), secret=secret)


def _not_json(message: str) -> str:
    """The message about a variable that should give a table as JSON; pydantic-settings names only the field."""
    name = re.search(r'field "(\w+)"', message)
    variable = _variable_of(name[1]) if name else None
    if variable is None:
        return f"{message}: {MUST_BE_JSON}"
    return Problem((variable,), MUST_BE_JSON, (os.environ.get(variable),)).at(variable)


def _key_of(name: str, given: Mapping[str, Any], path: Path | None) -> str:
    return f"{path}: {'.'.join(place_of(name))}" if name in given else "default"


def _variable_of(name: str) -> str | None:
    """The variable that this setting, or a part of it, comes from; None where it comes from none."""
    own = PREFIX + name.upper()
    for variable in os.environ:
        if variable.upper() == own or variable.upper().startswith(f"{own}__"):
            return variable
    alias = MilesAliases.VARIABLES.get(name, "")
    return alias if alias in os.environ else None


def _variable_of_key(name: str, below: Sequence[str]) -> str | None:
    """The variable that this key of a table comes from: its own, or one that gives the table as JSON."""
    variables = {variable.upper(): variable for variable in os.environ}
    own = PREFIX + name.upper()
    alone, table = variables.get(f"{own}__{below[0].upper()}"), variables.get(own)
    if alone is not None:
        return alone
    return ".".join([table, *below]) if table is not None and below[0] in json.loads(os.environ[table]) else None


def _unknown() -> set[str]:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    mine = {name for name in os.environ if name.upper().startswith(PREFIX)}
    return {name for name in mine if name.upper().partition("__")[0] not in known and name not in NOT_SETTINGS}
