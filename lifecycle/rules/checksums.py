"""Weights shown by checksum: the whole of them, and by model role (the target model, a draft model beside it)."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.facts import Grade
from ..core.observation import Observation
from ..core.verdicts import Proved, Refuted, Unmeasurable, Verdict

#: Under this name stands the checksum of an engine that does not tell model roles apart.
WHOLE = "weights"


def by_model_role(seen: Observation) -> Mapping[str, str]:
    """The checksums that were seen, by model role; of the whole where roles are not told apart; none where none was."""
    if seen.checksums:
        return seen.checksums
    return {} if seen.checksum is None else {WHOLE: seen.checksum}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The model roles whose checksum is not what it was before, in words; empty where all are as they were."""
    differing = [role for role, was in before.items() if now.get(role) != was]
    return "; ".join(f"{_named(each)} is {now.get(each)}, not {before[each]}" for each in differing)


def unchanged(before: Observation, seen: Observation) -> str:
    """The model roles whose checksum a load has left as it was, in words; empty where it changed all of them."""
    was, now = by_model_role(before), by_model_role(seen)
    same = [role for role, value in now.items() if was.get(role) == value]
    return "; ".join(f"{_named(each)} is {now[each]}, as before" for each in same)


def compare(asked: str | Mapping[str, str], seen: Observation) -> Verdict | None:
    """Whether the weights have the checksums that were asked for; Refuted names the role that differs.

    None where nothing was asked of the roles that this engine has.
    """
    if isinstance(asked, str):
        if seen.checksum is None:
            return Unmeasurable(reason="a checksum was asked for, and the engine gives none")
        asked, now = {WHOLE: asked}, {WHOLE: seen.checksum}
    else:
        now = dict(seen.checksums)
        if asked and not now:
            return Unmeasurable(reason=f"checksums of {', '.join(asked)} were asked for, and the engine gives none")
    here = {role: value for role, value in asked.items() if role in now}
    if not here:
        return None
    differing = changed(here, now)
    if differing:
        return Refuted(reason=differing, figures={"checksums": now})
    found = [f"{_named(role)} is {value}" for role, value in here.items()]
    found += [f"{role}: not applicable, it has none" for role in asked if role not in now]
    return Proved(grade=Grade.MEASURED, reason="; ".join(found), figures={"checksums": now})


def _named(role: str) -> str:
    return "its checksum" if role == WHOLE else f"the checksum of its {role}"
