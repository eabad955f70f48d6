"""Observations: what is known once an engine was looked at, or a router confirmed. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ...core.capabilities import Capabilities
from ...core.facts import Contents, Fact, Facts, Grade, Tag
from ...core.frozen import FrozenMap, replace
from ...core.observation import Observation
from ...core.record import Record
from ...core.verdicts import Refuted, Verdict
from .. import identity, quarantine
from ..evidence import LAUNCHED

#: The cause of what an observation told.
OBSERVED = "observation"


def after_observation(record: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known once the engine was observed, with nothing running on it any more.

    A process that is gone leaves nothing. One that did not answer changes nothing. Of another boot what is known is
    what is taken of a process that is met, where it is certain that the other has ended. An engine that an acknowledged
    call found in another process, or that somebody else opened or closed, may have any memory mapped and anything in
    it. Where two processes answer, nothing is taken of either.
    """
    if seen.alive is False:
        gone = replace(record.uncertain, needs_barrier=False, push_open=False)
        record = replace(record, facts=Facts(boot=record.facts.boot), uncertain=gone)
        return record.with_condition(identity.IDENTITY, None)
    if seen.boot is None:
        return record
    why = identity.dispute(record, seen)
    if why is not None:
        return disputed(record, seen, capabilities, why)
    contested, boot = identity.is_contested(record), record.facts.boot
    record = identity.sighted(record, seen.boot).with_condition(identity.IDENTITY, None)
    if boot is None:
        return replace(record, facts=unknown(seen, capabilities))
    likeness = identity.compare(boot, seen.boot)
    if likeness == "same":
        return _same_process(record, seen, capabilities)
    moved = record.uncertain.acked_unrepeatable
    met = _met(seen, capabilities) if likeness == "other" and not contested else unknown(seen, capabilities)
    calibration = record.calibration.of_another_process()
    fresh = replace(record, facts=met, conditions=FrozenMap(), calibration=calibration)
    record = quarantine.carried(fresh, record)
    record = replace(record, uncertain=replace(record.uncertain, call=None, push_open=False))
    return moved_by_others(record, seen, capabilities) if moved else record


def another_answered(record: Record, seen: Observation) -> Record:
    """What is known once an answer of another process than the one that the facts are about was received."""
    return identity.sighted(record, seen.boot)


def denied(record: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known once an observation denied what was, before anything else is asked.

    The next observation may deny it no more: who opened an engine may have closed it again by then. So what was seen of
    the process that the facts are about is taken in. Of another process nothing is, but that it answered.
    """
    record = another_answered(record, seen)
    if not identity.same_process(record.facts.boot, seen.boot):
        return record
    return _same_process(record, seen, capabilities)


def let_in_by_others(record: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known once requests were found to run in an engine that was left closed and idle.

    Somebody else opened it, and closed it again in whatever mode. Whoever did may have moved its memory and loaded
    weights.
    """
    record = moved_by_others(denied(record, seen, capabilities), seen, capabilities)
    return replace(record, facts=record.facts.doubt({Fact.RUNNING: None, Fact.PAUSED_BY: None}))


def disputed(record: Record, seen: Observation, capabilities: Capabilities, why: str) -> Record:
    """What is known where two processes answer at the address: what was known of the one that the facts are about.

    Either of them may have taken the calls that were acknowledged. So what those of the present command moved in memory
    is unknown.
    """
    if identity.same_process(record.facts.boot, seen.boot):
        record = _same_process(record, seen, capabilities)
    if record.uncertain.acked_unrepeatable:
        record = moved_by_others(record, seen, capabilities)
    record = record.with_condition("memory_returned", None)
    for boot in (*seen.others, seen.boot):
        record = identity.sighted(record, boot)
    advice = "give each engine an address of its own, and recover() looks again"
    return record.with_condition(identity.IDENTITY, Refuted(reason=f"{why}; {advice}"))


def _same_process(record: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known of the process that the facts are about, which somebody else may have opened or closed."""
    others = _others_acted(record.facts, seen)
    record = replace(record, facts=_merged(record.facts, seen, capabilities))
    return moved_by_others(record, seen, capabilities) if others else record


def _others_acted(facts: Facts, seen: Observation) -> bool:
    """Whether no call of ours explains the admission, the requests or the mapping that is seen.

    Who closed an open engine may have released its memory, and who opened a closed one may have restored it, with any
    weights. Where it is not known how a call of ours left the admission, that call explains it, unless memory is
    unmapped: no call of ours opens an engine then. A call that was acknowledged to open it does not explain that it is
    closed, though it answered nobody. Requests that run in a closed engine that was idle came while somebody had it
    open. So it is where some ranks of an idle engine are open. Who moved one tag may have loaded weights into another.
    """
    if facts.admission == "closed" and facts.running == 0 and (seen.running or seen.disagreement):
        return True
    if seen.released_tags is not None and _moved(facts, seen.released_tags):
        return True
    if seen.admission is None or seen.admission == facts.admission:
        return False
    if facts.admission is None and seen.admission == "closed":
        return facts.paused_by is None and Fact.PAUSED_BY in facts.basis
    return facts.admission is not None or bool(facts.unmapped())


def _moved(facts: Facts, released: Collection[Tag]) -> bool:
    """Whether a tag that was known to be mapped is reported as released, or the other way round."""
    return any(known is not None and known is (tag in released) for tag, known in facts.mapped.items())


def moved_by_others(record: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What its memory is and holds is unknown, but for what it reports; no device of it is free."""
    contents = dict.fromkeys(capabilities.stage("weights"))
    facts = record.facts.doubt({Fact.CONTENTS: contents, Fact.CACHE_FRESH: None})
    if seen.released_tags is None:
        facts = facts.doubt({Fact.MAPPED: dict.fromkeys(facts.mapped)})
    # bytes that others moved do not tell what a lost call did
    record = replace(record, facts=facts, uncertain=replace(record.uncertain, call=None))
    return record.with_condition("memory_returned", None)


def first_seen(record: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known of an engine that is met for the first time by this process."""
    calibration = replace(record.calibration, attached_boot=seen.boot)
    record = replace(record, facts=_met(seen, capabilities), calibration=calibration)
    return identity.sighted(record, seen.boot)


def confirmed(record: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known once the same process was observed right after a call of ours: it reports what that call did."""
    return replace(record, facts=_merged(record.facts, seen, capabilities))


def barrier_returned(record: Record) -> Record:
    """All that was sent before has taken effect or never will."""
    return replace(record, uncertain=replace(record.uncertain, needs_barrier=False))


def _met(seen: Observation, capabilities: Capabilities) -> Facts:
    """What is taken of a process that is met: one that admits requests is as it was launched, of another nothing is."""
    admits = seen.admission == "open" or not capabilities.has_admission
    return launched(seen, capabilities) if admits else unknown(seen, capabilities)


def launched(seen: Observation, capabilities: Capabilities) -> Facts:
    """All is mapped and holds what it launched with. Graded *asserted*: its first proved release measures it."""
    tags = [spec.name for spec in capabilities.tags]
    contents = {tag: Contents("launched", seen.weights_label) for tag in capabilities.stage("weights")}
    effect: dict[Fact, Any] = {
        Fact.BOOT: seen.boot,
        Fact.MAPPED: dict.fromkeys(tags, True),
        Fact.CONTENTS: contents,
        Fact.CACHE_FRESH: True,
    }
    return _merged(Facts().learn(effect, Grade.ASSERTED, cause=LAUNCHED), seen, capabilities)


def unknown(seen: Observation, capabilities: Capabilities) -> Facts:
    """What is known of a process that is met while it admits nothing: whether its memory is mapped, is not."""
    tags = [spec.name for spec in capabilities.tags]
    effect = {Fact.BOOT: seen.boot, Fact.MAPPED: dict.fromkeys(tags), Fact.CONTENTS: dict.fromkeys(tags)}
    return _merged(Facts().learn(effect, Grade.REPORTED, cause=OBSERVED), seen, capabilities)


def _merged(facts: Facts, seen: Observation, capabilities: Capabilities) -> Facts:
    """The facts after an observation of the same process: what it reports replaces what was known."""
    reported: dict[Fact, Any] = {}
    if seen.admission is not None and seen.admission != facts.admission:
        reported[Fact.ADMISSION] = seen.admission
        reported[Fact.RUNNING] = None
        if seen.admission == "open":
            reported[Fact.PAUSED_BY] = None
    if seen.running is not None:
        reported[Fact.RUNNING] = seen.running
    if seen.released_tags is not None:
        reported[Fact.MAPPED] = {spec.name: spec.name not in seen.released_tags for spec in capabilities.tags}
    denied = _denied_contents(facts, seen, reported.get(Fact.MAPPED, {}))
    denied |= {Fact.ADMISSION: None, Fact.RUNNING: None} if seen.disagreement else {}
    return facts.learn(reported, Grade.REPORTED, cause=OBSERVED, read_at_s=seen.sampled_at or None).doubt(denied)


def _denied_contents(facts: Facts, seen: Observation, mapped: Mapping[Tag, bool]) -> dict[Fact, Any]:
    """What others changed with what they did: contents of memory that they moved, or that has another label now.

    A tag that is released now has moved, unless it was known to be released before.
    """
    were = {tag: facts.mapped.get(tag) for tag in mapped}
    moved = {tag for tag, now in mapped.items() if were[tag] is not now and False in (were[tag], now)}
    label = seen.weights_label
    other = {tag for tag, held in facts.contents.items() if held and label and held.version not in (None, label)}
    denied = {tag for tag in facts.contents if tag in moved | other}
    effect: dict[Fact, Any] = {Fact.CACHE_FRESH: None} if moved else {}
    return {**effect, Fact.CONTENTS: dict.fromkeys(denied)} if denied else effect


def routed(record: Record, sends: bool | None, verdict: Verdict, grade: Grade) -> Record:
    """What is known once a router was closed or opened: whether it sends to the engine (None: not certain)."""
    record = replace(record, facts=record.facts.learn({Fact.ROUTED: sends}, grade, cause="router"))
    return record.with_condition("routed", verdict)
