"""The arithmetic of bytes: what a reading of resident memory says of the tags of an engine. Pure.

A reading knows devices, not tags: which tag a byte belongs to is inferred from the sizes of the tags. Each rule here
has its own story, of an engine that answered and did something else, and the rules are not merged.

- `judge_release`: a release returned what its tags held, and left little enough behind.
- `freed_beyond_named`: so much came back that a tag must have gone which was not named.
- `moved`: the bytes of the targets were seen to go, or to come.
- `resident_as_before`: a restore after a release that freed nothing leaves nothing to grow by; the level shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.facts import Grade, Tag
from ..core.policy import SET_THRESHOLD, Policy
from ..core.readings import Reading
from ..core.units import mib
from ..core.verdicts import Pending, Proved, Refuted, Unmeasurable, Verdict
from .evidence import Context
from .sizes import HINTED, Size

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


# how much must have moved


def least_moved(context: Context, tags: frozenset[Tag], reading: Reading) -> float | None:
    """The fewest bytes that show that these tags moved together; None where no size is known.

    A size that is only reported may be wrong, but not so wrong that one of the tags moved nothing, or half.
    """
    size, fraction = context.size(tags, reading), context.policy.returned_fraction
    if size is None:
        return None
    if not size.is_hint:
        return fraction * size.total_bytes
    visible, short = visible_bytes(context.policy, reading), []
    for tag in tags:
        alone = context.size(frozenset({tag}), reading)
        if alone is not None and alone.total_bytes >= visible:
            short.append((1 - (HINTED if alone.is_hint else fraction)) * alone.total_bytes)
    return min(fraction * size.total_bytes, size.total_bytes - min(short, default=0))


# a release


def judge_release(context: Context, before: Reading, after: Reading, expected: Size | None) -> Verdict:
    """Whether a release returned what is expected (None: as much as can be seen), and left no more than is allowed."""
    policy = context.policy
    staying = frozenset(tag for tag, mapped in context.facts.mapped.items() if mapped is not False)
    allowed = policy.threshold_bytes + (context.share_bytes(staying, before) or 0)
    returned = freed_everywhere(before, after)
    by_call = _freed_by_call(context, before, after)
    total = None if expected is None else expected.total_bytes
    figures = _figures(before, after, returned=returned, expected=total, allowed=allowed)
    if context.readings_per_call:
        figures["returned_by_tag"] = by_call
    least = visible_bytes(policy, before) if expected is None else policy.returned_fraction * expected.total_bytes
    summary = f"returned {mib(returned)} of {'unknown' if total is None else mib(total)} expected"
    kept = f"{mib(after.resident_bytes)} resident, threshold {mib(policy.threshold_bytes)}; {biggest(after)}"
    if expected is not None and expected.is_hint:
        figures["expected_is"] = "reported"
        summary += " (a size that the engine reports)"
        if returned < least:
            less = _less_than_hinted(context, before, after, by_call)
            if less:
                missing = _missing_tags(context, before, returned)
                return Pending(reason=f"{summary}{missing}{less}; {kept}", figures=figures)
            least = 0
    if returned < least:
        missing = f"{_missing_tags(context, before, returned)}{_saver_in_doubt(context, returned < least / 2)}"
        missing += "" if expected is not None else too_few_of_unknown(returned, least)
        return Pending(reason=f"{summary}{missing}; {kept}", figures=figures)
    unseen = _not_seen_to_go(context, before, by_call, (total or 0) - returned) or _held_since(context, after)
    if unseen:
        return Pending(reason=f"{summary}, and the release of {unseen} gave nothing back; {kept}", figures=figures)
    if after.resident_bytes > allowed:
        exceeds = f"{mib(after.resident_bytes)} resident exceeds {mib(allowed)} allowed"
        return Pending(reason=f"{exceeds}; {kept}; the threshold is set by {SET_THRESHOLD}", figures=figures)
    return Proved(grade=Grade.MEASURED, reason=summary, figures=figures)


def too_few_of_unknown(moved_bytes: int, least_bytes: float) -> str:
    """Why bytes of tags whose sizes nobody knows are too few to show anything, and what to do; empty where hardly any.

    A process takes and gives back some MiB by itself meanwhile.
    """
    if not least_bytes / 2 <= moved_bytes < least_bytes:
        return ""
    return (
        f", and how much they hold is not known: less than {mib(least_bytes)} is not told from what a process gives "
        "back by itself; give the sizes of its tags (sizes= in its URL), or lower Policy(visible_bytes=...)"
    )


def _saver_in_doubt(context: Context, little: bool) -> str:
    """What an engine may lack that gave little back, where nothing told at connect whether it has it."""
    if not little or context.capabilities.memory_saver is not None:
        return ""
    return f" (was it started with {context.capabilities.saver_option or 'its memory saver'}?)"


def _less_than_hinted(context: Context, before: Reading, after: Reading, by_call: Mapping[str, int]) -> str:
    """What contradicts that all of a release came back whose reported size was not met; empty where nothing does.

    The bytes that were seen to go with each call decide. Where they are not known, those of the whole release do.
    """
    calls = [tags for tags, _ in context.readings_per_call if tags] if by_call else [context.targets]
    for tags in calls:
        freed = by_call[_name(tags)] if by_call else freed_everywhere(before, after)
        least = least_moved(context, tags, before)
        if least is not None and freed < least:
            seen = f"only {mib(freed)} were seen to go with {_name(tags)}"
            return f", and {seen}, of which at least {mib(round(least))} must"
    return _ranks_that_kept_theirs(context, before, after)


def _ranks_that_kept_theirs(context: Context, before: Reading, after: Reading) -> str:
    """Where several ranks share a device: how many of them were not seen to give their part back."""
    per_rank, ranks = context.expected_bytes(context.targets), context.capabilities.ranks
    if not per_rank or ranks <= len(before.devices) or len(before.holders) < ranks:
        return ""
    now = {(holder.pid, holder.device): holder.resident_bytes for holder in after.holders}
    freed = [holder.resident_bytes - now.get((holder.pid, holder.device), 0) for holder in before.holders]
    gave = sum(max(0, int(size // (HINTED * per_rank))) for size in freed)
    return "" if gave >= ranks else f", and only {gave} of {ranks} ranks were seen to give their part back"


def learned_from_release(
    context: Context, returned: Verdict | None, calls: Sequence[frozenset[Tag]]
) -> Mapping[frozenset[Tag], int]:
    """The bytes per rank that tags are measured to hold, with what this release shows of them.

    What the engine only reported, or nobody knew, is replaced once: by what came back with each of the `calls` where
    every one was seen to give something back, else by what came back of all. What is known better stays.
    """
    measured, before = context.calibration.bytes_by_tags, context.baseline.residual
    if not isinstance(returned, Proved) or not isinstance(before, Reading) or not context.targets:
        return measured
    by_call = returned.figures.get("returned_by_tag") or {}
    sizes = {tags: int(by_call.get(_name(tags), 0)) for tags in calls if tags}
    if not sizes or min(sizes.values()) < visible_bytes(context.policy, before):
        sizes = {context.targets: int(returned.figures["returned_bytes"])}
    learned = dict(measured)
    for tags, size_bytes in sizes.items():
        known = context.size(tags, before)
        if known is None or known.is_hint:
            learned[tags] = size_bytes * len(before.devices) // context.capabilities.ranks
    return learned


def _name(tags: frozenset[Tag]) -> str:
    return "+".join(sorted(tags))


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


def biggest(reading: Reading) -> str:
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
    """The bytes seen to go with each call that released tags, the least over the devices.

    What came late is counted to the last of them. What went with a call that released nothing is counted to none.
    """
    found: dict[str, int] = {}
    calls = list(context.readings_per_call)
    while calls and not calls[-1][0]:
        calls.pop()
    for index, (tags, reading) in enumerate(calls):
        if index == len(calls) - 1:
            reading = after
        if isinstance(reading, Unmeasurable):
            return {}
        if tags:
            found[_name(tags)] = freed_everywhere(before, reading)
        before = reading
    return found


def _not_seen_to_go(context: Context, before: Reading, freed: Mapping[str, int], missing: int) -> str:
    """The tags of each call that was not seen to give anything back, where as much as they hold is missing."""
    found: list[str] = []
    for tags, _ in context.readings_per_call:
        share, name = context.share_bytes(tags, before) or 0, _name(tags)
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
    """The refutation where so much came back that a tag which was not named may have gone with those that were.

    More than a reported size may be that size, told too small, or a tag that was not named: where both fit, it is
    unknown which.
    """
    named = context.size(context.targets, before)
    staying = frozenset(tag for tag, mapped in context.facts.mapped.items() if mapped) - context.targets
    others = [least for tag in staying if (least := _least_if_visible(context, tag, before)) is not None]
    if named is None or not others:
        return None
    freed, fewest = freed_everywhere(before, after), min(others)
    if named.is_hint:
        beyond = freed > (1 + SLACK) * named.total_bytes and freed - fewest >= HINTED * named.total_bytes
    else:
        beyond = freed >= named.total_bytes + fewest
    if not beyond:
        return None
    summary = f"{mib(freed)} came back, and {', '.join(sorted(context.targets))} held {mib(named.total_bytes)}"
    return Refuted(reason=f"{summary}: more than what was named was released", denied=staying)


def _least_if_visible(context: Context, tag: Tag, reading: Reading) -> float | None:
    """The fewest bytes that this tag holds; None where they are not known, or too few to see."""
    size = context.share_bytes(frozenset({tag}), reading)
    visible = size is not None and size >= visible_bytes(context.policy, reading)
    return least_moved(context, frozenset({tag}), reading) if visible else None


# bytes that go or come


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes that moved on every device, and the fewest that show that the tags have moved."""

    moved_bytes: int
    least_bytes: float
    #: Why fewer show nothing, where that is not plain.
    why: str = ""


def moved(context: Context, more: Reading, less: Reading) -> Moved | None:
    """How far the targets' bytes moved: `more` holds them and `less` does not. None where they are too few to see."""
    expected, least = context.size(context.targets, more), least_moved(context, context.targets, more)
    visible, went = visible_bytes(context.policy, more), freed_everywhere(more, less)
    if expected is not None and expected.total_bytes < visible:
        return Moved(went, visible) if expected.is_hint and went >= visible else None
    if context.readings_per_call and least is not None:  # a release: each call is judged by itself (judge_release)
        by_call = [least_moved(context, tags, more) or 0.0 for tags, _ in context.readings_per_call]
        least = min(least, sum(by_call))
    if least is None:
        return Moved(went, visible, too_few_of_unknown(went, visible))
    return Moved(went, least)


def resident_as_before(context: Context, after: Reading) -> bool:
    """Whether as much is resident as before the release, less what is unmapped still.

    A release that freed nothing leaves nothing to grow by: its tags are seen to be there by the level alone.
    """
    share = context.share_bytes(context.targets, after)
    if share is None:
        return _nothing_is_missing(context, after)
    if share < visible_bytes(context.policy, after):
        return False
    return _at_level(context, after, slack=(1 - context.policy.returned_fraction) * share) is True


def _nothing_is_missing(context: Context, after: Reading) -> bool:
    """Whether as much is resident as when all was mapped, of an engine whose sizes nobody knows.

    No more than half of the least that `Policy.visible_bytes` takes for a change may be missing, however much is
    resident: a small tag may be all that was released of a large engine.
    """
    full, every = context.calibration.reading_all_mapped, frozenset(context.facts.mapped)
    if full is None or context.size(every, full) is not None:
        return False
    return max(freed_by_device(full, after).values(), default=0) < context.policy.visible_bytes / 2


def resident_as_a_whole(context: Context, before: Reading | Unmeasurable, after: Reading) -> bool | None:
    """Whether tags that are too small to see by themselves came back, by what all tags hold together.

    So is their release proved, and what was accepted on the way out is accepted on the way back. What can be seen of
    their own bytes must not deny it. None where the level before the release is not known.
    """
    policy, every = context.policy, frozenset(context.facts.mapped)
    whole, share = context.size(every, after), context.share_bytes(context.targets, after)
    full = context.calibration.reading_all_mapped
    if full is None or whole is None or share is None or whole.at_most_bytes < visible_bytes(policy, full):
        return None
    if isinstance(before, Reading) and share >= policy.visible_bytes:
        came = freed_everywhere(after, before)
        if came < HINTED * share:
            return False
    slack = max((1 - policy.returned_fraction) * whole.total_bytes, policy.visible_bytes)
    return _at_level(context, after, slack=slack)


def _at_level(context: Context, after: Reading, *, slack: float) -> bool | None:
    """Whether as much is resident as when all was mapped, less what is unmapped; None where that cannot be said."""
    full, missing = context.calibration.reading_all_mapped, context.size(context.facts.unmapped(), after)
    if full is None or missing is None or set(full.devices) != set(after.devices):
        return None
    less = (HINTED if missing.is_hint else 1) * missing.total_bytes + slack
    return all(after.devices[device] >= held - less for device, held in full.devices.items())
