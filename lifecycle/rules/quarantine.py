"""Quarantine: an engine that failed in a move stays out of its fleet's moves until it was recovered. Pure.

That it does is a condition of its Record, so that it outlives a process, and also the process of the engine: one that
was started again is in quarantine still, since it may have memory of a device that was handed over, and other weights
than its fleet. What it should serve outlives them with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..core.facts import Grade
from ..core.lease import clock
from ..core.record import Record
from ..core.verdicts import Condition, Proved, Verdict

#: The name of the condition.
QUARANTINED = "quarantined"


def quarantine_of(record: Record) -> Verdict | None:
    """Why the engine is in quarantine, and since when (`figures["since_s"]`); None where it is not."""
    condition = record.conditions.get(QUARANTINED)
    return None if condition is None else condition.verdict


def put_in(record: Record, reason: str, since_s: float) -> Record:
    """The record of an engine that is in quarantine from here on, for this reason. `since_s` is wall-clock seconds."""
    words = f"since {clock(since_s)}: {reason}"
    return record.with_condition(QUARANTINED, Proved(grade=Grade.REPORTED, reason=words, figures={"since_s": since_s}))


def taken_out(record: Record) -> Record:
    """The record of an engine that takes part in moves again."""
    return record.with_condition(QUARANTINED, None)


def carried(record: Record, before: Record) -> Record:
    """`record`, in quarantine where the engine was `before`; what it should serve is then what it was to serve."""
    condition = before.conditions.get(QUARANTINED)
    if condition is None:
        return record
    conditions: dict[str, Condition] = {**record.conditions, QUARANTINED: condition}
    return replace(record, conditions=conditions, desired=before.desired)


def may_share(own: frozenset[str] | None, others: Mapping[str, frozenset[str] | None]) -> str | None:
    """Why an engine that lives on the devices `own` may hold memory of a device of others; None where it cannot.

    `others` are the devices of each other engine. None stands for devices that are not known: they may be any.
    """
    if own is None:
        return "which devices it is on is not known"
    for name, devices in others.items():
        if devices is None:
            return f"which devices {name} is on is not known"
        shared = sorted(own & devices)
        if shared:
            return f"it is on {shared[0]}, as {name} is"
    return None
