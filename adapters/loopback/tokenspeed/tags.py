"""Lists of tags as a release or restore names them. Source: tokenspeed 0.1.1, runtime/engine/memory_occupation.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

VALID = ("weights", "kv_cache")


class BadTags(ValueError):
    """A list that names what is no tag, and which names there are."""


def ordered(wanted: object, *, all_of: Sequence[str]) -> list[str]:
    """The tags in the engine's order; `all_of` where none are given. An empty list is an empty list.

    Anything that can be gone through is a list: of a word its letters are. What cannot is a TypeError.
    """
    if wanted is None:
        return list(all_of)
    if not isinstance(wanted, Iterable):
        raise TypeError(f"'{type(wanted).__name__}' object is not iterable")
    named = list(wanted)
    bad = [tag for tag in named if tag not in VALID]
    if bad:
        raise BadTags(f"invalid tags: {bad!r}; valid: {list(VALID)}")
    return [tag for tag in VALID if tag in named]
