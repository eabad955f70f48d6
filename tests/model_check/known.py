"""Faults of the library that the explorer has found and that are not mended yet: by name, and how each is told.

A run that comes to one of them is counted under its name and goes no further; everything else is a violation. The list
may only become shorter: `tests/model_check/test_explorer.py` fails where one is not found any more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    """One fault: what it is, what its violation says, and what must have happened for it."""

    name: str
    says: str
    after: str

    def fits(self, what: str, story: str) -> bool:
        """Whether this violation is an instance of it."""
        return re.search(self.says, what) is not None and self.after in story


KNOWN = (
    Known(
        "a tag that somebody else restored is restored again, though its bytes were read to be back: the process ends",
        r"sends e\d: restore\(.*was restored, and was not released",
        "somebody else restores",
    ),
    Known(
        "a release that somebody else undid before its memory was read is taken for one that freed nothing, though the "
        "bytes of its first tag were seen to go and are back",
        r"says of e\d: it is released; admission closed, 0 run, unmapped \[\]",
        "somebody else restores",
    ),
    Known(
        "a state that a reading of memory denies is refused as the source of a command, and still claimed",
        r"says of e\d: it is (drained|serving); admission closed, 0 run, unmapped \['kv_cache', 'weights'\]",
        "somebody else releases",
    ),
    Known(
        "after a restore of the KV cache that failed, weights that somebody else released count as mapped",
        r"a dead end, though what is seen fits one truth: failed: no state: whether kv_cache is mapped",
        "somebody else releases",
    ),
    Known(
        "of tags of one size it is not told which one a call without an answer moved, though the other is known",
        r"a dead end, though what is seen fits one truth: failed: .* which fits kv_cache released or weights released",
        "was not answered in time",
    ),
)


def known_as(what: str, story: str) -> str | None:
    """The name of the known fault that this violation is an instance of."""
    return next((each.name for each in KNOWN if each.fits(what, story)), None)
