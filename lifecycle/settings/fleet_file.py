"""fleet.toml: the engines, groups and policy of a fleet in one file. Errors name the line and the key.

The schema, as an example: docs/command-line.md.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..core.errors import ConfigurationError
from ..core.facts import PAUSE_MODES, Grade
from ..core.policy import Policy
from ..fleet.groups import Group

_TOP = ("policy", "groups", "engines", "launch", "agent")
_GROUP = {"offload": bool, "drain_after": list}
_ENGINE = {"url": str, "name": str, "group": str}


@dataclass(frozen=True, slots=True)
class FleetFile:
    """What a fleet.toml says: engines as URLs (name and group are their options), groups, and the policy."""

    urls: tuple[str, ...]
    groups: Mapping[str, Group]
    policy: Policy


def read(path: Path) -> FleetFile:
    """The fleet that this file describes; ConfigurationError says what is wrong with it, and where."""
    try:
        text = path.read_text()
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
    return _Reader(path, text).fleet(document)


class _Reader:
    """Checks a document, knowing where in the text each key stands."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._lines = _lines_of_keys(text)

    def fleet(self, document: Mapping[str, Any]) -> FleetFile:
        self._only(document, _TOP, ())
        groups = {
            name: self._group(name, table) for name, table in self._table(document.get("groups", {}), "groups").items()
        }
        engines = document.get("engines", [])
        if not isinstance(engines, list):
            raise self._error(("engines",), "must be written [[engines]], once for each engine")
        if not engines:
            raise self._error(("engines",), "is missing; a fleet needs at least one [[engines]] with a url")
        urls = tuple(self._url(index, engine, groups) for index, engine in enumerate(engines))
        return FleetFile(urls, groups, self._policy(self._table(document.get("policy", {}), "policy")))

    def _group(self, name: str, table: Any) -> Group:
        where = ("groups", name)
        self._typed(self._table(table, *where), _GROUP, where)
        after = table.get("drain_after", [])
        if not all(isinstance(each, str) for each in after):
            raise self._error((*where, "drain_after"), "must be a list of group names")
        return Group(table.get("offload", True), tuple(after))

    def _url(self, index: int, engine: Any, groups: Mapping[str, Group]) -> str:
        where = ("engines", str(index))
        self._typed(self._table(engine, *where), _ENGINE, where)
        if "url" not in engine:
            raise self._error(where, "has no url")
        if groups and engine.get("group", "default") not in groups:
            known = ", ".join(groups)
            raise self._error((*where, "group"), f"{engine.get('group', 'default')!r} is none of [groups]: {known}")
        options = [f"{key}={quote(engine[key])}" for key in ("name", "group") if key in engine]
        joint = "&" if "?" in engine["url"] else "?"
        return str(engine["url"]) + (joint + "&".join(options) if options else "")

    def _policy(self, table: Mapping[str, Any]) -> Policy:
        names = [field.name for field in fields(Policy)]
        self._only(table, names, ("policy",))
        given = dict(table)
        if given.get("pause_mode", "abort") not in PAUSE_MODES:
            raise self._error(("policy", "pause_mode"), f"must be one of {', '.join(PAUSE_MODES)}")
        given["accept"] = self._grades(self._table(given.pop("accept", {}), "policy", "accept"))
        self._table(given.get("deadlines_s", {}), "policy", "deadlines_s")
        try:
            return Policy(**given)
        except (ConfigurationError, ValueError, TypeError) as error:
            key = self._named_in(str(error), table)
            raise self._error(("policy", key), str(error).removeprefix(key).lstrip()) from None

    def _grades(self, table: Mapping[str, Any]) -> dict[str, Grade]:
        grades = {}
        for claim, grade in table.items():
            try:
                grades[claim] = Grade.named(str(grade))
            except ValueError as error:
                raise self._error(("policy", "accept", claim), str(error)) from None
        return grades

    def _named_in(self, message: str, table: Mapping[str, Any]) -> str:
        nested = [key for value in table.values() if isinstance(value, dict) for key in value]
        return next((key for key in [*table, *nested] if key in message), "")

    def _only(self, table: Mapping[str, Any], known: Sequence[str], where: tuple[str, ...]) -> None:
        for key in table:
            if key not in known:
                raise self._error((*where, key), f"is not known; there are {', '.join(known)}")

    def _typed(self, table: Mapping[str, Any], kinds: Mapping[str, type], where: tuple[str, ...]) -> None:
        self._only(table, list(kinds), where)
        for key, value in table.items():
            if not isinstance(value, kinds[key]):
                raise self._error((*where, key), f"must be a {kinds[key].__name__}, got {value!r}")

    def _table(self, value: Any, *where: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._error(where, f"must be a table, got {value!r}")
        return value

    def _error(self, where: tuple[str, ...], problem: str) -> ConfigurationError:
        line = self._lines.get(where) or next((at for key, at in self._lines.items() if key[-1:] == where[-1:]), None)
        place = f"{self._path}:{line}" if line else str(self._path)
        key = ".".join(part for part in where if part)
        return ConfigurationError(f"{place}: {key} {problem}")


_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=")


def _lines_of_keys(text: str) -> dict[tuple[str, ...], int]:
    """Where each key stands, by its path; an element of an array of tables is named by its index."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            name = header[2]
            table = tuple(part.strip("\"' ") for part in name.split("."))
            if header[1] == "[[":
                seen[name] = seen.get(name, -1) + 1
                table = (*table, str(seen[name]))
            found.setdefault(table, number)
            found.setdefault(table[:1], number)
        elif key := _KEY.match(line):
            path = tuple(part.strip("\"' ") for part in key[1].split("."))
            found.setdefault((*table, *path), number)
    return found
