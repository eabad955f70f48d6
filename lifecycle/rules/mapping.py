"""Which tags are mapped, told from what is resident, where only one answer fits. Pure.

A reading knows devices, not tags: which tag a byte belongs to is inferred from the sizes of the tags.

- `mapping_from_freed_bytes`: a call whose answer was lost did its work or did not; the bytes that moved decide.
- `mapping_from_resident_bytes`: an engine met closed may have any of its tags mapped; the level decides where only one
  choice of tags fits it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

from ..core.calls import Call
from ..core.capabilities import Capabilities
from ..core.facts import Fact, Facts, Tag
from ..core.policy import Policy
from ..core.readings import Reading
from ..core.record import Calibration, Record, UncertainCall
from .evidence import Context, share_bytes
from .memory import SLACK, freed_everywhere


def mapping_from_freed_bytes(
    facts: Facts,
    call: UncertainCall,
    reading: Reading,
    capabilities: Capabilities,
    calibration: Calibration,
    policy: Policy,
) -> Mapping[Tag, bool]:
    """The mapping of the tags whose mapping is unknown since a call may have run, told by the bytes that moved since.

    All of them moved where at least their share did, and none where nothing did. Where a part of the share moved, the
    tags moved whose sizes make that part, if only one choice of tags does. Only right after a barrier: a call that may
    still run could move the bytes later.
    """
    unknown = frozenset(tag for tag, mapped in facts.mapped.items() if mapped is None)
    before = call.baseline
    if not unknown or not unknown <= call.targets or before is None:
        return {}

    def size_of(tags: frozenset[Tag]) -> int | None:
        return share_bytes(tags, before, capabilities, calibration.bytes_by_tags)

    acknowledged = frozenset(tag for tag in call.targets - unknown if facts.mapped[tag] != call.at_start.mapped[tag])
    share, known = size_of(unknown), size_of(acknowledged)
    if not share or known is None:
        return {}
    sizes = [size_of(frozenset({tag})) or 0 for tag in unknown]
    least = min((size for size in sizes if size >= policy.visible_bytes), default=share)
    moved_bytes = [abs(held - reading.devices.get(device, 0)) - known for device, held in before.devices.items()]
    was = {tag: call.at_start.mapped[tag] for tag in unknown}
    if None in was.values():
        return {}
    if min(moved_bytes) >= share - SLACK * least:
        return {tag: not mapped for tag, mapped in was.items()}
    if max(map(abs, moved_bytes)) <= SLACK * least:
        return {tag: bool(mapped) for tag, mapped in was.items()}
    fitting = [
        choice
        for choice in _choices(sorted(unknown))
        if max(abs(size - (size_of(frozenset(choice)) or 0)) for size in moved_bytes) <= SLACK * least
    ]
    if len(fitting) != 1:
        return {}
    return {tag: bool(mapped) is not (tag in fitting[0]) for tag, mapped in was.items()}


def since_call_before(context: Context, record: Record, call: Call) -> Context:
    """The context in which bytes tell what this call of a release did, and not those before it.

    `context` is the command's, with a reading after each call so far; `record` is what is known now. What the calls
    before gave back must have been seen to go by the last of those readings: bytes that go late would be taken for
    those of this call. Otherwise bytes are compared with those before the whole command.
    """
    before, gone = context.baseline.residual, frozenset[Tag]()
    for tags, reading in context.readings_per_call:
        share = context.share_bytes(tags, before) if isinstance(before, Reading) else None
        if not isinstance(before, Reading) or not isinstance(reading, Reading) or not share:
            return context
        if set(before.devices) != set(reading.devices) or freed_everywhere(before, reading) < (1 - SLACK) * share:
            return context
        before, gone = reading, gone | tags
    if not gone:
        return context
    targets = frozenset(call.effect.get(Fact.MAPPED, {}))
    return replace(context, record=record, targets=targets, baseline=replace(context.baseline, residual=before))


def mapping_from_resident_bytes(
    facts: Facts, reading: Reading, capabilities: Capabilities, calibration: Calibration, policy: Policy
) -> Mapping[Tag, bool]:
    """The mapping of every tag, told from how much is resident, where only one choice of mapped tags fits.

    A choice fits where the bytes of its mapped tags are resident, and no more than the threshold beside them. An
    engine small beside what it holds anyway (a CPU engine under a threshold for GPUs) fits several: nothing is told.
    What is known stays: the bytes of a tag that is known to be unmapped may be resident all the same.
    """
    fitting = []
    for tags in _choices(list(facts.mapped)):
        share = share_bytes(frozenset(tags), reading, capabilities, calibration.bytes_by_tags)
        if share is not None and all(
            policy.returned_fraction * share <= held <= share + policy.threshold_bytes
            for held in reading.devices.values()
        ):
            fitting.append(tags)
    known = {tag: mapped for tag, mapped in facts.mapped.items() if mapped is not None}
    if len(fitting) != 1 or any(mapped is not (tag in fitting[0]) for tag, mapped in known.items()):
        return {}
    return {tag: tag in fitting[0] for tag in facts.mapped}


def _choices(tags: list[Tag]) -> list[tuple[Tag, ...]]:
    return [choice for size in range(len(tags) + 1) for choice in combinations(tags, size)]
