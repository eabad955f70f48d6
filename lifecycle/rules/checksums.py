"""Weights shown by checksum: the whole of them, and owner by owner (the target model, a draft model beside it)."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.facts import Grade
from ..core.observation import Observation
from ..core.verdicts import Proved, Refuted, Unmeasurable, Verdict

#: Under this name stands the checksum of an engine that does not tell owners apart.
WHOLE = "weights"


def by_owner(seen: Observation) -> Mapping[str, str]:
    """The checksums that were seen, by owner; of the whole where owners are not told apart; none where none was."""
    if seen.checksums:
        return seen.checksums
    return {} if seen.checksum is None else {WHOLE: seen.checksum}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The owners whose checksum is not what it was before, in words; empty where all are as they were."""
    differing = [owner for owner, was in before.items() if now.get(owner) != was]
    return "; ".join(f"{_named(each)} is {now.get(each)}, not {before[each]}" for each in differing)


def unchanged(before: Observation, seen: Observation) -> str:
    """The owners whose checksum a load has left as it was, in words; empty where it changed all of them."""
    was, now = by_owner(before), by_owner(seen)
    same = [owner for owner, value in now.items() if was.get(owner) == value]
    return "; ".join(f"{_named(each)} is {now[each]}, as before" for each in same)


def compare(asked: str | Mapping[str, str], seen: Observation) -> Verdict | None:
    """Whether the weights have the checksums that were asked for; Refuted names the owner that differs.

    None where nothing was asked of the owners that this engine has.
    """
    if isinstance(asked, str):
        if seen.checksum is None:
            return Unmeasurable(reason="a checksum was asked for, and the engine gives none")
        asked, now = {WHOLE: asked}, {WHOLE: seen.checksum}
    else:
        now = dict(seen.checksums)
        if asked and not now:
            return Unmeasurable(reason=f"checksums of {', '.join(asked)} were asked for, and the engine gives none")
    here = {owner: value for owner, value in asked.items() if owner in now}
    if not here:
        return None
    differing = changed(here, now)
    if differing:
        return Refuted(reason=differing, figures={"checksums": now})
    told = [f"{_named(owner)} is {value}" for owner, value in here.items()]
    told += [f"{owner}: not applicable, it has none" for owner in asked if owner not in now]
    return Proved(grade=Grade.MEASURED, reason="; ".join(told), figures={"checksums": now})


def _named(owner: str) -> str:
    return "its checksum" if owner == WHOLE else f"the checksum of its {owner}"
