"""Mappings that cannot change, so that what holds them can be hashed, compared, pickled and shared; and what replaces
fields of a frozen dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class FrozenMap(dict[K, V]):
    """A dict that refuses every change. It is hashable where its values are; `json.dumps` takes it as a dict."""

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("this mapping cannot be changed; make another one: {**mapping, key: value}")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    def __copy__(self) -> FrozenMap[K, V]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenMap[K, V]:
        return self


#: The empty mapping. What many values hold by default they share.
EMPTY: FrozenMap[Any, Any] = FrozenMap()

#: The types that hold nothing, so that nothing in them is to be frozen.
_PLAIN = frozenset({str, int, bool, float, type(None)})


def freeze(value: Any) -> Any:
    """The value with every mapping in it frozen and every list a tuple; what is neither stays as it is."""
    if type(value) in _PLAIN or isinstance(value, FrozenMap):
        return value
    if isinstance(value, Mapping):
        return FrozenMap({key: freeze(each) for key, each in value.items()}) if value else EMPTY
    if isinstance(value, list | tuple):
        return tuple(freeze(each) for each in value)
    if isinstance(value, set | frozenset):
        return frozenset(freeze(each) for each in value)
    return value


def freeze_fields(owner: object, *names: str) -> None:
    """These fields of a frozen dataclass hold frozen values. For its `__post_init__`."""
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, FrozenMap):
            object.__setattr__(owner, name, freeze(value))


if TYPE_CHECKING:
    from dataclasses import replace as replace
else:

    def replace(value: Any, /, **changes: Any) -> Any:
        """As `dataclasses.replace`, of a frozen dataclass all of whose fields are in its `__init__`.

        Where each change is what is there already, the value itself is returned: most of what a command might change it
        does not. Otherwise `__post_init__` is called.
        """
        for name, new in changes.items():
            if getattr(value, name, changes) is not new:
                break
        else:
            return value
        kind = type(value)
        replaced, put = object.__new__(kind), object.__setattr__
        for name in _field_names(kind):
            put(replaced, name, changes.pop(name) if name in changes else getattr(value, name))
        if changes:
            raise TypeError(f"{kind.__name__} has no field {', '.join(changes)}")
        if hasattr(kind, "__post_init__"):
            replaced.__post_init__()
        return replaced


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    """The fields of a dataclass, in their order."""
    return tuple(field.name for field in fields(kind))
