"""A fingerprint of where a run stands: two runs with equal fingerprints have equal futures.

It is made of everything that the roots reach: values by value, objects by type and attributes, and of each task where
it stands: the code object and the instruction of every frame that awaits, and its locals. Instants count as what is
left until then, objects that are there twice as one, and a constant of a module of the library as its name. Attributes
that no later step reads are left out, by name (`IGNORED`); whatever is unknown is told apart by what it refers to, so
that too much is told apart and never too little.
"""

from __future__ import annotations

import asyncio
import enum
import gc
import hashlib
import sys
import types
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, lru_cache
from typing import Any

from clockwork import BEGIN_S, WALL_S, Apart
from truth import TrueEngine

#: Attributes that no later step of the library reads: what is only told, written down or counted for people.
IGNORED = frozenset({
    "_journal_file", "journal", "_observers", "observers", "reason", "_loop", "_log_traceback", "_source_traceback",
    "read_at_s", "at_s", "begun", "took_s", "_begun_s",
})  # fmt: skip
_PLAIN = (bool, int, str, bytes, type(None))


@dataclass(frozen=True, slots=True)
class _Value:
    """A value that never changes, as text; its instants count as what is left until then."""

    text: str
    instants: tuple[float, ...]


class Values(Apart):
    """What was read of values that never change: frozen dataclasses of the library, and what these are made of."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, _Value | None]] = {}

    def of(self, value: Any) -> _Value | None:
        """The text of a value that never changes; None where it refers to something that may change."""
        found = self._known.get(id(value))
        if found is None or found[0] is not value:
            found = self._known[id(value)] = (value, _text_of(value))
        return found[1]


class _Changes(Exception):
    """It may change."""


def _text_of(value: Any) -> _Value | None:
    try:
        return _text_of_equal(value)
    except TypeError:  # it cannot be hashed
        return _new_text_of(value)


@lru_cache(maxsize=100_000)
def _text_of_equal(value: Any) -> _Value | None:
    return _new_text_of(value)


def _new_text_of(value: Any) -> _Value | None:
    instants: list[float] = []

    def text(part: Any) -> str:
        if isinstance(part, float):
            if part >= BEGIN_S / 2:
                instants.append(part)
                return "instant"
            return f"{part:.6g}"
        if isinstance(part, enum.Enum):
            return f"{type(part).__name__}.{part.name}"
        if isinstance(part, _PLAIN):
            return repr(part)
        if isinstance(part, type):
            return part.__qualname__
        if isinstance(part, Mapping):
            return "{" + ",".join(f"{text(key)}:{text(part[key])}" for key in sorted(part, key=repr)) + "}"
        if isinstance(part, frozenset):
            return "{" + ",".join(sorted(map(text, part))) + "}"
        if isinstance(part, tuple):
            return "(" + ",".join(map(text, part)) + ")"
        if is_dataclass(part) and part.__dataclass_params__.frozen:  # type: ignore[union-attr]
            inner = (
                f"{each.name}={text(getattr(part, each.name))}" for each in fields(part) if each.name not in IGNORED
            )
            return f"{type(part).__name__}({','.join(inner)})"
        raise _Changes

    try:
        return _Value(text(value), tuple(instants))
    except _Changes:
        return None


@cache
def _constants() -> dict[int, tuple[Any, str]]:
    """What modules of the library call by a name in capitals, and their guards and proofs: these never change."""
    found: dict[int, tuple[Any, str]] = {}
    for module, held in list(sys.modules.items()):
        if not module.startswith("lifecycle."):
            continue
        for name, value in vars(held).items():
            rule = type(value).__name__ in ("Guard", "Proof", "Operation")
            if (name.strip("_").isupper() or rule) and not isinstance(value, (*_PLAIN, float, type)):
                found[id(value)] = (value, f"{module}.{name}")
    return found


class Fingerprint:
    """Reads one moment of a run. `now_s` and `wall_s` are its instants."""

    def __init__(self, now_s: float, wall_s: float, values: Values) -> None:
        self._now_s = now_s
        self._wall_s = wall_s
        self._values = values
        self._constants = _constants()
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []
        self._out: list[str] = []

    def of(self, *roots: Any) -> str:
        """The fingerprint of everything that these reach."""
        for root in roots:
            self._add(root)
        return hashlib.blake2b("\x1f".join(self._out).encode(), digest_size=16).hexdigest()

    def _add(self, value: Any) -> None:
        _kind(type(value))(self, value)

    # what is no object

    def plain(self, value: Any) -> None:
        """By value."""
        self._out.append(repr(value))

    def number(self, value: float) -> None:
        """An instant counts as what is left until then."""
        self._out.append(self._time(value))

    def member(self, value: Any) -> None:
        """Of an enumeration."""
        self._out.append(value.name)

    def named(self, value: Any) -> None:
        """A class."""
        self._out.append(value.__qualname__)

    def nothing(self, value: Any) -> None:
        """It is read elsewhere, or not at all."""

    def frozen(self, value: Any) -> None:
        """A frozen dataclass of the library."""
        known = self._values.of(value)
        if known is None:
            self.object(Fingerprint.attributes, value)
            return
        self._out.append(known.text)
        self._out += map(self._time, known.instants)

    def _time(self, value: float) -> str:
        if value >= WALL_S / 2:
            return f"wall{value - self._wall_s:+.3f}"
        if value >= BEGIN_S / 2:
            return f"now{value - self._now_s:+.3f}"
        return f"{value:.6g}"

    def object(self, read: Callable[[Fingerprint, Any], None], value: Any) -> None:
        """By its kind, and what it refers to; where it was met before, by its number."""
        key = id(value)
        constant = self._constants.get(key)
        if constant is not None and constant[0] is value:
            self._out.append(constant[1])
            return
        number = self._seen.get(key)
        if number is not None:
            self._out.append(f"@{number}")
            return
        self._seen[key] = len(self._seen)
        self._kept.append(value)  # so that its id is not used again
        self._out.append(f"<{type(value).__qualname__}")
        read(self, value)
        self._out.append(">")

    # by kind of object

    def sequence(self, value: Any) -> None:
        """In order."""
        for each in value:
            self._add(each)

    def unordered(self, value: Any) -> None:
        """A set: in an order that the contents give."""
        if len(value) < 2:
            self.sequence(value)
        elif all(isinstance(each, _PLAIN) for each in value):
            self.sequence(sorted(value, key=repr))
        else:
            alone = lambda each: Fingerprint(self._now_s, self._wall_s, self._values).of(each)  # noqa: E731
            self.sequence(sorted(value, key=alone))

    def mapping(self, value: Mapping[Any, Any]) -> None:
        """Keys and values, in the order of the keys."""
        for key in sorted(value, key=str):
            self._add(key)
            self._add(value[key])

    def function(self, value: Any) -> None:
        """The code, and what it has closed over."""
        self._out.append(value.__code__.co_qualname)
        for cell in value.__closure__ or ():
            try:
                self._add(cell.cell_contents)
            except ValueError:
                self._out.append("empty")
        self._add(value.__defaults__)

    def method(self, value: Any) -> None:
        """The function, and whose it is."""
        self._add(value.__func__)
        self._add(value.__self__)

    def task(self, value: asyncio.Task[Any]) -> None:
        """Where it stands, or how it ended."""
        self._out.append(f"cancelling={value.cancelling()} must={getattr(value, '_must_cancel', '')}")
        if value.done():
            self.future(value)
        else:
            self._add(value.get_coro())

    def future(self, value: asyncio.Future[Any]) -> None:
        """Whether it has ended, and with what; what a gathering one still waits for."""
        self._out.append(value._state)
        self.sequence(getattr(value, "_children", ()))
        if value.done() and not value.cancelled():
            self._add(value._exception)
            self._add(value._result)

    def suspended(self, value: Any) -> None:
        """The frame of a coroutine or generator, with its locals, and what it awaits."""
        kind = {types.CoroutineType: "cr", types.GeneratorType: "gi", types.AsyncGeneratorType: "ag"}[type(value)]
        frame = getattr(value, f"{kind}_frame")
        if frame is None:
            self._out.append("ended")
            return
        self._out.append(f"{frame.f_code.co_qualname}:{frame.f_lasti}")
        self.mapping({name: local for name, local in frame.f_locals.items() if name not in IGNORED})
        self._add(getattr(value, "cr_await" if kind == "cr" else "gi_yieldfrom" if kind == "gi" else "ag_await"))

    def exception(self, value: BaseException) -> None:
        """Its arguments and attributes, and not where it came from."""
        self.sequence(value.args)
        self.attributes(value)

    def attributes(self, value: Any) -> None:
        """All attributes but those that no later step reads."""
        names = getattr(value, "__dict__", None)
        if names:
            for name in sorted(names):
                if name not in IGNORED:
                    self._out.append(name)
                    self._add(names[name])
        for slot in _slots(type(value)):
            if hasattr(value, slot):
                self._out.append(slot)
                self._add(getattr(value, slot))

    def standing(self, value: TrueEngine) -> None:
        """What of it a later step can depend on."""
        self._add(value.standing())

    def referents(self, value: Any) -> None:
        """Of a kind that is not known: what it refers to."""
        for each in gc.get_referents(value):
            self._add(each)


@cache
def _slots(kind: type) -> tuple[str, ...]:
    found: list[str] = []
    for each in kind.__mro__:
        slots = each.__dict__.get("__slots__", ())
        named = (slots,) if isinstance(slots, str) else tuple(slots)
        found += [slot for slot in named if slot not in ("__dict__", "__weakref__") and slot not in IGNORED]
    return tuple(found)


_Read = Callable[[Fingerprint, Any], None]

#: Of what is no object: read each time that it is met.
_DIRECT: tuple[tuple[Any, _Read], ...] = (
    ((types.ModuleType, types.TracebackType, asyncio.AbstractEventLoop, Apart), Fingerprint.nothing),
    (enum.Enum, Fingerprint.member),
    (_PLAIN, Fingerprint.plain),
    (float, Fingerprint.number),
    (type, Fingerprint.named),
)

_READERS: tuple[tuple[Any, _Read], ...] = (
    (TrueEngine, Fingerprint.standing),
    (asyncio.Task, Fingerprint.task),
    (asyncio.Future, Fingerprint.future),
    ((types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType), Fingerprint.suspended),
    (types.FunctionType, Fingerprint.function),
    (types.MethodType, Fingerprint.method),
    ((list, tuple, deque), Fingerprint.sequence),
    ((set, frozenset), Fingerprint.unordered),
    (Mapping, Fingerprint.mapping),
    (BaseException, Fingerprint.exception),
)


@cache
def _kind(kind: type) -> _Read:
    """How what is of this type is read."""
    for kinds, read in _DIRECT:
        if issubclass(kind, kinds):
            return read
    for kinds, read in _READERS:
        if issubclass(kind, kinds):
            return lambda fingerprint, value: fingerprint.object(read, value)
    if is_dataclass(kind) and kind.__module__.startswith("lifecycle.") and kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return Fingerprint.frozen
    named = is_dataclass(kind) or any("__dict__" in vars(each) for each in kind.__mro__) or bool(_slots(kind))
    read = Fingerprint.attributes if named else Fingerprint.referents
    return lambda fingerprint, value: fingerprint.object(read, value)
