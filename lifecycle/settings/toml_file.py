"""A TOML file, read once, which knows on which line each of its keys stands."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigurationError

#: A key by its path from the top of the file; an element of an array of tables is named by its index.
Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TomlFile:
    """The tables of a file and the lines of their keys."""

    path: Path
    document: Mapping[str, Any]
    lines: Mapping[Key, int]

    @classmethod
    def read(cls, path: Path) -> TomlFile:
        """The file as it is now. ConfigurationError names the file where it cannot be read or is not TOML."""
        try:
            text = path.read_text()
            return cls(path, tomllib.loads(text), _lines_of_keys(text))
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror or error}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path}: {error}") from None

    def place(self, key: Sequence[str]) -> str:
        """`path:line` of this key, or of the nearest table around it that is written out; `path` if there is none."""
        around = (tuple(key[:length]) for length in range(len(key), 0, -1))
        line = next((self.lines[each] for each in around if each in self.lines), None)
        return str(self.path) if line is None else f"{self.path}:{line}"


_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=")


def _lines_of_keys(text: str) -> dict[Key, int]:
    found: dict[Key, int] = {}
    table: Key = ()
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
