"""Kept records: what is known of an engine that an earlier process kept a record of. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.capabilities import Capabilities
from ...core.facts import Basis, Fact, Facts, Grade
from ...core.frozen import FrozenMap, replace
from ...core.observation import Observation
from ...core.record import Record, Uncertain
from ...core.sources import Pushed
from ...core.states import UPDATING, State
from ...core.verdicts import Pending
from .. import identity, quarantine
from .observed import after_observation, disputed, first_seen, unknown

#: The cause of what only an earlier process knew.
REMEMBERED = "remembered"


def attached(record: Record, kept: Record | None, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known of an engine once it was first observed by this process, which has `kept` of an earlier one.

    The kept record counts where it is about the process that answers, or about one that still runs beside it. That the
    engine is in quarantine counts whichever process answers.
    """
    now = _attached(record, kept, seen, capabilities)
    return now if kept is None else quarantine.carried(now, kept)


def _attached(record: Record, kept: Record | None, seen: Observation, capabilities: Capabilities) -> Record:
    if kept is None or kept.facts.boot is None or seen.boot is None:
        return first_seen(record, seen, capabilities)
    record = replace(record, calibration=replace(record.calibration, boots=kept.calibration.boots))
    record = identity.sighted(replace(record, facts=Facts(boot=kept.facts.boot)), kept.facts.boot)
    why, likeness = identity.dispute(record, seen), identity.compare(kept.facts.boot, seen.boot)
    if set(kept.facts.mapped) == {spec.name for spec in capabilities.tags} and (why or likeness == "same"):
        return replace(seen_again(kept, seen, capabilities), state=record.state)
    if why is not None:
        return disputed(replace(record, facts=unknown(seen, capabilities)), seen, capabilities, why)
    met = first_seen(record, seen, capabilities)
    return replace(met, facts=unknown(seen, capabilities)) if likeness == "moved" else met


def ended(kept: Record, now: Record) -> Record:
    """What is known of an engine whose processes have all ended since an earlier process kept this record of it."""
    record = replace(kept, state=now.state, facts=Facts(boot=kept.facts.boot), uncertain=Uncertain())
    return quarantine.carried(replace(record, conditions=FrozenMap()), kept)


def seen_again(kept: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known of an engine that an earlier process kept this record of, about the boot that was seen.

    Of its conditions `memory_returned` of a released engine still says something, once its memory is read again, and
    that it is in quarantine. The others do not.
    What was under way when that process ended is unknown, and so is whether a router sends to the engine. One that was
    opened or closed since may have any memory mapped. Otherwise the mapping is remembered, not measured: others may
    have moved memory and left the admission as it was.
    """
    returned = kept.conditions.get("memory_returned")
    if kept.state is not State.RELEASED and (returned is None or not isinstance(returned.verdict, Pending)):
        returned = None  # pending: its driver ended in a release or a restore, and what is resident may decide
    record = replace(kept, conditions=FrozenMap() if returned is None else FrozenMap({"memory_returned": returned}))
    record = record if kept.state.stable else interrupted(record)
    record = quarantine.carried(record, kept)
    record = identity.sighted(record, kept.facts.boot)
    facts = record.facts.doubt({Fact.ROUTED: None})
    if Fact.MAPPED in facts.basis:
        facts = replace(facts, basis=FrozenMap({**facts.basis, Fact.MAPPED: Basis(Grade.ASSERTED, REMEMBERED)}))
    return after_observation(replace(record, facts=facts), seen, capabilities)


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
        tags = {*doubt.effect.get(Fact.MAPPED, {}), *since}
        facts = facts.doubt({**doubt.effect, Fact.MAPPED: dict.fromkeys(tags)} if tags else doubt.effect)
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
