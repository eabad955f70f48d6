"""Proofs: what must be seen after the calls were answered. Pure functions from evidence to a verdict.

Each is one decorated function, which says all there is to say of it: the evidence it needs, the least grade at which it
counts, what is known once it holds (`learns`), and what is unknown once it does not (`doubts`). The arithmetic of bytes
is in `memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.commands import UpdateWeights
from ..core.facts import Fact, Grade, Tag
from ..core.frozen import FrozenMap
from ..core.policy import ACCEPT, WAIVABLE, Policy, waives
from ..core.readings import Reading
from ..core.sources import version_of
from ..core.units import mib
from ..core.verdicts import NotApplicable, Pending, Proved, Refuted, Unmeasurable, Verdict, on_deadline
from . import memory
from .checksums import compare, unchanged
from .evidence import Context, EvidenceKind, goes_on_with_kv

Check = Callable[[Context], Verdict]
Learns = Callable[[Context, Proved], Mapping[Fact, Any]]


def _nothing(context: Context, verdict: Proved) -> Mapping[Fact, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Proof:
    """A named check, the evidence it needs, and what follows from its verdict.

    `learns` gives the facts that are known at the verdict's grade once the proof holds. `doubts` are the facts that
    are unknown once it does not. `condition`: its verdict hangs on the engine under its name, whether it holds or not.
    """

    name: str
    check: Check
    needs: frozenset[str]
    learns: Learns
    doubts: tuple[Fact, ...]
    condition: bool
    doc: str

    def __call__(self, context: Context) -> Verdict:
        return self.check(context)


def proof(
    *needs: str,
    least: Grade,
    learns: Learns = _nothing,
    doubts: tuple[Fact, ...] = (),
    condition: bool = False,
    waivable: bool = False,
) -> Callable[[Check], Proof]:
    """Makes a proof of a function; its name and docstring are the proof's.

    `least` is the grade at which its claim may be entered unless `Policy.accept` says otherwise. `waivable`: where that
    says asserted, the state is entered though the claim was refuted.
    """

    def make(check: Check) -> Proof:
        ACCEPT[check.__name__] = least
        if waivable:
            WAIVABLE.add(check.__name__)
        return Proof(check.__name__, check, frozenset(needs), learns, doubts, condition, check.__doc__ or "")

    return make


def waived_no_longer(verdicts: Mapping[str, Verdict], policy: Policy, *, waited_s: float) -> Mapping[str, Verdict]:
    """The verdicts once claims that the policy waives are waited for no more: those that are pending are refuted."""
    return FrozenMap(
        {
            name: on_deadline(verdict, waited_s) if waives(name, policy.least_grade(name)) else verdict
            for name, verdict in verdicts.items()
        }
    )


def unread_by(proof: Proof, verdict: Verdict, context: Context) -> bool:
    """Whether a proof does not hold for want of a reading, of an engine that was measured when its command began.

    It is asked again: one reading that fails says nothing of the engine.
    """
    measured = isinstance(context.baseline.residual, Reading) and EvidenceKind.RESIDUAL in proof.needs
    lacking = isinstance(context.evidence.residual, Unmeasurable)
    return measured and lacking and isinstance(verdict, Unmeasurable | Proved)


def _closed(context: Context, verdict: Proved) -> Mapping[Fact, Any]:
    return {Fact.ADMISSION: "closed"}


@proof(EvidenceKind.ADMISSION, least=Grade.ACKNOWLEDGED, learns=_closed, doubts=(Fact.ADMISSION,))
def admission_closed(context: Context) -> Verdict:
    """The engine acknowledged a pause on this boot, and says nothing to the contrary."""
    if not context.capabilities.has_admission:
        return NotApplicable(reason="it admits no requests")
    seen = context.evidence.observed.admission
    if context.evidence.observed.disagreement:
        return Refuted(reason=f"{context.evidence.observed.disagreement}: some of them may admit requests")
    if seen == "open":
        return Refuted(reason="it says that it admits requests: somebody opened it")
    if context.facts.admission != "closed":
        return Refuted(reason="no pause was acknowledged on this boot")
    if seen == "closed":
        return Proved(grade=Grade.REPORTED, reason="it says that it admits none")
    return Proved(grade=Grade.ACKNOWLEDGED, reason="the pause was acknowledged on this boot")


def _none_runs(context: Context, verdict: Proved) -> Mapping[Fact, Any]:
    fresh = {Fact.CACHE_FRESH: True} if verdict.figures.get("cache_dropped") else {}
    return {Fact.RUNNING: 0, **fresh}


@proof(EvidenceKind.IDLE, least=Grade.REPORTED, learns=_none_runs, doubts=(Fact.RUNNING,))
def idle(context: Context) -> Verdict:
    """No request can run a step or hold device memory; parked and held ones may exist."""
    return context.evidence.idle


def _targets_unmapped(context: Context, verdict: Proved) -> Mapping[Fact, Any]:
    return {Fact.MAPPED: dict.fromkeys(context.targets, False)}


@proof(EvidenceKind.RESIDUAL, least=Grade.REPORTED, learns=_targets_unmapped)
def tags_unmapped(context: Context) -> Verdict:
    """The released tags are unmapped: acknowledged, seen where their bytes can be seen to have gone, and not denied.

    Accepted as asserted (Policy.accept), the answer counts where their bytes are held still.
    """
    if not context.targets:
        return NotApplicable(reason="every named tag was unmapped already")
    still = sorted(tag for tag in context.targets if context.facts.mapped.get(tag) is not False)
    if still:
        return Refuted(reason=f"the release of {', '.join(still)} was not acknowledged")
    before, after = context.baseline.residual, context.evidence.residual
    reported = context.evidence.observed.released_tags
    if reported is not None and context.targets - reported:
        return Pending(reason=f"it says that {', '.join(sorted(context.targets - reported))} is not released")
    if isinstance(before, Unmeasurable) or isinstance(after, Unmeasurable):
        return _reported_or_acknowledged(context)
    excess = memory.freed_beyond_named(context, before, after)
    if excess is not None:
        return excess
    if context.policy.least_grade("tags_unmapped") is Grade.ASSERTED:
        return _reported_or_acknowledged(context)
    return _bytes_moved(context, memory.moved(context, before, after), "the bytes are still held")


@proof(EvidenceKind.RESIDUAL, least=Grade.MEASURED, condition=True, waivable=True)
def memory_returned(context: Context) -> Verdict:
    """Enough of what the tags held is free again on every device, and little enough is left.

    Per device: freed >= 0.9 x the bytes expected of the released tags, and resident <= the threshold plus the bytes
    expected of the tags that stay mapped. Equality passes. Where as much is missing as a tag holds whose own release
    was not seen to give it back, that tag is taken to be there still. Where the engine only reports what its tags hold
    and that is not met, more than half of it must have been seen to go with each call.

    Accepted as asserted (Policy.accept), the state is entered though this was refuted; no device is handed over then.
    """
    if not context.targets:
        return NotApplicable(reason="nothing was mapped that could be returned")
    before, after = context.baseline.residual, context.evidence.residual
    if isinstance(before, Unmeasurable):
        return before
    if isinstance(after, Unmeasurable):
        return after
    size, visible = context.size(context.targets, before), memory.visible_bytes(context.policy, before)
    if size is not None and size.total_bytes < visible <= size.at_most_bytes:
        size = None  # the engine reports too little to see, and there may be more
    if size is not None and size.total_bytes < visible:
        little = f"{mib(size.total_bytes)} is too little to see beside {mib(before.resident_bytes)} resident"
        return Unmeasurable(reason=little)
    return memory.judge_release(context, before, after, size)


def _targets_mapped(context: Context, verdict: Proved) -> Mapping[Fact, Any]:
    return {Fact.MAPPED: dict.fromkeys(context.targets, True)}


@proof(EvidenceKind.RESIDUAL, least=Grade.REPORTED, learns=_targets_mapped, doubts=(Fact.MAPPED,))
def weights_mapped(context: Context) -> Verdict:
    """Every weights tag is mapped: acknowledged, seen where its bytes can be seen to come back, and not denied."""
    return _stage_mapped(context, context.capabilities.stage("weights"))


@proof(EvidenceKind.RESIDUAL, least=Grade.REPORTED, learns=_targets_mapped, doubts=(Fact.MAPPED,))
def kv_mapped(context: Context) -> Verdict:
    """Every tag is mapped: acknowledged, seen where its bytes can be seen to come back, and not denied."""
    return _stage_mapped(context, frozenset(context.facts.mapped))


@proof(
    EvidenceKind.LABEL,
    EvidenceKind.CHECKSUM,
    least=Grade.ACKNOWLEDGED,
    doubts=(Fact.CONTENTS, Fact.CACHE_FRESH),
)
def weights_match(context: Context) -> Verdict:
    """The engine acknowledged the load, reports its version, and has the checksums that were asked for.

    Where it has checksums and none was asked for, the load must have changed those of every model role (target,
    draft); force=True is for the same weights.
    """
    command = context.command
    assert isinstance(command, UpdateWeights)
    wanted, seen = version_of(command.source), context.evidence.observed
    for tag in sorted(context.capabilities.stage("weights")):
        contents = context.facts.contents.get(tag)
        if contents is None or contents.origin != "loaded" or contents.version != wanted:
            return Refuted(reason=f"{tag} holds {contents or 'contents unknown'}, not {wanted}")
    if seen.weights_label is not None and seen.weights_label != wanted:
        return Refuted(reason=f"it reports version {seen.weights_label!r}, not {wanted!r}")
    asked = getattr(command.source, "checksum", None)
    compared = None if asked is None else compare(asked, seen)
    if compared is not None:
        return compared
    same = unchanged(context.baseline.observed, seen)
    if same and not command.force:
        return Refuted(reason=f"its label is {wanted} and {same}: nothing was loaded")
    grade = Grade.ACKNOWLEDGED if seen.weights_label is None else Grade.REPORTED
    return Proved(grade=grade, reason=f"version {wanted} was loaded")


@proof(least=Grade.ACKNOWLEDGED, doubts=(Fact.CACHE_FRESH,))
def cache_fresh(context: Context) -> Verdict:
    """The prefix cache was dropped after the weights or the mapping changed; or requests keep older KV on purpose."""
    if goes_on_with_kv(context):
        return NotApplicable(reason=f"paused by {context.facts.paused_by}: requests go on with the KV that they have")
    if context.facts.cache_fresh is True:
        return Proved(grade=context.facts.grades.get(Fact.CACHE_FRESH, Grade.ASSERTED), reason="it was dropped")
    return Refuted(reason="the prefix cache was not dropped, so old entries would be served")


def _open(context: Context, verdict: Proved) -> Mapping[Fact, Any]:
    return {Fact.ADMISSION: "open", Fact.PAUSED_BY: None, Fact.RUNNING: None}


@proof(EvidenceKind.ANSWER, least=Grade.MEASURED, learns=_open, doubts=(Fact.ADMISSION,), condition=True)
def answers(context: Context) -> Verdict:
    """The engine generated a real token."""
    return context.evidence.answer


def _stage_mapped(context: Context, stage: frozenset[Tag]) -> Verdict:
    missing = sorted(tag for tag in stage if context.facts.mapped.get(tag) is not True)
    if missing:
        return Refuted(reason=f"the restore of {', '.join(missing)} was not acknowledged")
    if not context.targets:
        return NotApplicable(reason="nothing was unmapped")
    still = stage & (context.evidence.observed.released_tags or frozenset())
    if still:
        return Pending(reason=f"acknowledged, and it says that {', '.join(sorted(still))} is released")
    before, after = context.baseline.residual, context.evidence.residual
    if isinstance(after, Unmeasurable):
        return _reported_or_acknowledged(context)
    if memory.resident_as_before(context, after):
        reason = f"{mib(after.resident_bytes)} are resident, as before the release"
        return Proved(grade=Grade.MEASURED, reason=reason)
    moved = None if isinstance(before, Unmeasurable) else memory.moved(context, after, before)
    if moved is None and context.evidence.observed.released_tags is None:
        return _mapped_as_a_whole(context, before, after)
    return _bytes_moved(context, moved, "its bytes have not come back")


def _mapped_as_a_whole(context: Context, before: Reading | Unmeasurable, after: Reading) -> Verdict:
    """Whether the targets came back, whose own bytes cannot be seen, by what is resident of all tags."""
    whole = memory.resident_as_a_whole(context, before, after)
    if whole is None:
        return _reported_or_acknowledged(context)
    level = f"{mib(after.resident_bytes)} are resident"
    if whole:
        reason = f"acknowledged, and {level}, as before the release; its own bytes are too few to see"
        return Proved(grade=Grade.MEASURED, reason=reason)
    return Pending(reason=f"acknowledged, and its bytes have not come back: {level}")


def _bytes_moved(context: Context, moved: memory.Moved | None, otherwise: str) -> Verdict:
    """Whether the bytes of the targets were seen to move; where they cannot be seen, what the engine says of them."""
    if moved is None:
        return _reported_or_acknowledged(context)
    if moved.moved_bytes >= moved.least_bytes:
        return Proved(grade=Grade.MEASURED, reason=f"{mib(moved.moved_bytes)} moved")
    seen = f"{mib(moved.moved_bytes)} of {mib(moved.least_bytes)} moved{moved.why}"
    return Pending(reason=f"acknowledged, and {otherwise}: {seen}")


def _reported_or_acknowledged(context: Context) -> Verdict:
    """What is known of tags whose bytes cannot be seen: the engine's own report of what is released, or the answer."""
    if context.evidence.observed.released_tags is None:
        return Proved(grade=Grade.ACKNOWLEDGED, reason="acknowledged; its bytes cannot be seen")
    return Proved(grade=Grade.REPORTED, reason="it says so itself; its bytes cannot be seen")
