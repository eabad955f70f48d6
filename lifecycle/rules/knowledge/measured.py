"""Bytes: what is known once resident memory was read. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...core.capabilities import Capabilities
from ...core.facts import Fact, Facts, Grade, Tag
from ...core.policy import Policy
from ...core.readings import Reading
from ...core.record import Record, UncertainCall
from .. import mapping


def decided_by_bytes(record: Record, reading: Reading, capabilities: Capabilities, policy: Policy) -> Record:
    """The record with the mapping that was unknown decided by what is resident, where only one answer fits.

    Where a call is in doubt the bytes that moved since it was sent decide, and with them everything that the call would
    have changed. Where they do not, or no call is in doubt, the level alone decides, as it does of an engine that is
    met.
    """
    call, facts, calibration = record.uncertain.call, record.facts, record.calibration
    decided: Mapping[Tag, bool] = {}
    if call is not None:
        decided = mapping.mapping_from_freed_bytes(facts, call, reading, capabilities, calibration, policy)
    if not decided:
        decided = mapping.mapping_from_resident_bytes(facts, reading, capabilities, calibration, policy)
    facts = facts.learn({Fact.MAPPED: decided}, Grade.MEASURED, cause="residual") if decided else facts
    return replace(record, facts=facts if call is None else _call_decided(facts, call))


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
