"""Kept records: what is known of an engine that an earlier process kept a record of. Pure."""

from __future__ import annotations

from dataclasses import replace

from ...core.capabilities import Capabilities
from ...core.facts import Fact
from ...core.frozen import FrozenMap
from ...core.observation import Observation
from ...core.record import Record
from ...core.states import State
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
    """What is left of the record of an engine whose command was under way: which of its calls ran is unknown."""
    facts = record.facts.doubt(
        {
            Fact.ADMISSION: None,
            Fact.PAUSED_BY: None,
            Fact.RUNNING: None,
            Fact.MAPPED: dict(record.facts.mapped),
            Fact.CONTENTS: dict(record.facts.contents),
            Fact.CACHE_FRESH: None,
        }
    )
    return replace(record, facts=facts, uncertain=replace(record.uncertain, needs_barrier=True))
