"""Proofs: what must be seen after the calls were answered. Pure functions from evidence to a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..core.commands import UpdateWeights
from ..core.facts import Fact, Grade, Tag
from ..core.readings import Reading
from ..core.sources import version_of
from ..core.verdicts import NotApplicable, Pending, Proved, Refuted, Unmeasurable, Verdict
from .checksums import compare, unchanged
from .evidence import Context, Need

Check = Callable[[Context], Verdict]


@dataclass(frozen=True, slots=True)
class Proof:
    """A named check, the evidence it needs, and the facts that are in doubt when it fails.

    `condition`: its verdict hangs on the engine under its name, whether it holds or not.
    """

    name: str
    check: Check
    needs: frozenset[Need]
    facts: tuple[Fact, ...]
    condition: bool
    doc: str

    def __call__(self, context: Context) -> Verdict:
        return self.check(context)


def proof(*needs: Need, facts: tuple[Fact, ...] = (), condition: bool = False) -> Callable[[Check], Proof]:
    """Makes a proof of a function; its name and docstring are the proof's."""

    def make(check: Check) -> Proof:
        return Proof(check.__name__, check, frozenset(needs), facts, condition, check.__doc__ or "")

    return make


@proof(Need.ADMISSION, facts=(Fact.ADMISSION,))
def admission_closed(context: Context) -> Verdict:
    """The engine acknowledged a pause on this boot, and says nothing to the contrary."""
    if not context.capabilities.has_admission:
        return NotApplicable(reason="it admits no requests")
    seen = context.evidence.observation.admission
    if seen == "open":
        return Refuted(reason="it says that it admits requests: somebody opened it")
    if context.facts.admission != "closed":
        return Refuted(reason="no pause was acknowledged on this boot")
    if seen == "closed":
        return Proved(grade=Grade.REPORTED, reason="it says that it admits none")
    return Proved(grade=Grade.ACKNOWLEDGED, reason="the pause was acknowledged on this boot")


@proof(Need.IDLE, facts=(Fact.RUNNING,))
def idle(context: Context) -> Verdict:
    """No request can run a step or hold device memory; parked and held ones may exist."""
    return context.evidence.idle


@proof(Need.RESIDUAL)
def tags_unmapped(context: Context) -> Verdict:
    """The released tags are unmapped: acknowledged, seen where their bytes can be seen to have gone, and not denied."""
    if not context.targets:
        return NotApplicable(reason="every named tag was unmapped already")
    still = sorted(tag for tag in context.targets if context.facts.mapped.get(tag) is not False)
    if still:
        return Refuted(reason=f"the release of {', '.join(still)} was not acknowledged")
    before, after = context.baseline.residual, context.evidence.residual
    told = context.evidence.observation.released_tags
    if told is not None and context.targets - told:
        return Pending(reason=f"it says that {', '.join(sorted(context.targets - told))} is not released")
    too_much = _more_than_named(context, before, after)
    return too_much or _moved(context, before, after, Pending(reason="acknowledged, and the bytes are still held"))


@proof(Need.RESIDUAL, condition=True)
def memory_returned(context: Context) -> Verdict:
    """Enough of what the tags held is free again on every device, and little enough is left.

    Per device: freed >= 0.9 x the bytes expected of the released tags, and resident <= the threshold plus the bytes
    expected of the tags that stay mapped. Equality passes. Where as much is missing as a tag holds whose own release
    was not seen to give it back, that tag is taken to be there still.
    """
    if not context.targets:
        return NotApplicable(reason="nothing was mapped that could be returned")
    before, after = context.baseline.residual, context.evidence.residual
    if isinstance(before, Unmeasurable):
        return before
    if isinstance(after, Unmeasurable):
        return after
    share = context.share_bytes(context.targets, before)
    if share is not None and share < _visible_bytes(context, before):
        return Unmeasurable(reason=f"{_mib(share)} is too little to see beside {_mib(before.resident_bytes)} resident")
    return _judge_residual(context, before, after, share)


def _judge_residual(context: Context, before: Reading, after: Reading, expected: int | None) -> Verdict:
    policy = context.policy
    staying = frozenset(tag for tag, mapped in context.facts.mapped.items() if mapped is not False)
    allowed = policy.threshold_bytes + (context.share_bytes(staying, before) or 0)
    returned = min(_freed_by_device(before, after).values(), default=0)
    figures: dict[str, Any] = {
        "returned_bytes": returned,
        "expected_bytes": expected,
        "resident_bytes": after.resident_bytes,
        "baseline_bytes": before.resident_bytes,
        "allowed_bytes": allowed,
        "devices": len(before.devices),
        "pids": [holder.pid for holder in after.holders],
    }
    by_tag = _by_tag(context, before, after)
    if context.weighed:
        figures["returned_by_tag"] = by_tag
    if after.whole:
        figures |= {"device_used_bytes": dict(after.whole), "others_bytes": after.others_bytes}
    told = f"returned {_mib(returned)} of {'unknown' if expected is None else _mib(expected)} expected"
    least = _visible_bytes(context, before) if expected is None else policy.returned_fraction * expected
    kept = f"{_mib(after.resident_bytes)} resident, threshold {_mib(policy.threshold_bytes)}; {_biggest(after)}"
    unseen = _not_seen_to_go(context, before, by_tag, (expected or 0) - returned) or _held_since(context, after)
    if returned >= least and unseen:
        return Pending(reason=f"{told}, and the release of {unseen} gave nothing back; {kept}", figures=figures)
    if returned < least:
        return Pending(reason=f"{told}{_missing_tags(context, before, returned)}; {kept}", figures=figures)
    if after.resident_bytes > allowed:
        exceeds = f"{_mib(after.resident_bytes)} resident exceeds {_mib(allowed)} allowed"
        return Pending(reason=f"{exceeds}; {kept}", figures=figures)
    return Proved(grade=Grade.MEASURED, reason=told, figures=figures)


@proof(Need.RESIDUAL, facts=(Fact.MAPPED,))
def weights_mapped(context: Context) -> Verdict:
    """Every weights tag is mapped: acknowledged, seen where its bytes can be seen to come back, and not denied."""
    return _stage_mapped(context, context.capabilities.stage("weights"))


@proof(Need.RESIDUAL, facts=(Fact.MAPPED,))
def kv_mapped(context: Context) -> Verdict:
    """Every tag is mapped: acknowledged, seen where its bytes can be seen to come back, and not denied."""
    return _stage_mapped(context, frozenset(context.facts.mapped))


@proof(Need.LABEL, Need.CHECKSUM, facts=(Fact.CONTENTS, Fact.CACHE_FRESH))
def weights_match(context: Context) -> Verdict:
    """The engine acknowledged the load, reports its version, and has the checksums that were asked for.

    Where it has checksums and none was asked for, the load must have changed those of every owner (target, draft);
    force=True is for the same weights.
    """
    command = context.command
    assert isinstance(command, UpdateWeights)
    wanted, seen = version_of(command.source), context.evidence.observation
    for tag in sorted(context.capabilities.stage("weights")):
        contents = context.facts.contents.get(tag)
        if contents is None or contents.origin != "loaded" or contents.version != wanted:
            return Refuted(reason=f"{tag} holds {contents or 'nobody knows what'}, not {wanted}")
    if seen.weights_label is not None and seen.weights_label != wanted:
        return Refuted(reason=f"it reports version {seen.weights_label!r}, not {wanted!r}")
    asked = getattr(command.source, "checksum", None)
    compared = None if asked is None else compare(asked, seen)
    if compared is not None:
        return compared
    same = unchanged(context.baseline.observation, seen)
    if same and not command.force:
        return Refuted(reason=f"its label is {wanted} and {same}: nothing was loaded")
    grade = Grade.ACKNOWLEDGED if seen.weights_label is None else Grade.REPORTED
    return Proved(grade=grade, reason=f"version {wanted} was loaded")


@proof(facts=(Fact.CACHE_FRESH,))
def cache_fresh(context: Context) -> Verdict:
    """The prefix cache was dropped after the weights or the mapping changed."""
    if context.facts.cache_fresh is True:
        return Proved(grade=context.facts.grades.get(Fact.CACHE_FRESH, Grade.DECLARED), reason="it was dropped")
    return Refuted(reason="the prefix cache was not dropped, so old entries would be served")


@proof(Need.ANSWER, facts=(Fact.ADMISSION,), condition=True)
def answers(context: Context) -> Verdict:
    """The engine generated a real token."""
    return context.evidence.answer


def learned(name: str, verdict: Proved, context: Context) -> dict[Fact, Any]:
    """The facts that a proof which holds establishes, at its grade."""
    match name:
        case "admission_closed":
            return {Fact.ADMISSION: "closed"}
        case "idle":
            dropped = verdict.figures.get("cache_dropped")
            return {Fact.RUNNING: 0, Fact.CACHE_FRESH: True} if dropped else {Fact.RUNNING: 0}
        case "tags_unmapped":
            return {Fact.MAPPED: dict.fromkeys(context.targets, False)}
        case "weights_mapped" | "kv_mapped":
            return {Fact.MAPPED: dict.fromkeys(context.targets, True)}
        case "answers":
            return {Fact.ADMISSION: "open", Fact.PAUSED_BY: None, Fact.RUNNING: None}
    return {}


def _stage_mapped(context: Context, stage: frozenset[Tag]) -> Verdict:
    missing = sorted(tag for tag in stage if context.facts.mapped.get(tag) is not True)
    if missing:
        return Refuted(reason=f"the restore of {', '.join(missing)} was not acknowledged")
    if not context.targets:
        return NotApplicable(reason="nothing was unmapped")
    still = stage & (context.evidence.observation.released_tags or frozenset())
    if still:
        return Pending(reason=f"acknowledged, and it says that {', '.join(sorted(still))} is released")
    back = _resident_again(context)
    if back is not None:
        return Proved(grade=Grade.MEASURED, reason=back)
    before, after = context.baseline.residual, context.evidence.residual
    return _moved(context, after, before, Pending(reason="acknowledged, and its bytes have not come back"))


def _resident_again(context: Context) -> str | None:
    """How much is resident, where that is as much as before the release, less what is unmapped still.

    A release that freed nothing leaves nothing to grow by: its tags are seen to be there by the level alone.
    """
    full, after = context.full, context.evidence.residual
    if full is None or isinstance(after, Unmeasurable) or set(full.devices) != set(after.devices):
        return None
    missing = context.share_bytes(context.facts.unmapped(), after)
    share = context.share_bytes(context.targets, after)
    if missing is None or share is None or share < _visible_bytes(context, after):
        return None
    slack = (1 - context.policy.returned_fraction) * share
    if all(after.devices[device] >= held - missing - slack for device, held in full.devices.items()):
        return f"{_mib(after.resident_bytes)} are resident, as before the release"
    return None


def _moved(context: Context, more: Reading | Unmeasurable, less: Reading | Unmeasurable, otherwise: Pending) -> Verdict:
    """Whether the targets' bytes were seen to move: `more` holds them and `less` does not."""
    if isinstance(more, Unmeasurable) or isinstance(less, Unmeasurable):
        return _said(context)
    expected = context.share_bytes(context.targets, more)
    visible = _visible_bytes(context, more)
    if expected is not None and expected < visible:
        return _said(context)
    moved = min(_freed_by_device(more, less).values(), default=0)
    least = visible if expected is None else context.policy.returned_fraction * expected
    if moved >= least:
        return Proved(grade=Grade.MEASURED, reason=f"{_mib(moved)} moved")
    return Pending(reason=f"{otherwise.reason}: {_mib(moved)} of {_mib(least)} moved")


def _said(context: Context) -> Verdict:
    """What is known of tags whose bytes cannot be seen: the engine's own report of what is released, or the answer."""
    if context.evidence.observation.released_tags is None:
        return Proved(grade=Grade.ACKNOWLEDGED, reason="acknowledged; its bytes cannot be seen")
    return Proved(grade=Grade.REPORTED, reason="it says so itself; its bytes cannot be seen")


def _missing_tags(context: Context, before: Reading, returned: int) -> str:
    """The tags that hold about as much as did not come back, where only one choice of them does."""
    sizes = {tag: context.share_bytes(frozenset({tag}), before) for tag in context.targets}
    known = {tag: size for tag, size in sizes.items() if size}
    missing = sum(known.values()) - returned
    fitting = [
        tags
        for count in range(1, len(known))
        for tags in combinations(sorted(known), count)
        if abs(sum(known[tag] for tag in tags) - missing) <= 0.1 * missing
    ]
    return f" (what is missing is the size of {', '.join(fitting[0])})" if len(fitting) == 1 else ""


def _by_tag(context: Context, before: Reading, after: Reading) -> dict[Tag, int]:
    """The bytes seen to go with each call of the release, the least over the devices; the last has what came late."""
    found: dict[Tag, int] = {}
    for index, (tags, reading) in enumerate(context.weighed):
        if index == len(context.weighed) - 1:
            reading = after
        if isinstance(reading, Unmeasurable):
            return {}
        found["+".join(sorted(tags))] = min(_freed_by_device(before, reading).values(), default=0)
        before = reading
    return found


def _not_seen_to_go(context: Context, before: Reading, seen: dict[Tag, int], missing: int) -> str:
    """The tags of each call that was not seen to give anything back, where as much as they hold is missing."""
    found: list[str] = []
    for tags, _ in context.weighed:
        share, name = context.share_bytes(tags, before) or 0, "+".join(sorted(tags))
        visible = share >= _visible_bytes(context, before)
        if visible and missing >= 0.9 * share and seen.get(name, 0) <= 0.1 * share:
            found.append(name)
    return ", ".join(found)


def _more_than_named(context: Context, before: Reading | Unmeasurable, after: Reading | Unmeasurable) -> Verdict | None:
    """The refutation where so much came back that a tag which was not named must have gone with those that were."""
    if isinstance(before, Unmeasurable) or isinstance(after, Unmeasurable):
        return None
    named = context.share_bytes(context.targets, before)
    staying = frozenset(tag for tag, mapped in context.facts.mapped.items() if mapped) - context.targets
    sizes = [context.share_bytes(frozenset({tag}), before) for tag in staying]
    seen = [size for size in sizes if size is not None and size >= _visible_bytes(context, before)]
    if named is None or not seen:
        return None
    freed = min(_freed_by_device(before, after).values(), default=0)
    if freed < named + context.policy.returned_fraction * min(seen):
        return None
    told = f"{_mib(freed)} came back, and {', '.join(sorted(context.targets))} held {_mib(named)}"
    return Refuted(reason=f"{told}: more than what was named was released", denied=staying)


def _held_since(context: Context, after: Reading) -> str:
    """The tags of an earlier release, where as much as they hold is missing since all was mapped."""
    full, unmapped = context.full, context.facts.unmapped()
    if full is None or set(full.devices) != set(after.devices):
        return ""
    missing = (context.share_bytes(unmapped, full) or 0) - min(_freed_by_device(full, after).values())
    shares = {tag: context.share_bytes(frozenset({tag}), full) or 0 for tag in sorted(unmapped - context.targets)}
    least = _visible_bytes(context, full)
    return ", ".join(tag for tag, share in shares.items() if share >= least and missing >= 0.9 * share)


def _freed_by_device(before: Reading, after: Reading) -> dict[str, int]:
    return {device: held - after.devices.get(device, 0) for device, held in before.devices.items()}


def _visible_bytes(context: Context, reading: Reading) -> int:
    return max(context.policy.visible_bytes, round(context.policy.visible_fraction * reading.resident_bytes))


def _biggest(reading: Reading) -> str:
    return "; ".join(str(holder) for holder in sorted(reading.holders, key=lambda each: -each.resident_bytes)[:2])


def _mib(size_bytes: float) -> str:
    return f"{round(size_bytes / (1 << 20))} MiB"
