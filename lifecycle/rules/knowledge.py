"""Knowledge: the only functions that make anything known or unknown about an engine. Pure: a Record in, a Record out.

What is known of an engine changes for five reasons, and each has its functions here.

1. **A call was answered, or was not** (`after_reply`, `after_cancelled`). An acknowledged call has its declared effect,
   graded *acknowledged*. A call that was refused before it was sent, or rejected where that changes nothing, leaves the
   facts. Everything else leaves what the call could have changed unknown, and remembers the call, so that bytes can
   decide later. A call without an answer may still be running: nothing is sent before a barrier has returned.
2. **Proofs were asked** (`after_proofs`, `unproved`). One that holds makes known what it shows, at its grade. One that
   does not, or was not asked any more, makes unknown what it was about.
3. **The engine was observed** (`after_observation`). What it reports replaces what was known. Another boot voids all.
   Somebody else's act voids what it could have changed: who opens an engine may have restored its memory too.
4. **Bytes were measured** (`decided_by_bytes`). After a barrier, and only where one answer fits, they decide.
5. **A person asserts something** (`asserted`), graded lowest, so that the next proof measures it.

A fact that several states of the world explain is unknown: it is never decided for the comfortable one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..core.calls import Call, Reply
from ..core.capabilities import Capabilities
from ..core.commands import Command, Drain, Pause
from ..core.facts import GARBAGE, Contents, Fact, Facts, Grade, PauseMode, Tag
from ..core.frozen import FrozenMap
from ..core.observation import Observation
from ..core.policy import Policy
from ..core.readings import Reading
from ..core.record import Record, Uncertain, UncertainCall
from ..core.states import State
from ..core.verdicts import Proved, Refuted, Verdict, on_deadline
from . import memory
from .evidence import Context
from .proofs import Proof

#: The cause of what an observation told, and of what a person asserted.
OBSERVED, ASSERTED = "observation", "override_state"


# 1. calls


def after_reply(record: Record, call: Call, reply: Reply, command: Context | None = None) -> Record:
    """What is known once this call was answered, or is known to have got no answer.

    `command` is the context of the command that the call belongs to; with it bytes can decide later what a lost call
    did.
    """
    if reply.outcome == "done":
        return _acknowledged(record, call)
    if reply.refused or (reply.outcome == "rejected" and call.refusal_is_untouched):
        return record
    return _uncertain(record, call, command, may_run_still=reply.outcome == "lost")


def after_cancelled(record: Record, call: Call, command: Context | None = None) -> Record:
    """What is known once the caller gave up on this call before it was answered."""
    return _uncertain(record, call, command, may_run_still=True)


def after_push(record: Record, call: Call, *, failed: bool) -> Record:
    """What is known once the trainer's push has ended; after one that failed its last call may run still."""
    if not failed:
        return replace(record, facts=record.facts.learn(call.effect, Grade.ACKNOWLEDGED, cause=call.name))
    return _uncertain(record, call, None, may_run_still=True)


def _acknowledged(record: Record, call: Call) -> Record:
    facts = record.facts.learn(call.effect, Grade.ACKNOWLEDGED, cause=call.name)
    acked = record.uncertain.acked_unrepeatable or not call.repeatable
    return replace(record, facts=facts, uncertain=replace(record.uncertain, acked_unrepeatable=acked))


def _uncertain(record: Record, call: Call, command: Context | None, *, may_run_still: bool) -> Record:
    uncertain = record.uncertain
    if command is not None:
        uncertain = replace(uncertain, call=_uncertain_call(record, call.effect, command))
    uncertain = replace(uncertain, needs_barrier=uncertain.needs_barrier or may_run_still)
    return replace(record, facts=record.facts.doubt(call.effect), uncertain=uncertain)


def _uncertain_call(record: Record, effect: Mapping[Fact, Any], command: Context) -> UncertainCall:
    residual = command.baseline.residual
    baseline = residual if isinstance(residual, Reading) else None
    return UncertainCall(effect, record.facts, command.facts, command.targets, baseline)


def command_began(record: Record) -> Record:
    """What is known when a command begins: what an earlier one left unknown stays so, and no bytes decide it later."""
    return replace(record, uncertain=Uncertain(needs_barrier=record.uncertain.needs_barrier))


def command_ended(record: Record) -> Record:
    """What is known once a command, or finding out where it left the engine, has ended in a stable state."""
    return replace(record, uncertain=replace(record.uncertain, acked_unrepeatable=False))


def not_closed(record: Record, call: Call) -> Record:
    """What is known where the call that closes an engine was not acknowledged: never that it is open, and may serve."""
    return replace(record, facts=record.facts.doubt(call.effect))


def expected_after(facts: Facts, command: Command, calls: tuple[Call, ...] = ()) -> Facts:
    """The facts as they would be after this command and its calls, if all went well. For plans, never for a Record."""
    for call in calls:
        facts = facts.learn(call.effect, Grade.ACKNOWLEDGED, cause=call.name)
    if isinstance(command, Pause):
        facts = facts.learn({Fact.PAUSED_BY: command.mode}, Grade.ACKNOWLEDGED, cause=command.name)
    if isinstance(command, Drain):
        facts = facts.learn({Fact.RUNNING: 0}, Grade.REPORTED, cause=command.name)
    return facts


# 2. proofs


def after_proofs(
    record: Record, proofs: tuple[Proof, ...], verdicts: Mapping[str, Verdict], context: Context
) -> Record:
    """What is known once every proof of a row holds."""
    for proof in proofs:
        verdict = verdicts[proof.name]
        if isinstance(verdict, Proved):
            effect = proof.learns(context, verdict)
            record = replace(record, facts=record.facts.learn(effect, verdict.grade, cause=proof.name))
        if proof.condition:
            record = record.with_condition(proof.name, verdict)
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
    """What is known once some proofs of a row, those in `failed`, did not come to hold in time."""
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
    return replace(record, facts=facts)


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
    in_doubt = _uncertain_call(replace(record, facts=before), effect, context)
    return replace(record, facts=facts.doubt(effect), uncertain=replace(record.uncertain, call=in_doubt))


# 3. observations


def after_observation(record: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known once the engine was observed, with nothing running on it any more.

    A process that is gone leaves nothing. One that did not answer changes nothing. Of another boot what is known is
    what is taken of a process that is met. An engine that an acknowledged call found in another process, or that was
    opened while its memory was released, may have any memory mapped and anything in it.
    """
    if seen.alive is False:
        gone = replace(record.uncertain, needs_barrier=False)
        return replace(record, facts=Facts(boot=record.facts.boot), uncertain=gone)
    if seen.boot is None:
        return record
    boot = record.facts.boot
    if boot is None:
        return replace(record, facts=unknown(seen, capabilities))
    if boot == seen.boot:
        return _same_process(record, seen, capabilities)
    moved = record.uncertain.acked_unrepeatable
    record = replace(record, facts=_met(seen, capabilities), conditions=FrozenMap())
    record = replace(record, uncertain=replace(record.uncertain, call=None))
    return _memory_moved_by_others(record, seen, capabilities) if moved else record


def _same_process(record: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known of the process that the facts are about; opened while memory was released, others opened it."""
    opened = record.facts.admission != "open" and seen.admission == "open" and bool(record.facts.unmapped())
    record = replace(record, facts=_merged(record.facts, seen, capabilities))
    return _memory_moved_by_others(record, seen, capabilities) if opened else record


def _memory_moved_by_others(record: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What its memory is and holds is unknown, but for what it reports; no device of it is free."""
    contents = dict.fromkeys(capabilities.stage("weights"))
    facts = record.facts.doubt({Fact.CONTENTS: contents, Fact.CACHE_FRESH: None})
    if seen.released_tags is None:
        facts = facts.doubt({Fact.MAPPED: dict.fromkeys(facts.mapped)})
    # bytes that others moved do not tell what a lost call did
    record = replace(record, facts=facts, uncertain=replace(record.uncertain, call=None))
    return record.with_condition("memory_returned", None)


def first_seen(record: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known of an engine that is met for the first time by this process."""
    calibration = replace(record.calibration, attached_boot=seen.boot)
    return replace(record, facts=_met(seen, capabilities), calibration=calibration)


def seen_again(kept: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known of an engine that an earlier process kept this record of, about the boot that was seen.

    Of its conditions only `memory_returned` of a released engine still says something. What was under way when that
    process ended is unknown. One that was opened since, while its memory was released, may have any of it mapped.
    """
    returned = kept.conditions.get("memory_returned") if kept.state is State.RELEASED else None
    record = replace(kept, conditions=FrozenMap() if returned is None else FrozenMap({"memory_returned": returned}))
    record = record if kept.state.stable else interrupted(record)
    return _same_process(record, seen, capabilities)


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


def confirmed(record: Record, seen: Observation, capabilities: Capabilities) -> Record:
    """What is known once the same process was observed right after a call of ours: it reports what that call did."""
    return replace(record, facts=_merged(record.facts, seen, capabilities))


def barrier_returned(record: Record) -> Record:
    """All that was sent before has taken effect or never will."""
    return replace(record, uncertain=replace(record.uncertain, needs_barrier=False))


def _met(seen: Observation, capabilities: Capabilities) -> Facts:
    """What is taken of a process that is met: one that admits requests is as it was launched, of another nothing is."""
    admits = seen.admission == "open" or not capabilities.has_admission
    return launched(seen, capabilities) if admits else unknown(seen, capabilities)


def launched(seen: Observation, capabilities: Capabilities) -> Facts:
    """All is mapped and holds what it launched with. Graded *asserted*: its first proved release measures it."""
    tags = [spec.name for spec in capabilities.tags]
    contents = {tag: Contents("launched", seen.weights_label) for tag in capabilities.stage("weights")}
    effect: dict[Fact, Any] = {
        Fact.BOOT: seen.boot,
        Fact.MAPPED: dict.fromkeys(tags, True),
        Fact.CONTENTS: contents,
        Fact.CACHE_FRESH: True,
    }
    return _merged(Facts().learn(effect, Grade.ASSERTED, cause="launch"), seen, capabilities)


def unknown(seen: Observation, capabilities: Capabilities) -> Facts:
    """What is known of a process that is met while it admits nothing: whether its memory is mapped, is not."""
    tags = [spec.name for spec in capabilities.tags]
    effect = {Fact.BOOT: seen.boot, Fact.MAPPED: dict.fromkeys(tags), Fact.CONTENTS: dict.fromkeys(tags)}
    return _merged(Facts().learn(effect, Grade.REPORTED, cause=OBSERVED), seen, capabilities)


def _merged(facts: Facts, seen: Observation, capabilities: Capabilities) -> Facts:
    """The facts after an observation of the same process: what it reports replaces what was known."""
    reported: dict[Fact, Any] = {}
    if seen.admission is not None and seen.admission != facts.admission:
        reported[Fact.ADMISSION] = seen.admission
        reported[Fact.RUNNING] = None
        if seen.admission == "open":
            reported[Fact.PAUSED_BY] = None
    if seen.running is not None:
        reported[Fact.RUNNING] = seen.running
    if seen.released_tags is not None:
        reported[Fact.MAPPED] = {spec.name: spec.name not in seen.released_tags for spec in capabilities.tags}
    denied = _denied_contents(facts, seen, reported.get(Fact.MAPPED, {}))
    return facts.learn(reported, Grade.REPORTED, cause=OBSERVED, read_at_s=seen.sampled_at or None).doubt(denied)


def _denied_contents(facts: Facts, seen: Observation, mapped: Mapping[Tag, bool]) -> dict[Fact, Any]:
    """What others changed with what they did: contents of memory that they moved, or that has another label now.

    A tag that is released now has moved, unless it was known to be released before.
    """
    were = {tag: facts.mapped.get(tag) for tag in mapped}
    moved = {tag for tag, now in mapped.items() if were[tag] is not now and False in (were[tag], now)}
    label = seen.weights_label
    other = {tag for tag, held in facts.contents.items() if held and label and held.version not in (None, label)}
    denied = {tag for tag in facts.contents if tag in moved | other and facts.contents[tag] != GARBAGE}
    effect: dict[Fact, Any] = {Fact.CACHE_FRESH: None} if moved else {}
    return {**effect, Fact.CONTENTS: dict.fromkeys(denied)} if denied else effect


def routed(record: Record, sends: bool | None, verdict: Verdict, grade: Grade) -> Record:
    """What is known once a router was closed or opened: whether it sends to the engine (None: not certain)."""
    record = replace(record, facts=record.facts.learn({Fact.ROUTED: sends}, grade, cause="router"))
    return record.with_condition("routed", verdict)


# 4. bytes


def decided_by_bytes(record: Record, reading: Reading, capabilities: Capabilities, policy: Policy) -> Record:
    """The record with the mapping that was unknown told by what is resident, where only one answer fits.

    Where a call is in doubt the bytes that moved since it was sent decide, and with them everything that the call would
    have changed; else the level alone decides.
    """
    call, facts, calibration = record.uncertain.call, record.facts, record.calibration
    if call is None:
        mapping = memory.mapping_from_resident_bytes(facts, reading, capabilities, calibration, policy)
    else:
        mapping = memory.mapping_from_freed_bytes(facts, call, reading, capabilities, calibration, policy)
    facts = facts.learn({Fact.MAPPED: mapping}, Grade.MEASURED, cause="residual") if mapping else facts
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


# 5. what a person asserts


def asserted(record: Record, state: State, capabilities: Capabilities, paused_by: PauseMode) -> Record:
    """The facts that a person asserts who overrides the state; nothing of what was measured or in doubt is kept.

    A closed engine is taken to have been paused by `paused_by`.
    """
    tags = frozenset(spec.name for spec in capabilities.tags)
    weights = capabilities.stage("weights")
    unmapped = {State.RELEASED: tags, State.WEIGHTS_RESTORED: tags - weights}.get(state, frozenset())
    effect: dict[Fact, Any] = {
        Fact.ADMISSION: "open" if state is State.SERVING else "closed",
        Fact.MAPPED: {tag: tag not in unmapped for tag in tags},
    }
    if state is not State.SERVING:
        effect[Fact.PAUSED_BY] = paused_by
    if state not in (State.SERVING, State.PAUSED):
        effect[Fact.RUNNING] = 0
    if state in (State.SERVING, State.KV_RESTORED):
        effect[Fact.CONTENTS] = {tag: Contents("loaded", record.desired.version) for tag in weights}
        effect[Fact.CACHE_FRESH] = True
    facts = record.facts.learn(effect, Grade.ASSERTED, cause=ASSERTED)
    record = replace(record, facts=facts, uncertain=replace(record.uncertain, call=None))
    return record.with_condition("memory_returned", None)
