"""Bytes: what is known once resident memory was read. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.capabilities import Capabilities
from ...core.commands import Release
from ...core.facts import Fact, Facts, Grade, Tag
from ...core.frozen import replace
from ...core.observation import Observation
from ...core.policy import Policy
from ...core.readings import Reading
from ...core.record import Record, UncertainCall
from ...core.states import State
from ...core.verdicts import Pending, Refuted, Unmeasurable, Verdict
from .. import mapping, returned, trend
from ..evidence import Context, Evidence, believed_only
from ..memory import learned_from_release
from ..proofs import memory_returned
from ..threshold import RESIDUAL_THRESHOLD, can_be_exceeded
from .observed import moved_by_others

_NOTHING_REPORTED = Observation()


def decided_by_bytes(record: Record, reading: Reading, capabilities: Capabilities, policy: Policy) -> Record:
    """The record with the mapping that was unknown decided by what is resident, where only one answer fits.

    Where a call is in doubt the bytes that moved since it was sent decide, and with them everything that the call would
    have changed. Where they do not, or no call is in doubt, what is resident decides, as it does of an engine that is
    met. A mapping is unknown where bytes deny it.
    """
    record = _unless_denied(record, reading, capabilities, policy)
    if believed_only(record):  # it is borne out now, and is asked again when something hangs on it
        return record
    call, facts, calibration = record.uncertain.call, record.facts, record.calibration
    decided: Mapping[Tag, bool] = {}
    if call is not None:
        decided = mapping.mapping_from_freed_bytes(facts, call, reading, capabilities, calibration, policy)
    if not decided:
        decided = mapping.mapping_from_resident_bytes(facts, reading, capabilities, calibration, policy, call)
    facts = facts.learn({Fact.MAPPED: decided}, Grade.MEASURED, cause="residual") if decided else facts
    return replace(record, facts=facts if call is None else _call_decided(facts, call))


def _unless_denied(record: Record, reading: Reading, capabilities: Capabilities, policy: Policy) -> Record:
    """The record; after somebody else's act where what is resident denies the mapping, as far as that is known."""
    denied = mapping.denied_by_bytes(record, reading, capabilities, policy)
    return record if denied is None else moved_by_others(record, _NOTHING_REPORTED, capabilities)


def read_at_rest(record: Record, reading: Reading | Unmeasurable, capabilities: Capabilities, policy: Policy) -> Record:
    """What is known once what is resident was read of an engine that nothing of ours runs on.

    Of a released engine `memory_returned` is judged anew: by the release that was proved, or, where a driver ended
    before its proof or in a restore that did nothing, by what the engine held with every tag mapped. What one that
    admits requests with every tag mapped holds is remembered, unless that is known of this process already.
    """
    if record.state is State.RELEASED:
        judged = returned.returned_still(record, reading, capabilities, policy)
        if isinstance(judged, Pending):  # a driver ended in the middle; of what others released there is no verdict
            judged = _returned_since_mapped(record, reading, capabilities, policy) or judged
        return record.with_condition("memory_returned", judged)
    mapped = bool(record.facts.mapped) and all(record.facts.mapped.values())
    first = record.calibration.reading_all_mapped is None
    if isinstance(reading, Reading) and first and mapped and record.facts.admission == "open":
        return replace(record, calibration=replace(record.calibration, reading_all_mapped=reading))
    return record


def _returned_since_mapped(
    record: Record, reading: Reading | Unmeasurable, capabilities: Capabilities, policy: Policy
) -> Verdict | None:
    """The proof of a release that gave back all that is unmapped now; None where nobody read what it held before."""
    full = record.calibration.reading_all_mapped
    if full is None:
        return None
    before, now = Evidence(residual=full), Evidence(residual=reading)
    unmapped = record.facts.unmapped()
    return memory_returned(Context(Release(), record, capabilities, policy, unmapped, evidence=now, baseline=before))


def after_release(
    record: Record, context: Context, returned: Verdict | None, by_call: Sequence[frozenset[Tag]]
) -> tuple[Record, list[str]]:
    """What a proved release teaches: what tags hold, where that was not known for sure, and whether a residual grows.

    `by_call` are the tags that each call gave back. With the record come warnings, in words.
    """
    calibration, policy = record.calibration, context.policy
    sizes = learned_from_release(context, returned, by_call)
    series, found = trend.after_release(calibration.residual_series, context.targets, returned, policy)
    warned = [condition.verdict for condition in found.values()]
    if calibration.reading_all_mapped is not None:
        verdict = can_be_exceeded(calibration.reading_all_mapped, policy)
        warned += [] if RESIDUAL_THRESHOLD in record.conditions else [verdict]
        record = record.with_condition(RESIDUAL_THRESHOLD, verdict)
    calibration = replace(calibration, bytes_by_tags=sizes, residual_series=series)
    record = replace(record, calibration=calibration, conditions={**record.conditions, **found})
    return record, [verdict.reason for verdict in warned if isinstance(verdict, Refuted)]


def moved_unseen(
    record: Record,
    seen: Observation,
    reading: Reading | Unmeasurable | None,
    capabilities: Capabilities,
    policy: Policy,
) -> str | None:
    """How what is resident shows that somebody else restored a tag, or released one, in words; None where it does not.

    Of an engine that says itself which tags are released nothing is told from bytes: its process may hold others. That
    a tag is not there is not told where the policy takes the mapping as asserted.
    """
    if seen.released_tags is not None or not isinstance(reading, Reading):
        return None
    back = returned.come_back(record, reading, capabilities, policy)
    if back is not None or policy.least_grade("mapping_borne_out") is Grade.ASSERTED:
        return back
    return mapping.released_since_mapped(record, reading, capabilities, policy)


def memory_is_unknown(record: Record, capabilities: Capabilities) -> Record:
    """What is known of an engine whose memory somebody else moved unseen."""
    return moved_by_others(record, _NOTHING_REPORTED, capabilities)


def _call_decided(facts: Facts, call: UncertainCall) -> Facts:
    """The facts with all of a call's effect, or all of what was before, where its tags' mapping is known by now."""
    mapped = call.effect.get(Fact.MAPPED, {})
    if mapped and all(facts.mapped[tag] is value for tag, value in mapped.items()):
        return facts.learn(call.effect, Grade.MEASURED, cause="residual")
    if mapped and all(facts.mapped[tag] is call.before.mapped[tag] for tag in mapped):
        undone = {fact: _value_before(call.before, fact, value) for fact, value in call.effect.items()}
        return facts.learn(undone, Grade.MEASURED, cause="residual")
    return facts


def _value_before(before: Facts, fact: Fact, value: Any) -> Any:
    was = getattr(before, fact)
    return {tag: was[tag] for tag in value} if isinstance(value, Mapping) else was
