"""What became of requests, from what was counted of them before and now. Pure.

Only a difference of one counter of one boot says anything: one that is lower than before, or of another boot, or of
nobody knows which, says nothing, and nothing is guessed instead.
"""

from __future__ import annotations

from ..core.requests import NOT_KNOWN, RequestCounts, RequestFates


def fates_between(before: RequestCounts | None, now: RequestCounts | None) -> RequestFates:
    """What became of the requests of an engine between two counts, the second of which was made while it was closed.

    A router sends nothing to the engine meanwhile, so that what it counts as open only falls, and by what has ended.
    """
    if before is None or now is None or before.source != now.source:
        return NOT_KNOWN
    if before.boot is None or before.boot != now.boot:
        return NOT_KNOWN
    ended = _grown(before.ended, now.ended)
    if now.source == "router":
        ended = _grown(now.open, before.open)
        if ended is None:  # it sent more meanwhile: what is open now is not what was kept
            return NOT_KNOWN
    finished = _finished(before, now)
    aborted = _grown(before.aborted, now.aborted)
    if ended == 0:
        finished, aborted = 0, 0
    elif aborted is None and finished == 0:  # nothing that ended did so by itself
        aborted = ended
    if ended is not None and (finished or 0) + (aborted or 0) > ended:  # they count other things than this
        finished = aborted = None
    fates = RequestFates(ended, finished, aborted, now.open, _grown(before.refused, now.refused), now.source)
    return fates if fates.are_known else NOT_KNOWN


def _grown(before: int | None, now: int | None) -> int | None:
    return None if before is None or now is None or not 0 <= before <= now else now - before


def _finished(before: RequestCounts, now: RequestCounts) -> int | None:
    """How many finished; None where some may have that the count of them missed."""
    if len(before.doubtful) != len(now.doubtful):
        return None
    missed = [_grown(then, since) for then, since in zip(before.doubtful, now.doubtful, strict=True)]
    if missed and 0 not in missed:
        return None
    return _grown(before.finished, now.finished)


def later(first: RequestFates, then: RequestFates) -> str | None:
    """Why `then` cannot be the fates of the same requests as `first`, counted later; None where it can."""
    for name in ("ended", "finished", "aborted", "refused"):
        was, now = getattr(first, name), getattr(then, name)
        if was is not None and now is not None and now < was:
            return f"{name} fell from {was} to {now}"
    return None


def impossible(fates: RequestFates) -> str | None:
    """Why nothing can have counted these fates; None where something can."""
    for name, count in fates.known.items():
        if count < 0:
            return f"{count} requests are said to be {name}"
    if fates.are_known != (fates.source is not None):
        return f"{'they are' if fates.are_known else 'nothing is'} known, and counted by {fates.source or 'nobody'}"
    parts = (fates.finished or 0) + (fates.aborted or 0)
    if fates.ended is not None and parts > fates.ended:
        return f"{fates.finished} finished and {fates.aborted} were aborted, of {fates.ended} that ended"
    return None
