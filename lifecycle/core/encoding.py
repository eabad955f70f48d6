"""Values as JSON, both ways: a Record, facts, verdicts, transitions, commands and sources. Errors go one way.

What is encoded follows from the types of the dataclasses, so a new field needs nothing here. A value whose declared
type is a family (a verdict, a command, a source, a reading or why there is none) carries its class under "type". A
mapping whose keys are no text is a list of pairs. A `Pushed` is its name and version: the callback stays behind. So
does the time at which a fact was read or a verdict reached: it is of a clock that no other process has.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum, IntEnum
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

from .commands import Command
from .errors import FleetError
from .facts import Basis, Fact, Facts
from .frozen import freeze
from .record import UncertainCall
from .sources import Pushed
from .verdicts import Condition, Verdict

T = TypeVar("T")

#: Classes whose values JSON knows as they are.
_PLAIN = frozenset({str, int, float, bool, type(None)})

#: Fields that belong to one process and are not encoded: a callback, and readings of its monotonic clock.
_LEFT_OUT = {(Pushed, "push"), (Basis, "read_at_s"), (Condition, "at_s")}

#: A mapping whose values have the types of other fields: what a call changes, by fact.
_BY_FACT = {(UncertainCall, "effect")}


def encode(value: Any) -> Any:
    """The value as what JSON knows. Raises TypeError where there is something in it that JSON cannot hold."""
    kind: Any = type(value)
    return value if kind in _PLAIN else _encoder(kind)(value)


def encoded_fields(kind: Any) -> tuple[str, ...]:
    """The names of the fields of this dataclass that are encoded, in their order."""
    return tuple(part.name for part in fields(kind) if (kind, part.name) not in _LEFT_OUT)


@cache
def _encoder(kind: type) -> Callable[[Any], Any]:
    """How values of this class are encoded: found once for each class, since a row has some hundred values."""
    if issubclass(kind, Enum):
        return (lambda value: value.name.lower()) if issubclass(kind, IntEnum) else (lambda value: value.value)
    if issubclass(kind, bool | int | float | str):
        return lambda value: value
    if is_dataclass(kind):
        names = encoded_fields(kind)
        return lambda value: {"type": kind.__name__, **{name: encode(getattr(value, name)) for name in names}}
    if issubclass(kind, Mapping):
        return _encoded_mapping
    if issubclass(kind, frozenset | set):
        return lambda value: sorted(map(encode, value))
    if issubclass(kind, Iterable):
        return lambda value: list(map(encode, value))
    raise TypeError(f"{kind.__name__} has no form in JSON")


def _encoded_mapping(value: Mapping[Any, Any]) -> Any:
    if all(isinstance(key, str) for key in value):
        return {str(key.value) if isinstance(key, Enum) else key: encode(each) for key, each in value.items()}
    return [[encode(key), encode(each)] for key, each in value.items()]


@overload
def decode(kind: type[T], data: Any) -> T: ...


@overload
def decode(kind: types.UnionType, data: Any) -> Any: ...


def decode(kind: Any, data: Any) -> Any:
    """The value of this type (a class, or a union such as `Source`) that `encode` gave `data` for.

    ValueError says where it is not one.
    """
    return _decode(kind, data, getattr(kind, "__name__", str(kind)))


def encode_error(error: BaseException) -> dict[str, Any]:
    """What an error says and what it knows, for logs and answers; there is no way back."""
    parts = {name: _report(value) for name, value in vars(error).items() if not name.startswith("_")}
    report = {"type": type(error).__name__, "message": str(error), **parts}
    if isinstance(error, FleetError):
        report["exceptions"] = [encode_error(each) for each in error.exceptions]
    return report


def _report(value: Any) -> Any:
    if isinstance(value, BaseException):
        return encode_error(value)
    if isinstance(value, Mapping):
        return {str(key): _report(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_report(each) for each in value]
    try:
        return encode(value)
    except TypeError:
        return str(value)


@cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@cache
def _family(kind: type) -> dict[str, type]:
    """The classes that a value declared as `kind` may have, by name."""
    below: list[type] = kind.__subclasses__()
    return {each.__name__: each for each in below or [kind]}


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return freeze(data)
    if origin in (Union, types.UnionType):
        return _one_of(get_args(kind), data, where)
    if origin is Literal:
        return _known(data, get_args(kind), where)
    if origin is not None:
        return _collection(origin, get_args(kind), data, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind, data, where)
    if is_dataclass(kind):
        return _dataclass(kind, data, where)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise ValueError(f"{where}: {data!r:.60} is no {kind.__name__}")
    return data


def _one_of(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    """The value of the first of these types that fits; among dataclasses the one that `data` names."""
    if data is None and type(None) in kinds:
        return None
    name = data.get("type") if isinstance(data, Mapping) else None
    problems = []
    for kind in kinds:
        if kind is type(None) or (name is not None and is_dataclass(kind) and name not in _family_of(kind)):
            continue
        try:
            return _decode(kind, data, where)
        except (ValueError, TypeError) as problem:
            problems.append(str(problem))
    raise ValueError("; ".join(problems) or f"{where}: {data!r:.60} is none of its types")


def _family_of(kind: Any) -> Mapping[str, type]:
    return _family(kind) if kind in (Verdict, Command) else {kind.__name__: kind}


def _collection(origin: Any, inside: tuple[Any, ...], data: Any, where: str) -> Any:
    if issubclass(origin, Mapping):
        return _mapping(inside, data, where)
    if not isinstance(data, list | tuple):
        raise ValueError(f"{where}: {data!r:.60} is no list")
    if origin is frozenset:
        return frozenset(_decode(inside[0], each, where) for each in data)
    if len(inside) == 2 and inside[1] is Ellipsis:
        return tuple(_decode(inside[0], each, where) for each in data)
    if len(inside) != len(data):
        raise ValueError(f"{where}: {len(data)} values, and there should be {len(inside)}")
    return tuple(_decode(kind, each, where) for kind, each in zip(inside, data, strict=True))


def _mapping(inside: tuple[Any, ...], data: Any, where: str) -> Any:
    key_kind, value_kind = inside
    pairs = list(data.items()) if isinstance(data, Mapping) else data
    if not isinstance(pairs, list | tuple) or any(
        not isinstance(each, list | tuple) or len(each) != 2 for each in pairs
    ):
        raise ValueError(f"{where}: {data!r:.60} is no mapping")
    return freeze(
        {_decode(key_kind, key, where): _decode(value_kind, value, f"{where}[{key}]") for key, value in pairs}
    )


def _enum(kind: type[Enum], data: Any, where: str) -> Enum:
    known = {encode(member): member for member in kind}
    return known[_known(data, tuple(known), where)]


def _known(data: Any, known: tuple[Any, ...], where: str) -> Any:
    if data not in known:
        raise ValueError(f"{where}: {data!r:.60} is none of {', '.join(map(str, known))}")
    return data


def _dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: {data!r:.60} is no {kind.__name__}")
    family = _family_of(kind)
    name = data.get("type", kind.__name__)
    if name not in family:
        raise ValueError(f"{where}: {name!r:.60} is none of {', '.join(family)}")
    found: Any = family[name]
    values: dict[str, Any] = {}
    for part in fields(found):
        at = f"{where}.{part.name}"
        if (found, part.name) in _LEFT_OUT:
            values[part.name] = None
        elif part.name not in data:
            if part.default is MISSING and part.default_factory is MISSING:
                raise ValueError(f"{at} is missing")
        elif (found, part.name) in _BY_FACT:
            values[part.name] = _effect(data[part.name], at)
        else:
            values[part.name] = _decode(_types(found)[part.name], data[part.name], at)
    return found(**values)


def _effect(data: Any, where: str) -> Any:
    """What a call changes: each value has the type of its fact."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: {data!r:.60} is no mapping")
    kinds = _types(Facts)
    return {Fact(fact): _decode(kinds[fact], value, f"{where}.{fact}") for fact, value in data.items()}
