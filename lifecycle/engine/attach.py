"""Meeting an engine: what is taken of it at first sight, what is remembered of it, and what a person may declare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.commands import Resume
from ..core.deadline import Deadline
from ..core.errors import ConfigurationError, EngineBusy, InvalidTransition
from ..core.facts import Contents, Fact, Facts, Grade
from ..core.observation import Observation
from ..core.policy import ACCEPT
from ..core.states import RING, State
from ..core.verdicts import Condition, Unmeasurable
from ..rules.knowledge import by_level, launched, merge, unknown
from ..rules.machine import fire
from ..rules.table import allowed, fits
from ..store.sqlite import Memory
from .gather import EVERYTHING, residual

if TYPE_CHECKING:
    from .engine import Engine


async def attach(engine: Engine, memory: Memory | None, deadline: Deadline) -> None:
    """The engine is in the state that its facts make: those remembered of this boot, else those of first sight."""
    seen = await engine.adapter.observe(EVERYTHING, deadline_s=deadline.left_s)
    engine.attached_boot = seen.boot
    engine.facts = _first_facts(engine, seen)
    remembered = memory is not None and memory.recall(engine)
    if remembered:
        engine.facts = merge(engine.facts, seen, engine.capabilities)
    if engine.unsettled:
        engine.unsettled = not await engine.adapter.barrier(deadline_s=deadline.left_s)
    if None in engine.facts.mapped.values() and not engine.unsettled:
        reading = await residual(engine, deadline_s=deadline.left_s)
        engine.facts = by_level(engine.facts, reading, engine.context(Resume()))
    state = None
    if not engine.unsettled:
        state = fits(engine.facts, engine.capabilities, weights_are_valid=engine.weights_refusal() is None)
    if state is not State.RELEASED:
        engine.conditions.pop("memory_returned", None)  # what was kept of it was about a release
    trigger, source = f"observed_{state or State.FAILED}", engine.state
    fire(engine, trigger)
    # Looking overtakes nobody: another process may be in the middle of a command, and knows what this one cannot.
    engine.note(trigger, source, reason="attached", keep=not remembered)


def _first_facts(engine: Engine, seen: Observation) -> Facts:
    if seen.admission == "open" or not engine.capabilities.has_admission:
        return launched(seen, engine.capabilities, Grade.DECLARED)
    return unknown(seen, engine.capabilities)


async def check_evidence(engine: Engine, deadline: Deadline) -> None:
    """The engine can give the evidence that the policy asks for; ConfigurationError says what it cannot.

    With `unprovable="warn"` it hangs a condition on the engine instead.
    """
    lacking = {
        claim: f"{claim} can only be {best.name.lower()}"
        for claim, best in engine.capabilities.evidence.items()
        if claim in ACCEPT and best < engine.policy.least_grade(claim)
    }
    if engine.policy.least_grade("memory_returned") is Grade.MEASURED:
        reading = await residual(engine, deadline_s=deadline.left_s)
        if isinstance(reading, Unmeasurable):
            lacking["memory_returned"] = f"memory_returned cannot be measured: {reading.reason}"
    if lacking and engine.policy.unprovable == "refuse":
        raise ConfigurationError(
            f"{engine.name}: {'; '.join(lacking.values())}. Mend that, or accept less for it "
            "(Policy(accept={claim: grade})), or only warn (Policy(unprovable='warn'))"
        )
    for claim, reason in lacking.items():
        engine.conditions[claim] = Condition(Unmeasurable(reason=reason))


def check_declaration(engine: Engine, state: State, by: str, reason: str) -> None:
    """Raises where this may not be declared: EngineBusy, InvalidTransition, or ValueError without a name or reason."""
    holder, here = engine.busy or engine.in_move, allowed(engine.state)
    if holder is not None:
        raise EngineBusy(holder, engine=engine.name, command="declare", state=engine.state)
    if engine.state is not State.FAILED or state not in RING:
        raise InvalidTransition(engine=engine.name, command="declare", state=engine.state, allowed=here)
    if engine.unsettled:
        hint = "; what was sent before may still run: recover() first, which waits for its end"
        raise InvalidTransition(engine=engine.name, command="declare", state=engine.state, allowed=here, hint=hint)
    if not by.strip() or not reason.strip():
        raise ValueError("a declaration needs the name of who declares (by=) and a reason (reason=)")


def claims_of(state: State, engine: Engine) -> Mapping[Fact, Any]:
    """The facts that a person who declares this state says."""
    tags = frozenset(spec.name for spec in engine.capabilities.tags)
    weights = engine.capabilities.stage("weights")
    unmapped = {State.RELEASED: tags, State.WEIGHTS_RESTORED: tags - weights}.get(state, frozenset())
    claims: dict[Fact, Any] = {
        Fact.ADMISSION: "open" if state is State.SERVING else "closed",
        Fact.MAPPED: {tag: tag not in unmapped for tag in tags},
    }
    if state is not State.SERVING:
        claims[Fact.PAUSED_BY] = "abort"
    if state not in (State.SERVING, State.PAUSED):
        claims[Fact.RUNNING] = 0
    if state in (State.SERVING, State.KV_RESTORED):
        claims[Fact.CONTENTS] = {tag: Contents("loaded", engine.wanted) for tag in weights}
        claims[Fact.CACHE_FRESH] = True
    return claims
