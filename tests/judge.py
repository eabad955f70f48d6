"""The judge checks the invariants against the model itself, never against what the library believes.

A broken invariant is excused where no evidence could have shown the truth. There are three such cases:

- The model answered falsely without a trace: a load that did nothing while the wanted label was in place, a flush that
  did nothing, or a release that did nothing (it looks like one that freed nothing). The facts concerned are excused as
  long as that process lives.
- The process was replaced between two requests of one command. Nothing shows that before the next answer, so the calls
  in between are excused.
- The engine was externally modified. The change counts from the next time that the engine reports the facts concerned.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from lifecycle import Contents, Engine, State
from lifecycle.core.facts import GARBAGE, Fact
from lifecycle.testing import ScriptedEngine


class Invariant(StrEnum):
    """The invariants of the library; the value is the sentence in a report."""

    RELEASED_IDLE = "nothing is released that is not idle"
    DRAINED_TOGETHER = "no participant of a move is released before all are drained"
    RESUMED_FIT = "no resume while a tag is unmapped, weights are invalid or the cache is stale"
    SENT_ONCE = "a call that cannot be repeated is never sent twice, and no call of ours ends a process"
    BARRIER_FIRST = "nothing is sent after a lost or cancelled effect before its barrier"
    HANDED_OVER = "a device is handed over only on proof, or once its process has ended"
    IN_TIME = "no command returns after its deadline"
    STABLE = "a command ends in a stable state and leaves the engine free"
    TRUE_FACTS = "every known fact is true"
    ONE_AT_A_TIME = "a refused or second caller changes nothing"
    SERVED_FIT = "nothing is served from garbage weights or a stale cache"
    SERVES_AGAIN = "a healthy engine can be brought back to serving from every state"


STALE = "the cache is stale"


@dataclass
class Judge:
    """Counts the checks of each invariant, and keeps those that did not hold."""

    asked: Counter[Invariant] = field(default_factory=Counter)
    broken: list[tuple[Invariant, str]] = field(default_factory=list)
    excused: Counter[Invariant] = field(default_factory=Counter)

    def hold(self, invariant: Invariant, holds: bool, why: str, *, excuse: bool = False) -> None:
        """Counts one check. Where it does not hold and is not excused, it is kept for `check`."""
        self.asked[invariant] += 1
        if not holds and excuse:
            self.excused[invariant] += 1
        elif not holds:
            self.broken.append((invariant, why))

    def check(self) -> None:
        """Raises AssertionError, which names every broken invariant."""
        assert not self.broken, "\n".join(f"{invariant}: {why}" for invariant, why in self.broken)


def fit_to_serve(model: ScriptedEngine, wanted: str | None, attached: str | None) -> str | None:
    """Returns why the model must not serve now, or None where it may."""
    if model.unmapped:
        return f"{', '.join(sorted(model.unmapped))} unmapped"
    for tag, contents in model.contents.items():
        if contents == GARBAGE:
            return f"{tag} holds garbage"
        if wanted is not None and contents.version != wanted:
            return f"{tag} holds {contents}, and {wanted} is wanted"
        if contents.origin == "launched" and attached not in (None, model.boot):
            return f"{tag} holds what a restarted process launched with"
    kept = model.paused_by == "freeze"  # a live update keeps the KV cache of its requests on purpose
    return None if model.cache_fresh or kept else STALE


def false_facts(engine: Engine, model: ScriptedEngine) -> dict[Fact, str]:
    """Returns the facts that the library claims and that are false in the model, each with both values."""
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
    """Returns admission, requests and unmapped tags of the model where they contradict the state, else None."""
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
    """Whether both are garbage, or neither is and the versions are equal."""
    if GARBAGE in (believed, true):
        return believed == true
    return believed.version == true.version


def still_held(engine: Engine, model: ScriptedEngine) -> str | None:
    """Returns what the engine still holds of memory that it was said to have returned, or None."""
    if engine.state is State.GONE:
        return f"{model.boot} is alive" if model.alive else None
    least = max(engine.policy.visible_bytes, engine.policy.visible_fraction * sum(model.sizes.values()))
    seen = [
        tag for tag in engine.facts.unmapped() if model.sizes[tag] >= least
    ]  # the bytes of a smaller tag cannot be measured
    held = [tag for tag in seen if model.alive and model.resident[tag]]
    if held:
        return f"{', '.join(held)} still resident"
    staying = sum(model.sizes[tag] for tag in model.sizes if tag not in engine.facts.unmapped())
    most = max(model.bytes_by_device().values()) if model.alive else 0
    allowed = engine.policy.threshold_bytes + staying * max(1, model.capabilities.ranks // len(set(model.devices)))
    return f"{most} bytes held, {allowed} allowed" if most > allowed else None
