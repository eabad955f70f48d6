"""Kept records: what is known of an engine that an earlier process kept a record of. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...core.capabilities import Capabilities
from ...core.facts import Fact
from ...core.frozen import FrozenMap
from ...core.observation import Observation
from ...core.record import Record
from ...core.sources import Pushed
from ...core.states import UPDATING, State
from .observed import after_observation


def seen_again(kept: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known of an engine that an earlier process kept this record of, about the boot that was seen.

    Of its conditions only `memory_returned` of a released engine still says something. What was under way when that
    process ended is unknown. One that was opened since, while its memory was released, may have any of it mapped.
    """
    returned = kept.conditions.get("memory_returned") if kept.state is State.RELEASED else None
    record = replace(kept, conditions=FrozenMap() if returned is None else FrozenMap({"memory_returned": returned}))
    record = record if kept.state.stable else interrupted(record)
    return after_observation(record, seen, capabilities)


def interrupted(record: Record) -> Record:
    """What is left of the record of an engine whose command was under way when its driver ended.

    Unknown is what the calls without an answer could change: of those that may be repeated, all that the command could
    (`CHANGED_BY`); of the others, what the one that was intended could. Where its bytes are compared with those before
    the whole command, so is what its earlier calls changed: their answers alone prove nothing. A push that was under
    way may still be open.
    """
    facts = record.facts.doubt(_could_change(record))
    pushing = record.state in UPDATING and isinstance(record.desired.source, Pushed)
    push_open = record.uncertain.push_open or pushing
    uncertain = replace(record.uncertain, needs_barrier=True, push_open=push_open)
    intent = record.uncertain.intent
    if intent is not None:
        doubt = intent.doubt
        since = {tag for tag in doubt.targets if doubt.before.mapped.get(tag) != doubt.at_start.mapped.get(tag)}
        facts = facts.doubt({**doubt.effect, Fact.MAPPED: dict.fromkeys({*doubt.effect.get(Fact.MAPPED, {}), *since})})
        uncertain = replace(uncertain, call=doubt, intent=None)
    return replace(record, facts=facts, uncertain=uncertain)


#: What calls that may be repeated can change while an engine is in a transient state, beside what an intent says.
CHANGED_BY: Mapping[State, tuple[Fact, ...]] = {
    State.PAUSING: (Fact.ADMISSION, Fact.PAUSED_BY, Fact.RUNNING),
    State.REPAUSING: (Fact.ADMISSION, Fact.PAUSED_BY, Fact.RUNNING),
    State.DRAINING: (Fact.RUNNING, Fact.CACHE_FRESH),
    State.RELEASING: (),
    State.RESTORING_WEIGHTS: (),
    State.UPDATING_WEIGHTS: (Fact.CONTENTS, Fact.CACHE_FRESH),
    State.UPDATING_IN_PLACE: (Fact.CONTENTS, Fact.CACHE_FRESH),
    State.UPDATING_LIVE: (Fact.CONTENTS, Fact.CACHE_FRESH),
    State.RESTORING_KV: (Fact.CACHE_FRESH,),
    State.RESUMING: (Fact.ADMISSION, Fact.PAUSED_BY, Fact.RUNNING),
}


def _could_change(record: Record) -> dict[Fact, Any]:
    changed = CHANGED_BY.get(record.state, ())
    return {fact: dict(record.facts.contents) if fact is Fact.CONTENTS else None for fact in changed}


def used_by_others(record: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known of an engine that another driver used since, which left no record that can be read here.

    It may have released, restored and loaded what it liked; what is observed now is all that is known.
    """
    unknown = {Fact.MAPPED: dict(record.facts.mapped), Fact.CONTENTS: dict(record.facts.contents)}
    facts = record.facts.doubt({**unknown, Fact.CACHE_FRESH: None, Fact.PAUSED_BY: None, Fact.RUNNING: None})
    facts = facts.doubt({Fact.ADMISSION: None})
    record = replace(record, facts=facts, uncertain=replace(record.uncertain, call=None))
    return after_observation(record.with_condition("memory_returned", None), seen, capabilities)
