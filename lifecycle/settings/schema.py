"""Every setting in one typed place: defaults, then fleet.toml, then MILES_* aliases, then LIFECYCLE_* variables.

Imported only where settings are read: pydantic-settings takes a while.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from ..core.errors import ConfigurationError
from ..core.facts import Grade, PauseMode
from ..core.policy import ACCEPT, DEADLINES_S, PAUSE_MODE, RESIDUAL_THRESHOLD_GIB, OnFailure, Policy
from ..core.units import MIB
from ..launch.miles import MILES_THRESHOLD, forwarded
from ..nodes.hook_mode import ESCAPE, MILES_ESCAPE, MILES_MODE, MODE
from .fleet_file import read

PREFIX = "LIFECYCLE_"

#: Where the agent listens unless told otherwise.
AGENT_PORT = 30999


def _number(allowed: str, fits: Callable[[float], bool]) -> BeforeValidator:
    """Takes finite numbers that fit, and says what is allowed of everything else."""

    def check(value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number) or not fits(number):
            raise ValueError(f"must be a finite number {allowed}")
        return number

    return BeforeValidator(check)


def _only_1(value: Any) -> bool:
    if str(value) not in ("0", "1", "True", "False"):
        raise ValueError("must be 1 or 0")
    return str(value) in ("1", "True")


def _grade(value: Any) -> Grade:
    return value if isinstance(value, Grade) else Grade.named(str(value))


def _named(known: Mapping[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def check(given: dict[str, Any]) -> dict[str, Any]:
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(known)}")
        return given

    return check


Positive = Annotated[float, _number("> 0", lambda number: number > 0)]
NotNegative = Annotated[float, _number(">= 0", lambda number: number >= 0)]
Fraction = Annotated[float, _number("> 0 and <= 1", lambda number: 0 < number <= 1)]


class _MilesAliases(PydanticBaseSettingsSource):
    """The variables of miles, by the settings that they stand for. Their hook mode follows its own table."""

    VARIABLES: Mapping[str, str] = {
        "residual_threshold_gib": MILES_THRESHOLD,
        "hook_mode": MILES_MODE,
        "allow_preload_on_blackwell": MILES_ESCAPE,
    }

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Never asked: all values are given at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        told = {field: os.environ[name] for field, name in self.VARIABLES.items() if name in os.environ}
        values: dict[str, Any] = dict(told)
        if "hook_mode" in told:
            values["hook_mode"] = "torch" if told["hook_mode"] == "torch" else "preload"
        if "allow_preload_on_blackwell" in told:
            values["allow_preload_on_blackwell"] = told["allow_preload_on_blackwell"] == "1"
        return values


class Settings(BaseSettings):
    """What is in force. Those of `Policy` have its names and defaults; times in seconds, sizes by their suffix."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    residual_threshold_gib: Positive = RESIDUAL_THRESHOLD_GIB
    returned_fraction: Fraction = 0.9
    visible_bytes: Annotated[int, Field(ge=0)] = 64 * MIB
    visible_fraction: Fraction = 0.05
    pause_mode: PauseMode = PAUSE_MODE
    deadlines_s: Annotated[dict[str, Positive], AfterValidator(_named(DEADLINES_S))] = Field(default_factory=dict)
    accept: Annotated[dict[str, Annotated[Grade, BeforeValidator(_grade)]], AfterValidator(_named(ACCEPT))] = Field(
        default_factory=dict
    )
    unprovable: Literal["refuse", "warn"] = "refuse"
    on_failure: OnFailure = "restore"
    settle_s: Positive = 5.0
    poll_s: Positive = 0.1
    residual_scope: Literal["process", "device"] = "process"
    residual_still_s: NotNegative = 0.0
    room_wait_s: Positive = 30.0
    canary_tokens: Annotated[int, Field(ge=0)] = 0

    hook_mode: Literal["auto", "torch", "preload"] = "auto"
    allow_preload_on_blackwell: Annotated[bool, BeforeValidator(_only_1)] = False
    agent_host: str = "127.0.0.1"
    agent_port: Annotated[int, Field(ge=0, le=65535)] = AGENT_PORT
    agent_token: SecretStr | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The strongest first; what is given to the constructor is what the file says."""
        return env_settings, _MilesAliases(settings_cls), init_settings

    def policy(self) -> Policy:
        """What engines are held to."""
        return Policy(**{field.name: getattr(self, field.name) for field in fields(Policy)})

    def environment(self) -> dict[str, str]:
        """The variables that every process which hosts an engine or a probe must be given."""
        told = {**forwarded(self.residual_threshold_gib), MODE: self.hook_mode}
        return {**told, ESCAPE: "1", MILES_ESCAPE: "1"} if self.allow_preload_on_blackwell else told


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and where each came from: a variable's name, the file's key, or `default`."""

    settings: Settings
    origins: Mapping[str, str]
    #: Variables that look like settings and are none.
    unknown: tuple[str, ...] = ()


def load(path: Path | None = None) -> Loaded:
    """The settings in force, with those of this fleet.toml; ConfigurationError names key, value and what is allowed."""
    told = _of_file(path) if path is not None else {}
    try:
        settings = Settings(**{name: value for name, (value, _) in told.items()})
    except ValidationError as error:
        lines = [_problem(each, told) for each in error.errors()]
        raise ConfigurationError("\n".join(dict.fromkeys(lines))) from None
    except SettingsError as error:
        raise ConfigurationError(f"{error}; give it as JSON, as in {PREFIX}DEADLINES_S='{{\"drain\": 60}}'") from None
    origins = {name: _origin(name, told) for name in Settings.model_fields}
    return Loaded(settings, origins, tuple(sorted(_unknown())))


def _of_file(path: Path) -> dict[str, tuple[Any, str]]:
    """What the file says, by setting: the value, and the key under which it stands there."""
    read(path)  # its own errors name the line
    document = tomllib.loads(path.read_text())
    told: dict[str, tuple[Any, str]] = {}
    for table, prefix in (("policy", ""), ("launch", ""), ("agent", "agent_")):
        for key, value in document.get(table, {}).items():
            told[prefix + key] = (value, f"{path}: {table}.{key}")
    return told


def _problem(error: ErrorDetails, told: Mapping[str, Any]) -> str:
    name, *inside = (str(part) for part in error["loc"])
    where = _origin(name, told) if name in Settings.model_fields else told.get(name, (None, name))[1]
    key = ".".join([where if where != "default" else name, *inside])
    value = "a secret" if name.endswith("_token") else repr(error["input"])
    said = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        said = f"no such setting; there are {', '.join(Settings.model_fields)}"
    return f"{key}={value}: {said}"


def _origin(name: str, told: Mapping[str, tuple[Any, str]]) -> str:
    own = PREFIX + name.upper()
    for variable in os.environ:
        if variable.upper() == own or variable.upper().startswith(f"{own}__"):
            return variable
    alias = _MilesAliases.VARIABLES.get(name)
    if alias is not None and alias in os.environ:
        return alias
    return told[name][1] if name in told else "default"


def _unknown() -> set[str]:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    mine = {name for name in os.environ if name.upper().startswith(PREFIX)}
    return {name for name in mine if name.upper().partition("__")[0] not in known and name not in NOT_SETTINGS}


#: Variables of this prefix that others read.
NOT_SETTINGS = frozenset(
    f"LIFECYCLE_{name}" for name in ("STATE_DIR", "GPU_REQUIRED", "GPU_REPORT", "GPU_CYCLES", "REAL", "EXAMPLES")
)
