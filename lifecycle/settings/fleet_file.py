"""The tables of fleet.toml: the engines and groups that they describe, and the settings that they hold.

The values of settings are checked by `Values`, whatever their source; here only the names of their keys are. The
file as an example: docs/command-line.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Self
from urllib.parse import quote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..fleet.groups import Group
from .problems import problem
from .values import POLICY_FIELDS, Values


def place_of(setting: str) -> tuple[str, str]:
    """The table of the file in which this setting stands, and its key there."""
    if setting in POLICY_FIELDS:
        return "policy", setting
    if setting.startswith("agent_"):
        return "agent", setting.removeprefix("agent_")
    return "launch", setting


#: The settings by their place in the file.
_SETTINGS: Mapping[tuple[str, str], str] = {place_of(name): name for name in Values.model_fields}


def _only(known: Collection[str], table: Any, what: str = "key") -> Any:
    for key in table if isinstance(table, Mapping) else ():
        if key not in known:
            raise problem(f"no such {what}; there are {', '.join(known)}", key, shown=False)
    return table


class _Table(BaseModel):
    """A table that has these keys and no others. Each value has the TOML type of its key."""

    model_config = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _has_no_other_key(cls, table: Any) -> Any:
        return _only(list(cls.model_fields), table)


class GroupTable(_Table):
    """One `[groups.NAME]`."""

    offload: bool = True
    drain_after: list[str] = []


class EngineTable(_Table):
    """One `[[engines]]`."""

    url: str
    name: str | None = None
    group: str | None = None

    def address(self) -> str:
        """The URL, with the engine's name and group among its options."""
        named = {"name": self.name, "group": self.group}
        options = "&".join(f"{key}={quote(value)}" for key, value in named.items() if value is not None)
        return f"{self.url}{'&' if '?' in self.url else '?'}{options}" if options else self.url


def _array_of_tables(value: Any) -> Any:
    if not isinstance(value, list):
        raise problem("must be written [[engines]], once for each engine")
    return value


def _at_least_one(engines: list[EngineTable]) -> list[EngineTable]:
    if not engines:
        raise problem("a fleet needs at least one [[engines]] with a url")
    return engines


class FleetFile(_Table):
    """The whole file."""

    router: str | None = None
    policy: dict[str, Any] = {}
    launch: dict[str, Any] = {}
    agent: dict[str, Any] = {}
    groups: dict[str, GroupTable] = {}
    engines: Annotated[
        list[EngineTable],
        BeforeValidator(_array_of_tables),
        AfterValidator(_at_least_one),
        Field(validate_default=True),
    ] = []

    @field_validator("policy", "launch", "agent")
    @classmethod
    def _holds_settings(cls, table: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        _only([key for in_table, key in _SETTINGS if in_table == info.field_name], table, "setting")
        return table

    @model_validator(mode="after")
    def _groups_are_described(self) -> Self:
        for index, engine in enumerate(self.engines):
            group = engine.group or "default"
            if self.groups and group not in self.groups:
                known = ", ".join(self.groups)
                raise problem(f"{group!r} is none of [groups]: {known}", "engines", index, "group")
        return self

    def settings(self) -> dict[str, Any]:
        """The settings that are given here, by their names."""
        return {
            name: getattr(self, table)[key] for (table, key), name in _SETTINGS.items() if key in getattr(self, table)
        }

    def urls(self) -> tuple[str, ...]:
        """The engines, in the file's order."""
        return tuple(engine.address() for engine in self.engines)

    def described_groups(self) -> dict[str, Group]:
        """The groups that are described, by name."""
        return {name: Group(table.offload, tuple(table.drain_after)) for name, table in self.groups.items()}
