"""Values as JSON text at once: what `json.dumps` makes of what `encode` gives, without the dicts in between.

A row is written at every edge and for every intent, and an entry for every event, of some hundred values each. How a
class is written is found once: the names of a dataclass are in a template, into which the texts of its values go.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from json.encoder import encode_basestring_ascii as quoted
from math import isfinite
from operator import attrgetter
from typing import Any

from .encoding import encode, encoded_fields
from .facts import Basis

_Write = Callable[[Any], str]

#: Texts of one value, by its identity. The value is kept beside it, so that no other has that identity.
Texts = dict[int, tuple[Any, str]]


#: Different values of a class with few of them whose texts are kept.
_FEW = 1000


class JsonWriter:
    """Writes values as `encode` has them, without spaces.

    Values of the classes `again` are looked for among those of the call before, which the caller keeps: what is frozen,
    and the same value, is not written again.
    """

    def __init__(self, again: Iterable[type] = ()) -> None:
        self._before: Texts = {}
        self._now: Texts = {}
        self._writers = _ByClass(self._writer)
        self._untyped = _ByClass(lambda kind: self._of_dataclass(kind, typed=False))
        for kind in again:
            self._writers[kind] = self._written_once(self._of_dataclass(kind, typed=True))
        self._writers[Basis] = self._of_few(Basis)

    def text(self, value: Any) -> str:
        """The text of this value. Raises TypeError where there is something in it that JSON cannot hold."""
        return self._writers[type(value)](value)

    def fields(self, value: Any) -> str:
        """The text of this dataclass, without its class under "type"."""
        return self._untyped[type(value)](value)

    def text_after(self, before: Texts, value: Any) -> tuple[str, Texts]:
        """The text of this value, and what is to be given with the next one, where `before` came with the last."""
        self._before, self._now = before, {}
        try:
            return self.text(value), self._now
        finally:
            self._before = self._now = {}

    def _written_once(self, write: _Write) -> _Write:
        def written(value: Any) -> str:
            known = self._before.get(id(value))
            if known is None:
                known = value, write(value)
            self._now[id(value)] = known
            return known[1]

        return written

    def _writer(self, kind: type) -> _Write:
        if issubclass(kind, Enum):
            return {member: json.dumps(encode(member)) for member in kind}.__getitem__
        if kind in _PLAIN:
            return _PLAIN[kind]
        if is_dataclass(kind):
            return self._of_dataclass(kind, typed=True)
        if issubclass(kind, Mapping):
            return self._mapping
        if issubclass(kind, frozenset | set):
            return lambda value: self._list(sorted(map(encode, value)))
        if issubclass(kind, Iterable) and not issubclass(kind, str):
            return self._list
        return lambda value: json.dumps(encode(value))

    def _of_dataclass(self, kind: type, *, typed: bool) -> _Write:
        names, writers = encoded_fields(kind), self._writers
        parts = [f'"type":{quoted(kind.__name__)}'] if typed else []
        template = "{" + ",".join(parts + [f"{quoted(name)}:%s" for name in names]) + "}"
        if not names:
            return lambda value: template
        if len(names) == 1:
            (only,) = names
            return lambda value: template % self.text(getattr(value, only))
        values = attrgetter(*names)
        return lambda value: template % tuple([writers[type(each)](each) for each in values(value)])

    def _of_few(self, kind: type) -> _Write:
        """Of a class with few different values, of which a record has many."""
        values, write = attrgetter(*encoded_fields(kind)), self._of_dataclass(kind, typed=True)
        texts: dict[Any, str] = {}

        def written(value: Any) -> str:
            key = values(value)
            text = texts.get(key)
            if text is None:
                if len(texts) >= _FEW:
                    texts.clear()
                text = texts[key] = write(value)
            return text

        return written

    def _mapping(self, value: Mapping[Any, Any]) -> str:
        pairs, writers = [], self._writers
        for key, each in value.items():
            if not isinstance(key, str):
                return self._list(value.items())
            pairs.append(f"{quoted(key)}:{writers[type(each)](each)}")
        return "{" + ",".join(pairs) + "}"

    def _list(self, value: Iterable[Any]) -> str:
        writers = self._writers
        return "[" + ",".join([writers[type(each)](each) for each in value]) + "]"


class _ByClass(dict[type, _Write]):
    """How values of a class are written; found when the first of it is."""

    def __init__(self, find: Callable[[type], _Write]) -> None:
        self._find = find

    def __missing__(self, kind: type) -> _Write:
        write = self[kind] = self._find(kind)
        return write


_PLAIN: dict[type, _Write] = {
    str: quoted,
    int: int.__repr__,
    bool: lambda value: "true" if value else "false",
    type(None): lambda value: "null",
    float: lambda value: repr(value) if isfinite(value) else json.dumps(value),
}
