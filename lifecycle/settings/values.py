"""Every setting in one typed place, and the variables that give them.

`wrong_values` (core/policy.py) says what the values of a Policy may be, and is asked; here stand the other settings,
and how the text of a variable becomes a number.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    SkipValidation,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from ..core.facts import Grade, PauseMode
from ..core.policy import OnFailure, Policy, ResidualScope, Unleased, Unprovable, Unrecorded, wrong_values
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


def _number(value: Any, info: ValidationInfo) -> Any:
    """A number as a float, also the one that the text of a variable gives; any other value as it is."""
    is_text = isinstance(value, str) and info.context != FILE
    if not is_text and (isinstance(value, bool) or not isinstance(value, int)):
        return value
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


def _whole(value: Any, info: ValidationInfo) -> Any:
    """The whole number that the text of a variable gives; any other value as it is."""
    try:
        return int(value) if isinstance(value, str) and info.context != FILE else value
    except ValueError:
        return value


def _only_1(value: Any) -> bool:
    if str(value) not in ("0", "1", "True", "False"):
        raise ValueError("must be 1 or 0")
    return str(value) in ("1", "True")


def _grade(value: Any) -> Grade:
    return value if isinstance(value, Grade) else Grade.named(str(value))


# What these may be, Policy says (`_as_policy_allows`).
Number = Annotated[float, SkipValidation, BeforeValidator(_number)]
Whole = Annotated[int, SkipValidation, BeforeValidator(_whole)]
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
    returned_fraction: Number = DEFAULTS.returned_fraction
    visible_bytes: Whole = DEFAULTS.visible_bytes
    visible_fraction: Number = DEFAULTS.visible_fraction
    pause_mode: Annotated[PauseMode, SkipValidation] = DEFAULTS.pause_mode
    deadlines_s: dict[str, Number] = {}
    accept: dict[str, NamedGrade] = {}
    unprovable: Annotated[Unprovable, SkipValidation] = DEFAULTS.unprovable
    unleased: Annotated[Unleased, SkipValidation] = DEFAULTS.unleased
    unrecorded: Annotated[Unrecorded, SkipValidation] = DEFAULTS.unrecorded
    on_failure: Annotated[OnFailure, SkipValidation] = DEFAULTS.on_failure
    settle_s: Number = DEFAULTS.settle_s
    poll_s: Number = DEFAULTS.poll_s
    residual_scope: Annotated[ResidualScope, SkipValidation] = DEFAULTS.residual_scope
    residual_stable_s: Number = DEFAULTS.residual_stable_s
    evidence_max_age_s: Number = DEFAULTS.evidence_max_age_s
    room_wait_s: Number = DEFAULTS.room_wait_s
    canary_tokens: Whole = DEFAULTS.canary_tokens

    hook_mode: Literal["auto", "torch", "preload"] = "auto"
    allow_preload_on_blackwell: Annotated[bool, BeforeValidator(_only_1)] = False
    agent_host: str = "127.0.0.1"
    agent_port: Annotated[int, Field(ge=0, le=65535)] = AGENT_PORT
    agent_token: SecretStr | None = None

    @field_validator(*POLICY_FIELDS)
    @classmethod
    def _as_policy_allows(cls, value: Any, info: ValidationInfo) -> Any:
        """The value, where a Policy may have it."""
        for wrong in wrong_values(str(info.field_name), value):
            raise problem(wrong.rule, *wrong.below)
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
