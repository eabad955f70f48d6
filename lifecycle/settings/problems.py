"""How a wrong value is reported: where it was given, the value, and what is allowed there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails, PydanticCustomError

MUST_BE_A_TABLE = "must be a table"

#: The errors by which pydantic says that a value is no table.
_NO_TABLE = frozenset({"dict_type", "model_type"})


def problem(message: str, *below: str | int, shown: bool = True) -> PydanticCustomError:
    """An error about the value that a validator was given, or about the one `below` it.

    What stands at a key that does not exist is not shown: it may be a secret whose key was mistyped.
    """
    return PydanticCustomError("problem", "{message}", {"message": message, "below": below, "shown": shown})


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at `key`. `given` holds the value that stands there, and nothing where none does."""

    key: tuple[str, ...]
    message: str
    given: tuple[Any, ...] = ()

    @classmethod
    def of(cls, error: ErrorDetails) -> Problem:
        """The same, from what pydantic reports."""
        key, message = error["loc"], error["msg"].removeprefix("Value error, ")
        if error["type"] == "missing":
            return cls(_words(key[:-1]), f"has no {key[-1]}")
        if error["type"] == "problem":
            below, shown = error["ctx"]["below"], error["ctx"]["shown"]
            return cls(_words((*key, *below)), message, _value_at(below, error["input"]) if shown else ())
        return cls(_words(key), MUST_BE_A_TABLE if error["type"] in _NO_TABLE else message, (error["input"],))

    def at(self, where: str, *, secret: bool = False) -> str:
        """One line: `where=value: message`. A secret value is not shown."""
        value = "".join(f"={'a secret' if secret else repr(value)}" for value in self.given)
        return f"{where}{value}: {self.message}"


def _words(key: Sequence[str | int]) -> tuple[str, ...]:
    return tuple(map(str, key))


def _value_at(below: Sequence[str | int], value: Any) -> tuple[Any, ...]:
    """The value that stands there, if any does."""
    for part in below:
        try:
            value = value[part]
        except LookupError:
            return ()
    return (value,)
