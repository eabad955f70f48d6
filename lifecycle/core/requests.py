"""Requests of a move: what an engine or its router counts of them, and what became of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Who counted: the engine itself, or the router in front of it.
CountedBy = Literal["engine", "router"]


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """What was counted of requests at one moment; None where that is not told.

    All but `open` grow from the start of whatever counts, which `boot` identifies: counts of another boot, or of none,
    say nothing of these.

    - `ended`: requests that were admitted and have ended, in whatever way.
    - `finished`: those that ended by themselves. `doubtful` are further counts, each of which grows with every finished
      request that `finished` may have missed, and perhaps with others: what one of them grew by is the most that was
      missed.
    - `aborted`: those that were ended before they were finished, whoever asked for that.
    - `refused`: requests that were answered with 503 and never admitted.
    - `open`: requests that have not ended: they run, or are kept, or wait for the engine to serve again.
    """

    source: CountedBy
    boot: str | None
    ended: int | None = None
    finished: int | None = None
    doubtful: tuple[int, ...] = ()
    aborted: int | None = None
    refused: int | None = None
    open: int | None = None


@dataclass(frozen=True, slots=True)
class RequestFates:
    """What became of the requests of an engine since it was paused: how many of each, None where that is not known.

    - `ended`: those that ended, in whatever way: finished, aborted, or by an error.
    - `finished`: those that ended by themselves.
    - `aborted`: those that were ended before that, whoever asked for it, with what they had generated.
    - `kept`: those that have not ended, and go on once the engine serves again. Those that came while it was closed,
      and wait, are among them.
    - `refused`: those that were answered with 503 and never admitted.

    `source` is who counted; None where nothing is known.
    """

    ended: int | None = None
    finished: int | None = None
    aborted: int | None = None
    kept: int | None = None
    refused: int | None = None
    source: CountedBy | None = None

    @property
    def known(self) -> dict[str, int]:
        """What is known, by the name of the fate."""
        named = ((name, getattr(self, name)) for name in FATES)
        return {name: count for name, count in named if count is not None}

    @property
    def are_known(self) -> bool:
        """Whether anything is known."""
        return bool(self.known)

    def __str__(self) -> str:
        if not self.are_known:
            return "unknown"
        said = ", ".join(
            f"{'unknown' if getattr(self, name) is None else getattr(self, name)} {name}" for name in FATES
        )
        return f"{said} (by the {self.source})"


#: The fates, in the order in which they are printed.
FATES = ("ended", "finished", "aborted", "kept", "refused")

#: The fates of requests of which nothing was counted.
NOT_KNOWN = RequestFates()
