"""The arithmetic of bytes: what a reading of resident memory says of the tags of an engine. Pure.

A reading knows devices, not tags: which tag a byte belongs to is inferred from the sizes of the tags. Each rule here
has its own story, of an engine that answered and did something else, and the rules are not merged.

- `judge_release`: a release returned what its tags held, and left little enough behind.
- `freed_beyond_named`: so much came back that a tag must have gone which was not named.
- `moved`: the bytes of the targets were seen to go, or to come.
- `resident_as_before`: a restore after a release that freed nothing leaves nothing to grow by; the level shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.facts import Grade
from ..core.policy import SET_THRESHOLD, Policy
from ..core.readings import Reading
from ..core.units import mib
from ..core.verdicts import Pending, Proved, Refuted, Unmeasurable, Verdict
from .evidence import Context

#: A share of a tag's bytes that measuring may err by, where sizes are compared.
SLACK = 0.1


def visible_bytes(policy: Policy, reading: Reading) -> int:
    """The fewest bytes that can be seen to move in a process that holds this much."""
    return max(policy.visible_bytes, round(policy.visible_fraction * reading.resident_bytes))


def freed_by_device(before: Reading, after: Reading) -> dict[str, int]:
    """Bytes that each device of `before` holds less in `after`."""
    return {device: held - after.devices.get(device, 0) for device, held in before.devices.items()}


def freed_everywhere(before: Reading, after: Reading) -> int:
    """Bytes that every device gave back: the least over the devices."""
    return min(freed_by_device(before, after).values(), default=0)


# a release


def judge_release(context: Context, before: Reading, after: Reading, expected: int | None) -> Verdict:
    """Whether a release returned `expected` bytes (None: any that can be seen), and left no more than is allowed."""
    policy = context.policy
    staying = frozenset(tag for tag, mapped in context.facts.mapped.items() if mapped is not False)
    allowed = policy.threshold_bytes + (context.share_bytes(staying, before) or 0)
    returned = freed_everywhere(before, after)
    by_call = _freed_by_call(context, before, after)
    figures = _figures(before, after, returned=returned, expected=expected, allowed=allowed)
    if context.readings_per_call:
        figures["returned_by_tag"] = by_call
    summary = f"returned {mib(returned)} of {'unknown' if expected is None else mib(expected)} expected"
    kept = f"{mib(after.resident_bytes)} resident, threshold {mib(policy.threshold_bytes)}; {_biggest(after)}"
    least = visible_bytes(policy, before) if expected is None else policy.returned_fraction * expected
    if returned < least:
        return Pending(reason=f"{summary}{_missing_tags(context, before, returned)}; {kept}", figures=figures)
    unseen = _not_seen_to_go(context, before, by_call, (expected or 0) - returned) or _held_since(context, after)
    if unseen:
        return Pending(reason=f"{summary}, and the release of {unseen} gave nothing back; {kept}", figures=figures)
    if after.resident_bytes > allowed:
        exceeds = f"{mib(after.resident_bytes)} resident exceeds {mib(allowed)} allowed"
        return Pending(reason=f"{exceeds}; {kept}; the threshold is set by {SET_THRESHOLD}", figures=figures)
    return Proved(grade=Grade.MEASURED, reason=summary, figures=figures)


def _figures(before: Reading, after: Reading, *, returned: int, expected: int | None, allowed: int) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "returned_bytes": returned,
        "expected_bytes": expected,
        "resident_bytes": after.resident_bytes,
        "baseline_bytes": before.resident_bytes,
        "allowed_bytes": allowed,
        "devices": len(before.devices),
        "pids": [holder.pid for holder in after.holders],
    }
    if after.whole:
        figures |= {"device_used_bytes": dict(after.whole), "others_bytes": after.others_bytes}
    return figures


def _biggest(reading: Reading) -> str:
    return "; ".join(str(holder) for holder in sorted(reading.holders, key=lambda each: -each.resident_bytes)[:2])


def _missing_tags(context: Context, before: Reading, returned: int) -> str:
    """The tag that holds about as much as did not come back, in brackets, where only one does."""
    sizes = {tag: context.share_bytes(frozenset({tag}), before) for tag in context.targets}
    known = {tag: size for tag, size in sizes.items() if size}
    missing = sum(known.values()) - returned
    fitting = [tag for tag in sorted(known) if abs(known[tag] - missing) <= SLACK * missing]
    alone = len(fitting) == 1 and len(known) > 1
    return f" (what is missing is the size of {fitting[0]})" if alone else ""


def _freed_by_call(context: Context, before: Reading, after: Reading) -> dict[str, int]:
    """The bytes seen to go with each call of the release, the least over the devices; the last has what came late."""
    found: dict[str, int] = {}
    for index, (tags, reading) in enumerate(context.readings_per_call):
        if index == len(context.readings_per_call) - 1:
            reading = after
        if isinstance(reading, Unmeasurable):
            return {}
        found["+".join(sorted(tags))] = freed_everywhere(before, reading)
        before = reading
    return found


def _not_seen_to_go(context: Context, before: Reading, freed: Mapping[str, int], missing: int) -> str:
    """The tags of each call that was not seen to give anything back, where as much as they hold is missing."""
    found: list[str] = []
    for tags, _ in context.readings_per_call:
        share, name = context.share_bytes(tags, before) or 0, "+".join(sorted(tags))
        visible = share >= visible_bytes(context.policy, before)
        if visible and missing >= (1 - SLACK) * share and freed.get(name, 0) <= SLACK * share:
            found.append(name)
    return ", ".join(found)


def _held_since(context: Context, after: Reading) -> str:
    """The tags of an earlier release, where as much as they hold is missing since all was mapped."""
    full, unmapped = context.calibration.reading_all_mapped, context.facts.unmapped()
    if full is None or set(full.devices) != set(after.devices):
        return ""
    missing = (context.share_bytes(unmapped, full) or 0) - freed_everywhere(full, after)
    shares = {tag: context.share_bytes(frozenset({tag}), full) or 0 for tag in sorted(unmapped - context.targets)}
    least = visible_bytes(context.policy, full)
    return ", ".join(tag for tag, share in shares.items() if share >= least and missing >= (1 - SLACK) * share)


def freed_beyond_named(context: Context, before: Reading, after: Reading) -> Verdict | None:
    """The refutation where so much came back that a tag which was not named must have gone with those that were."""
    named = context.share_bytes(context.targets, before)
    staying = frozenset(tag for tag, mapped in context.facts.mapped.items() if mapped) - context.targets
    sizes = [context.share_bytes(frozenset({tag}), before) for tag in staying]
    seen = [size for size in sizes if size is not None and size >= visible_bytes(context.policy, before)]
    if named is None or not seen:
        return None
    freed = freed_everywhere(before, after)
    if freed < named + context.policy.returned_fraction * min(seen):
        return None
    summary = f"{mib(freed)} came back, and {', '.join(sorted(context.targets))} held {mib(named)}"
    return Refuted(reason=f"{summary}: more than what was named was released", denied=staying)


# bytes that go or come


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes that moved on every device, and the fewest that show that the tags have moved."""

    moved_bytes: int
    least_bytes: float


def moved(context: Context, more: Reading, less: Reading) -> Moved | None:
    """How far the targets' bytes moved: `more` holds them and `less` does not. None where they are too few to see."""
    expected = context.share_bytes(context.targets, more)
    visible = visible_bytes(context.policy, more)
    if expected is not None and expected < visible:
        return None
    least = visible if expected is None else context.policy.returned_fraction * expected
    return Moved(freed_everywhere(more, less), least)


def resident_as_before(context: Context, after: Reading) -> bool:
    """Whether as much is resident as before the release, less what is unmapped still.

    A release that freed nothing leaves nothing to grow by: its tags are seen to be there by the level alone.
    """
    full = context.calibration.reading_all_mapped
    if full is None or set(full.devices) != set(after.devices):
        return False
    missing = context.share_bytes(context.facts.unmapped(), after)
    share = context.share_bytes(context.targets, after)
    if missing is None or share is None or share < visible_bytes(context.policy, after):
        return False
    slack = (1 - context.policy.returned_fraction) * share
    return all(after.devices[device] >= held - missing - slack for device, held in full.devices.items())
