"""The judge: it looks at the model itself, never at what the library believes, and notes every invariant broken.

What it excuses, and why. The model lies in ways that no evidence of its adapter could show (a load that answers, does
nothing, and left the wanted label in place; a flush that did nothing; a release that answered and did nothing, which
looks like one that freed nothing); what such a lie is about is not held against the library while that process lives.
A process that is replaced between two requests of one command cannot be told before the next answer: what is sent
in between is not held against it either. What others did counts from the next time the engine tells of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from lifecycle import Contents, Engine, State
from lifecycle.core.facts import GARBAGE, Fact
from lifecycle.testing import ScriptedEngine


class Invariant(StrEnum):
    """What holds whatever happens."""

    RELEASED_IDLE = "nothing is released that is not idle"
    DRAINED_TOGETHER = "no participant of a move is released before all are drained"
    RESUMED_FIT = "no resume while a tag is unmapped, weights are invalid or the cache is stale"
    SENT_ONCE = "a call that cannot be repeated is never sent twice, and no call of ours ends a process"
    BARRIER_FIRST = "nothing is sent after a lost or cancelled effect before its barrier"
    HANDED_OVER = "a device is handed over only on proof or death"
    IN_TIME = "no command returns after its deadline"
    STABLE = "a command leaves a stable state, and an engine that nobody has"
    TRUE_FACTS = "what is known is true"
    ONE_AT_A_TIME = "a refused or second caller touches nothing"
    SERVED_FIT = "nothing is served from garbage weights or a stale cache"
    COMES_HOME = "from wherever it is, an engine that is well can be brought to serve"


STALE = "the cache is stale"


@dataclass
class Judge:
    """How often each invariant was asked about, and every time that one did not hold."""

    asked: Counter[Invariant] = field(default_factory=Counter)
    broken: list[tuple[Invariant, str]] = field(default_factory=list)
    excused: Counter[Invariant] = field(default_factory=Counter)

    def hold(self, invariant: Invariant, holds: bool, why: str, *, excuse: bool = False) -> None:
        """Notes one question; one that does not hold and is not excused is kept for `check`."""
        self.asked[invariant] += 1
        if not holds and excuse:
            self.excused[invariant] += 1
        elif not holds:
            self.broken.append((invariant, why))

    def check(self) -> None:
        """Raises AssertionError that names every invariant that was broken."""
        assert not self.broken, "\n".join(f"{invariant}: {why}" for invariant, why in self.broken)


def fit_to_serve(model: ScriptedEngine, wanted: str | None, attached: str | None) -> str | None:
    """What is wrong with serving now, by the model's own truth; None where nothing is."""
    if model.unmapped:
        return f"{', '.join(sorted(model.unmapped))} unmapped"
    for tag, contents in model.contents.items():
        if contents == GARBAGE:
            return f"{tag} holds garbage"
        if wanted is not None and contents.version != wanted:
            return f"{tag} holds {contents}, and {wanted} is wanted"
        if contents.origin == "launched" and attached not in (None, model.boot):
            return f"{tag} holds what a restarted process launched with"
    kept = model.paused_by == "freeze"  # for a live update, which keeps what its requests hold on purpose
    return None if model.cache_fresh or kept else STALE


def untruths(engine: Engine, model: ScriptedEngine) -> dict[Fact, str]:
    """The facts that the library claims and that are not so."""
    facts, wrong = engine.facts, {}
    if facts.admission not in (None, model.admission):
        wrong[Fact.ADMISSION] = f"admission {facts.admission}, and it is {model.admission}"
    if facts.running == 0 and facts.admission == "closed" and model.running:
        wrong[Fact.RUNNING] = f"none runs, and {model.running} do"
    for tag, mapped in facts.mapped.items():
        if mapped is not None and mapped is (tag in model.unmapped):
            wrong[Fact.MAPPED] = f"{tag} mapped={mapped}, and it is {tag not in model.unmapped}"
    for tag, contents in facts.contents.items():
        if contents is not None and tag in model.contents and not same(contents, model.contents[tag]):
            wrong[Fact.CONTENTS] = f"{tag} holds {contents}, and it holds {model.contents[tag]}"
    if facts.cache_fresh and not model.cache_fresh:
        wrong[Fact.CACHE_FRESH] = "the cache is fresh, and it is stale"
    return wrong


def false_claim(state: State, model: ScriptedEngine) -> str | None:
    """What the state claims of admission, requests and memory that is not so; None where all of it is."""
    closed, mapped = model.admission == "closed", not model.unmapped
    idle = not model.running and not model.stubborn
    weights = model.capabilities.stage("weights")
    claims = {
        State.SERVING: (not closed, mapped),
        State.PAUSED: (closed, mapped),
        State.DRAINED: (closed, idle, mapped),
        State.RELEASED: (closed, idle, not mapped),
        State.WEIGHTS_RESTORED: (closed, idle, not weights & model.unmapped),
        State.KV_RESTORED: (closed, idle, mapped),
    }
    if all(claims.get(state, ())):
        return None
    return f"admission {model.admission}, {model.running} run, unmapped {sorted(model.unmapped)}"


def same(believed: Contents, true: Contents) -> bool:
    """Whether both are garbage, or neither is and their versions agree."""
    if GARBAGE in (believed, true):
        return believed == true
    return believed.version == true.version


def still_held(engine: Engine, model: ScriptedEngine) -> str | None:
    """What the engine holds of memory that was handed over; None where its bytes bear the handing over out."""
    if engine.state is State.GONE:
        return f"{model.boot} is alive" if model.alive else None
    least = max(engine.policy.visible_bytes, engine.policy.visible_fraction * sum(model.sizes.values()))
    seen = [tag for tag in engine.facts.unmapped() if model.sizes[tag] >= least]  # a smaller one cannot be seen
    held = [tag for tag in seen if model.alive and model.resident[tag]]
    if held:
        return f"{', '.join(held)} still resident"
    staying = sum(model.sizes[tag] for tag in model.sizes if tag not in engine.facts.unmapped())
    most = max(model.bytes_by_device().values()) if model.alive else 0
    allowed = engine.policy.threshold_bytes + staying * max(1, model.capabilities.ranks // len(set(model.devices)))
    return f"{most} bytes held, {allowed} allowed" if most > allowed else None
