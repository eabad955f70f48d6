"""Quarantine: an engine that failed in a move stays out of its fleet's moves until it was recovered. Pure.

That it does is a condition of its Record, so that it outlives a process, and also the process of the engine: one that
was started again is in quarantine still, since it may have memory of a device that was handed over, and other weights
than its fleet. What it should serve outlives them with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.facts import Grade
from ..core.frozen import replace
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


@dataclass(frozen=True, slots=True)
class Occupied:
    """Which devices several engines are on: the first of them on each device, and the first whose are not known."""

    by_device: Mapping[str, str]
    not_known: str | None
    devices: frozenset[str]

    @classmethod
    def of(cls, engines: Mapping[str, frozenset[str] | None]) -> Occupied:
        """The devices of these engines, by name. None stands for devices that are not known: they may be any."""
        by_device: dict[str, str] = {}
        for name, devices in engines.items():
            for device in devices or ():
                by_device.setdefault(device, name)
        not_known = next((name for name, devices in engines.items() if devices is None), None)
        return cls(by_device, not_known, frozenset(by_device))


def may_share(own: frozenset[str] | None, others: Occupied) -> str | None:
    """Why an engine that lives on the devices `own` may hold memory of a device of others; None where it cannot.

    `own` is None where its devices are not known: they may be any.
    """
    if own is None:
        return "which devices it is on is not known"
    if others.not_known is not None:
        return f"which devices {others.not_known} is on is not known"
    shared = min((device for device in own if device in others.by_device), default=None)
    return None if shared is None else f"it is on {shared}, as {others.by_device[shared]} is"
