"""Every setting in one typed place, and the variables that give them.

`Policy` says what its own values may be, and is asked; the types and ranges that it does not check stand here.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ..core.errors import ConfigurationError
from ..core.facts import Grade, PauseMode
from ..core.policy import OnFailure, Policy
from ..launch.miles import MILES_THRESHOLD, forwarded
from ..nodes.hook_mode import ESCAPE, MILES_ESCAPE, MILES_MODE, MODE
from .problems import problem

PREFIX = "LIFECYCLE_"

#: Where the agent listens unless another port is given.
AGENT_PORT = 30999

DEFAULTS = Policy()
POLICY_FIELDS = tuple(field.name for field in fields(Policy))

#: The validation context of a file's values. TOML has numbers, so that text is none; in a variable all is text.
FILE = {"typed": True}


def _number(value: Any, info: ValidationInfo) -> float:
    """The number; NaN, which no setting may be, for a value that is none."""
    if isinstance(value, bool) or (isinstance(value, str) and info.context == FILE):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _only_1(value: Any) -> bool:
    if str(value) not in ("0", "1", "True", "False"):
        raise ValueError("must be 1 or 0")
    return str(value) in ("1", "True")


def _fraction(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError("must be a finite number > 0 and <= 1")
    return value


def _grade(value: Any) -> Grade:
    return value if isinstance(value, Grade) else Grade.named(str(value))


Number = Annotated[float, BeforeValidator(_number)]
Fraction = Annotated[float, BeforeValidator(_number), AfterValidator(_fraction)]
NamedGrade = Annotated[Grade, BeforeValidator(_grade)]


class MilesAliases(PydanticBaseSettingsSource):
    """The variables of miles, by the settings that they stand for. Their hook mode follows its own table."""

    VARIABLES: Mapping[str, str] = {
        "residual_threshold_gib": MILES_THRESHOLD,
        "hook_mode": MILES_MODE,
        "allow_preload_on_blackwell": MILES_ESCAPE,
    }

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        """Never called: `__call__` gives all values at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            setting: os.environ[name] for setting, name in self.VARIABLES.items() if name in os.environ
        }
        if "hook_mode" in values:
            values["hook_mode"] = "torch" if values["hook_mode"] == "torch" else "preload"
        if "allow_preload_on_blackwell" in values:
            values["allow_preload_on_blackwell"] = values["allow_preload_on_blackwell"] == "1"
        return values


class Values(BaseModel):
    """Every setting. Those of `Policy` have its names and defaults; times in seconds, sizes by their suffix."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    residual_threshold_gib: Number = DEFAULTS.residual_threshold_gib
    returned_fraction: Fraction = DEFAULTS.returned_fraction
    visible_bytes: Annotated[int, Field(ge=0)] = DEFAULTS.visible_bytes
    visible_fraction: Fraction = DEFAULTS.visible_fraction
    pause_mode: PauseMode = DEFAULTS.pause_mode
    deadlines_s: dict[str, Number] = {}
    accept: dict[str, NamedGrade] = {}
    unprovable: Literal["refuse", "warn"] = DEFAULTS.unprovable
    unleased: Literal["refuse", "warn"] = DEFAULTS.unleased
    on_failure: OnFailure = DEFAULTS.on_failure
    settle_s: Number = DEFAULTS.settle_s
    poll_s: Number = DEFAULTS.poll_s
    residual_scope: Literal["process", "device"] = DEFAULTS.residual_scope
    residual_stable_s: Number = DEFAULTS.residual_stable_s
    room_wait_s: Number = DEFAULTS.room_wait_s
    canary_tokens: int = DEFAULTS.canary_tokens

    hook_mode: Literal["auto", "torch", "preload"] = "auto"
    allow_preload_on_blackwell: Annotated[bool, BeforeValidator(_only_1)] = False
    agent_host: str = "127.0.0.1"
    agent_port: Annotated[int, Field(ge=0, le=65535)] = AGENT_PORT
    agent_token: SecretStr | None = None

    @field_validator(*POLICY_FIELDS)
    @classmethod
    def _as_policy_allows(cls, value: Any, info: ValidationInfo) -> Any:
        """The value, where a Policy may have it. A table is asked about key by key, so that an error names the key."""
        parts: dict[tuple[str, ...], Any] = {(): value}
        if isinstance(value, dict):
            parts = {(key,): {key: each} for key, each in value.items()}
        for below, part in parts.items():
            try:
                Policy(**{str(info.field_name): part})
            except ConfigurationError as error:
                raise problem(_without_key_and_value(str(error)), *below) from None
        return value


class Settings(Values, BaseSettings):
    """The values in force: those that it is constructed with, which a file gave, and over them those of variables."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources, the strongest first."""
        return env_settings, MilesAliases(settings_cls), init_settings

    def policy(self) -> Policy:
        """What engines are held to."""
        return Policy(**{name: getattr(self, name) for name in POLICY_FIELDS})

    def environment(self) -> dict[str, str]:
        """The variables that every process which hosts an engine or a probe must be given."""
        variables = {**forwarded(self.residual_threshold_gib), MODE: self.hook_mode}
        return {**variables, ESCAPE: "1", MILES_ESCAPE: "1"} if self.allow_preload_on_blackwell else variables


def _without_key_and_value(message: str) -> str:
    """What Policy allows there: its messages name the field and the value, which are reported as they were given."""
    rule = re.search(r"must be .*(?=, got )", message)
    return rule[0] if rule else message
