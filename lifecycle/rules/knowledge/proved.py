"""Proofs: what is known once they were asked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.commands import Pause, Resume
from ...core.facts import Fact
from ...core.frozen import replace
from ...core.readings import Reading
from ...core.record import Record
from ...core.verdicts import Proved, Refuted, Verdict, on_deadline
from ..evidence import Context
from ..mapping import restored_in_release
from ..proofs import Proof
from .calls import uncertain_call
from .observed import moved_by_others


def after_proofs(
    record: Record, proofs: tuple[Proof, ...], verdicts: Mapping[str, Verdict], context: Context
) -> Record:
    """What is known once every proof of a row holds."""
    facts = record.facts
    for proof in proofs:
        verdict = verdicts[proof.name]
        if isinstance(verdict, Proved):
            facts = facts.learn(proof.learns(context, verdict), verdict.grade, cause=proof.name)
        if proof.condition:
            record = record.with_condition(proof.name, verdict)
    return _to_compare_with(replace(record, facts=facts), verdicts, context)


def found_idle(record: Record, verdict: Verdict) -> Record:
    """What is known once a closed engine was asked whether it is idle: nothing runs, where that was proved."""
    if not isinstance(verdict, Proved):
        return record
    return replace(record, facts=record.facts.learn({Fact.RUNNING: 0}, verdict.grade, cause="idle"))


def _to_compare_with(record: Record, verdicts: Mapping[str, Verdict], context: Context) -> Record:
    """The record with what is resident once every tag was proved to be restored, or to be given back."""
    reading, mapped = context.evidence.residual, record.facts.mapped.values()
    if not isinstance(reading, Reading) or not context.targets:
        return record
    if all(mapped):
        return replace(record, calibration=replace(record.calibration, reading_all_mapped=reading))
    if True not in mapped and isinstance(verdicts.get("memory_returned"), Proved):
        return replace(record, calibration=replace(record.calibration, reading_all_released=reading))
    return record


def after_refuted(
    record: Record,
    proofs: tuple[Proof, ...],
    verdicts: Mapping[str, Verdict],
    failed: frozenset[str],
    context: Context,
    *,
    elapsed_s: float,
) -> Record:
    """What is known once some proofs of a row, those in `failed`, did not come to hold in time.

    An engine that is open after it was closed, though no call of ours opened it, was opened by somebody else. One that
    holds again what was seen to go with a call of this release had it restored by somebody else.
    """
    facts = record.facts
    tags = dict.fromkeys(context.targets or facts.mapped)
    contents = dict.fromkeys(context.capabilities.stage("weights"))
    every_tag: dict[Fact, Any] = {Fact.MAPPED: tags, Fact.CONTENTS: contents}
    for proof in proofs:
        if proof.condition:
            record = record.with_condition(proof.name, _unless_all(verdicts[proof.name], failed, elapsed_s))
        if proof.name in failed:
            facts = facts.doubt({fact: every_tag.get(fact) for fact in proof.doubts})
    for verdict in verdicts.values():
        if isinstance(verdict, Refuted) and verdict.denied:
            weights = verdict.denied & context.capabilities.stage("weights")
            facts = facts.doubt({Fact.MAPPED: dict.fromkeys(verdict.denied), Fact.CONTENTS: dict.fromkeys(weights)})
    record, seen = replace(record, facts=facts), context.evidence.observed
    opened = seen.admission == "open" and context.facts.admission == "closed"
    opened = opened and not isinstance(context.command, Pause | Resume)
    moved = opened or _undone(context)
    return moved_by_others(record, seen, context.capabilities) if moved else record


def _undone(context: Context) -> bool:
    """Whether somebody else restored what a release gave back, before its proofs were asked."""
    evidence, after = context.evidence, context.evidence.residual
    says = evidence.observed.released_tags is not None
    return not says and isinstance(after, Reading) and restored_in_release(context, after)


def _unless_all(verdict: Verdict, failed: frozenset[str], elapsed_s: float) -> Verdict:
    """The condition that a proof leaves where some proofs of its row failed: it does not hold by itself.

    A device is handed to the next tenant after a release that succeeded as a whole, and after no other.
    """
    if isinstance(verdict, Proved):
        return Refuted(reason=f"{verdict.reason}, but {', '.join(sorted(failed))} failed", figures=verdict.figures)
    return on_deadline(verdict, elapsed_s)


def unproved(record: Record, proofs: tuple[Proof, ...], context: Context) -> Record:
    """What is known once a command ended before its proofs were asked.

    What an answer alone says to be loaded or mapped is unknown until it is shown.
    """
    about = {fact for proof in proofs for fact in proof.doubts}
    facts, before = record.facts, context.facts
    if Fact.CONTENTS in about and facts.contents != before.contents:
        contents = dict.fromkeys(context.capabilities.stage("weights"))
        facts = facts.doubt({Fact.CONTENTS: contents, Fact.CACHE_FRESH: None})
    record = replace(record, facts=facts)
    acknowledged = [tag for tag in context.targets if facts.mapped[tag] and not before.mapped[tag]]
    if Fact.MAPPED not in about or not acknowledged:
        return record
    effect: dict[Fact, Any] = {Fact.MAPPED: dict.fromkeys(acknowledged, True)}
    call = record.uncertain.call
    if call is not None and Fact.MAPPED in call.effect:  # the bytes of both decide about both
        effect = {**call.effect, Fact.MAPPED: {**call.effect[Fact.MAPPED], **effect[Fact.MAPPED]}}
    in_doubt = uncertain_call(replace(record, facts=before), effect, context)
    return replace(record, facts=facts.doubt(effect), uncertain=replace(record.uncertain, call=in_doubt))
