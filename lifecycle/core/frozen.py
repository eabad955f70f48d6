"""Mappings that cannot change, so that what holds them can be hashed, compared, pickled and shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

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


def freeze(value: Any) -> Any:
    """The value with every mapping in it frozen and every list a tuple; what is neither stays as it is."""
    if isinstance(value, FrozenMap):
        return value
    if isinstance(value, Mapping):
        return FrozenMap({key: freeze(each) for key, each in value.items()})
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
