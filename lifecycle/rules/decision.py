"""What to do next to find out where an engine is. Pure: `engine.reconcile` does what this decides, and asks again.

First no effect may be running any more, and one process must answer at the address. Then bytes may tell what the engine
does not, and may deny what is only remembered or asserted of its memory. Then an engine that admits requests without
being worth serving is closed, where that may be done. One that was closed is asked whether it is idle, where its state
hangs on that. And last it enters the first state that its facts make, or none
where several fit: then the reason names those, and what would decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import get_args

from ..core.capabilities import Capabilities
from ..core.facts import Admission, Facts, PauseMode
from ..core.frozen import replace
from ..core.observation import Observation
from ..core.policy import Policy
from ..core.record import Record
from ..core.states import State
from .evidence import believed_only, taken_as_launched
from .identity import IDENTITY, is_contested
from .mapping import Undecided
from .table import fits
from .weights import invalid_weights


@dataclass(frozen=True, slots=True)
class ReadBytes:
    """Read what is resident: it may decide which tags are mapped."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close admission: the engine is open, or may be, and is not worth serving."""


@dataclass(frozen=True, slots=True)
class AskIdle:
    """Ask whether it is idle: memory of it is unmapped, it is closed, and nothing that was read tells."""


@dataclass(frozen=True, slots=True)
class Enter:
    """Enter this state: the facts make it."""

    state: State


@dataclass(frozen=True, slots=True)
class Stay:
    """Stay where it is: no state fits, for this reason. `candidates` are the states that it may be in, where known."""

    reason: str
    candidates: tuple[State, ...] = field(default=(), compare=False)


Decision = ReadBytes | Close | AskIdle | Enter | Stay

DECIDED = Undecided()


def decide(
    record: Record,
    capabilities: Capabilities,
    *,
    tried: frozenset[type],
    may_close: bool,
    must_close: bool = False,
    undecided: Undecided = DECIDED,
) -> Decision:
    """The next step towards the state that the facts make. `tried` are the kinds of step that were taken already.

    `may_close`: the engine may be acted on. `must_close`: it is closed even where it is worth serving, and no state is
    entered unless it is. `undecided` is why what is resident did not tell the mapping, for the reason to stay.
    """
    if record.uncertain.needs_barrier:
        return Stay("what was sent before may still run")
    if is_contested(record):
        return Stay(record.conditions[IDENTITY].verdict.reason)
    facts = record.facts
    believed = believed_only(record) and (may_close or not taken_as_launched(record))
    if ReadBytes not in tried and (None in facts.mapped.values() or believed):
        return ReadBytes()
    invalid = invalid_weights(record, capabilities)
    valid = invalid is None
    worth_serving = facts.admission is not None and valid and all(each is True for each in facts.mapped.values())
    if may_close and Close not in tried and facts.admission != "closed" and (must_close or not worth_serving):
        return Close()
    if must_close and facts.admission != "closed":
        return Stay("it was to be closed, and is not known to be")
    hangs_on_idle = bool(facts.unmapped()) and None not in facts.mapped.values() and facts.running is None
    if may_close and AskIdle not in tried and facts.admission == "closed" and hangs_on_idle:
        return AskIdle()
    state = fits(facts, capabilities, weights_are_valid=valid)
    return _none_fits(record, capabilities, invalid, undecided) if state is None else Enter(state)


def closing_mode(facts: Facts, capabilities: Capabilities, policy: Policy) -> PauseMode | None:
    """The policy's mode where the engine is surely open; else one that can be entered from whatever it is in."""
    modes = capabilities.pause
    if facts.admission == "open" and policy.pause_mode in modes:
        return policy.pause_mode
    safe = [mode for mode, traits in modes.items() if traits.drains and not traits.unsafe_from]
    return next((mode for mode in safe if not modes[mode].needs_router), None)


def why_none(step: Stay, seen: Observation, facts: Facts) -> str:
    """Why no state was entered; where ranks disagree on whether they admit requests, what they said too."""
    disagree = bool(seen.disagreement) and facts.admission is None
    return f"{seen.disagreement}; {step.reason}" if disagree else step.reason


def _none_fits(record: Record, capabilities: Capabilities, invalid: str | None, undecided: Undecided) -> Stay:
    """Which states the engine may be in, what leaves that open, and what would decide."""
    facts, valid = record.facts, invalid is None
    unknown = [tag for tag, mapped in sorted(facts.mapped.items()) if mapped is None]
    candidates = dict.fromkeys(
        state
        for each in _possible(facts, unknown, undecided)
        if (state := fits(each, capabilities, weights_are_valid=valid)) is not None
    )
    open_questions, answers = [], []
    if facts.admission is None:
        open_questions.append("whether it admits requests is not known")
        answers.append("an answer that says so")
    elif facts.admission == "open" and not (valid and not unknown and not facts.unmapped()):
        weights = f" ({invalid})" if invalid else ""
        open_questions.append(f"it admits requests, and is not known to be worth serving{weights}")
        answers.append("that it is closed: recover() closes it")
    if facts.running != 0 and facts.admission == "closed" and (unknown or facts.unmapped()):
        open_questions.append("whether requests run is not known" if facts.running is None else "requests run")
        answers.append("that it is idle")
    if unknown:
        because = f": {undecided.why}" if undecided.why else ""
        open_questions.append(f"whether {', '.join(unknown)} is mapped is not known{because}")
        answers.append("a report of which tags are released")
    if undecided.unclosed:
        open_questions.append(f"it was not closed: {undecided.unclosed}")
    names, why = " or ".join(candidates) or "no state", "; ".join(open_questions) or str(facts)
    reason = f"{names}: {why}; what would decide: {', and '.join(answers) or 'nothing that is known here'}"
    return Stay(reason, tuple(candidates))


def _possible(facts: Facts, unknown: list[str], undecided: Undecided) -> Iterator[Facts]:
    """The facts with everything that states hang on known, in every way in which it may be so."""
    fitting = undecided.fitting if unknown else ()
    admissions: tuple[Admission, ...] = get_args(Admission) if facts.admission is None else (facts.admission,)
    running = 0 if facts.running is None else facts.running
    for admission in admissions:
        for mapped in product((True, False), repeat=len(unknown)):
            known = {**facts.mapped, **dict(zip(unknown, mapped, strict=True))}
            if fitting and frozenset(tag for tag, each in known.items() if each is False) not in fitting:
                continue
            yield replace(facts, admission=admission, mapped=known, running=running)
