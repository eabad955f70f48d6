"""What engines answered to the calls of a command, as a transition carries it: plain data, bounded, without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .calls import Call, Reply
from .frozen import FrozenMap

#: The most characters of one answer that are kept; what lies deeper than DEPTH is left out too.
ANSWER_LIMIT = 2000
DEPTH = 20

#: What stands in place of whatever is under a key like these: a text, a list or a mapping. Numbers of keys and tokens
#: stay.
LEFT_OUT = "(left out)"
_COUNTED = r"keys?$|tokens?$"
_NEVER_SHOWN = r"secret|password|passwd|credential|authorization|bearer"
_SECRET = re.compile(f"{_COUNTED}|{_NEVER_SHOWN}", re.IGNORECASE)
_SECRET_NUMBER = re.compile(_NEVER_SHOWN, re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CallReply:
    """What the engine answered to one call: parsed JSON, or what the method returned; None where it said nothing.

    Lists are tuples, and mappings cannot be changed. A value that is no plain data is its class in angle brackets: a
    tensor would keep device memory. `status` is that of HTTP. `complete` is False where a part of it was left out,
    since it is longer than `ANSWER_LIMIT` characters, deeper than `DEPTH`, or no plain data.
    """

    call: str
    value: Any = None
    status: int | None = None
    complete: bool = True

    @classmethod
    def of(cls, call: Call, reply: Reply) -> CallReply:
        """What is kept of the reply to this call."""
        if reply.value is None:
            kept = reply.detail[:ANSWER_LIMIT]
            return cls(call.name, kept or None, reply.status, complete=len(kept) == len(reply.detail))
        copy = _Copy()
        return cls(call.name, copy.of(reply.value, DEPTH), reply.status, copy.complete)


class _Copy:
    """Copies plain data until ANSWER_LIMIT characters are used up."""

    def __init__(self) -> None:
        self._left = ANSWER_LIMIT
        self.complete = True

    def of(self, value: Any, depth: int) -> Any:
        """The copy of a value; of one that is no plain data, its class."""
        self._left -= 1
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int) and value.bit_length() <= 64:
            return int(value)
        if isinstance(value, str):
            return self._text(str(value))
        if isinstance(value, Mapping | list | tuple) and depth and self._left > 0:
            return self._mapping(value, depth) if isinstance(value, Mapping) else self._list(value, depth)
        self.complete = False
        return f"<{type(value).__qualname__}>"

    def _text(self, value: str) -> str:
        kept = value[: max(0, self._left)]
        self._left -= len(kept)
        self.complete &= len(kept) == len(value)
        return kept

    def _list(self, values: list[Any] | tuple[Any, ...], depth: int) -> tuple[Any, ...]:
        kept = []
        for each in values:
            if self._left <= 0:
                self.complete = False
                break
            kept.append(self.of(each, depth - 1))
        return tuple(kept)

    def _mapping(self, values: Mapping[Any, Any], depth: int) -> FrozenMap[str, Any]:
        kept = {}
        for key, each in values.items():
            if self._left <= 0:
                self.complete = False
                break
            name = self._text(key if isinstance(key, str) else f"{key!r:.100}" if isinstance(key, int) else "?")
            kept[name] = LEFT_OUT if isinstance(key, str) and _is_secret(key, each) else self.of(each, depth - 1)
        return FrozenMap(kept)


def _is_secret(key: str, value: Any) -> bool:
    """Whether the value under this key may be one that nobody is to read in a log."""
    if value is None or isinstance(value, bool):
        return False
    return (_SECRET_NUMBER if isinstance(value, int | float) else _SECRET).search(key) is not None
