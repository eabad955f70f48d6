"""The settings in force: defaults, then fleet.toml, then MILES_* aliases, then LIFECYCLE_* variables.

`load` reads the file once and yields one value. Imported only where settings are read: pydantic-settings takes a while.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import SettingsError

from ..core.errors import ConfigurationError
from ..core.policy import Policy
from ..fleet.groups import Group
from .fleet_file import FleetFile, place_of
from .problems import MUST_BE_A_TABLE, Problem
from .toml_file import TomlFile
from .values import FILE, PREFIX, MilesAliases, Settings, Values

__all__ = ["Loaded", "Settings", "load"]

T = TypeVar("T")

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
    #: The URL of the router in front of the fleet, where the file names one.
    router: str | None = None

    @property
    def policy(self) -> Policy:
        """What engines are held to."""
        return self.settings.policy()


def load(path: Path | None = None) -> Loaded:
    """The settings in force, with those of this fleet.toml, and its fleet.

    ConfigurationError has a line for each wrong value: where it was given, the value, and what is allowed there.
    """
    file = None if path is None else _read(path)
    given = {} if file is None else file.settings()
    settings = _valid(lambda: Settings(**given), _of_variable)
    origins = {name: _variable_of(name) or _key_of(name, given, path) for name in Settings.model_fields}
    urls, groups = ((), {}) if file is None else (file.urls(), file.described_groups())
    router = None if file is None else file.router
    return Loaded(settings, origins, tuple(sorted(_unknown())), urls, groups, router)


def _read(path: Path) -> FleetFile:
    """The file. Its values are allowed, also those that a variable replaces."""
    toml = TomlFile.read(path)

    def of_key(problem: Problem) -> str:
        return problem.at(f"{toml.place(problem.key)}: {'.'.join(problem.key)}")

    def of_setting(problem: Problem) -> str:
        name, *below = problem.key
        key = (*place_of(name), *below)
        return problem.at(f"{toml.place(key)}: {'.'.join(key)}", secret=_is_secret(name))

    file = _valid(lambda: FleetFile.model_validate(toml.document), of_key)
    _valid(lambda: Values.model_validate(file.settings(), context=FILE), of_setting)
    return file


def _valid(make: Callable[[], T], report: Callable[[Problem], str]) -> T:
    """What was made; ConfigurationError has a line of `report` for each problem."""
    try:
        return make()
    except ValidationError as error:
        lines = [report(Problem.of(each)) for each in error.errors()]
        raise ConfigurationError("\n".join(dict.fromkeys(lines))) from None
    except SettingsError as error:
        raise ConfigurationError(_not_json(str(error))) from None


def _of_variable(problem: Problem) -> str:
    """The message about a setting that a variable gave: alone, or as a key of a table in JSON."""
    name, *below = problem.key
    alone = f"{PREFIX}{name}__{below[0]}".upper() if below else ""
    exact = next((variable for variable in os.environ if variable.upper() == alone), None)
    if problem.message == MUST_BE_A_TABLE:
        problem = replace(problem, message=MUST_BE_JSON)
    return problem.at(exact or ".".join([_variable_of(name) or name, *below]), secret=_is_secret(name))


def _is_secret(name: str) -> bool:
    return name.endswith("_token")


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
    whole = [variable for variable in os.environ if variable.upper() == own]
    parts = [variable for variable in os.environ if variable.upper().startswith(f"{own}__")]
    aliases = [
        variable for field, variable in MilesAliases.VARIABLES.items() if field == name and variable in os.environ
    ]
    return next(iter(whole + parts + aliases), None)


def _unknown() -> set[str]:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    mine = {name for name in os.environ if name.upper().startswith(PREFIX)}
    return {name for name in mine if name.upper().partition("__")[0] not in known and name not in NOT_SETTINGS}
