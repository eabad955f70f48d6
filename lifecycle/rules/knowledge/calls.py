"""Calls: what is known once one was answered, or was not. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.calls import Call, Reply
from ...core.commands import Command, Drain, Pause
from ...core.facts import Fact, Facts, Grade
from ...core.frozen import replace
from ...core.lease import Driver
from ...core.readings import Reading
from ...core.record import Intent, Record, UncertainCall
from ..evidence import Context


def needs_intent(call: Call) -> bool:
    """Whether a call is written down before it is sent: it changes memory or contents, or does harm a second time.

    A call that changes no fact leaves nothing unknown: those of a push, between its begin and end.
    """
    return bool(call.effect) and (not call.repeatable or bool({Fact.MAPPED, Fact.CONTENTS} & set(call.effect)))


def intended(
    record: Record,
    call: Call,
    command: Context | None,
    *,
    since_s: float,
    until_s: float,
    by: Driver,
    clock: str = "",
) -> Record:
    """The record to be kept before this call is sent by this driver; it may run until `until_s`, by its `clock`.

    `command` is the context in which bytes can tell what this call did.
    """
    doubt = UncertainCall(call.effect, record.facts, record.facts)
    doubt = doubt if command is None else uncertain_call(record, call.effect, command)
    intent = Intent(str(call), doubt, since_s, until_s, by.who, by.token, clock)
    return replace(record, uncertain=replace(record.uncertain, intent=intent))


def intent_over(record: Record) -> Record:
    """The record once the call that was intended was answered, or given up: what it left unknown is in the facts."""
    if record.uncertain.intent is None:
        return record
    return replace(record, uncertain=replace(record.uncertain, intent=None))


def after_reply(record: Record, call: Call, reply: Reply, command: Context | None = None) -> Record:
    """What is known once this call was answered, or is known to have got no answer.

    `command` is the context of the command that the call belongs to; with it bytes can decide later what a lost call
    did.
    """
    if reply.refused:
        return record
    record = _push_open(record, call, acknowledged=reply.outcome == "done")
    if reply.outcome == "done":
        return _acknowledged(record, call)
    if reply.outcome == "rejected" and call.refusal_is_untouched:
        return record
    return _uncertain(record, call, command, may_run_still=reply.outcome == "lost")


def after_cancelled(record: Record, call: Call, command: Context | None = None) -> Record:
    """What is known once the caller gave up on this call before it was answered."""
    record = _push_open(record, call, acknowledged=False)
    return _uncertain(record, call, command, may_run_still=True)


def after_push(record: Record, call: Call, *, failed: bool) -> Record:
    """What is known once the trainer's push has ended; after one that failed its last call may run still."""
    if not failed:
        return replace(record, facts=record.facts.learn(call.effect, Grade.ACKNOWLEDGED, cause=call.name))
    return _uncertain(record, call, None, may_run_still=True)


def _push_open(record: Record, call: Call, *, acknowledged: bool) -> Record:
    """A push is open from the call that begins it, whatever was answered, until one that ends it is acknowledged."""
    if call.push == "begins" or (call.push == "ends" and acknowledged):
        return replace(record, uncertain=replace(record.uncertain, push_open=call.push == "begins"))
    return record


def _acknowledged(record: Record, call: Call) -> Record:
    facts = record.facts.learn(call.effect, Grade.ACKNOWLEDGED, cause=call.name)
    acked = record.uncertain.acked_unrepeatable or not call.repeatable
    return replace(record, facts=facts, uncertain=replace(record.uncertain, acked_unrepeatable=acked))


def _uncertain(record: Record, call: Call, command: Context | None, *, may_run_still: bool) -> Record:
    uncertain = record.uncertain
    if command is not None:
        uncertain = replace(uncertain, call=uncertain_call(record, call.effect, command))
    uncertain = replace(uncertain, needs_barrier=uncertain.needs_barrier or may_run_still)
    return replace(record, facts=record.facts.doubt(call.effect), uncertain=uncertain)


def uncertain_call(record: Record, effect: Mapping[Fact, Any], command: Context) -> UncertainCall:
    residual = command.baseline.residual
    baseline = residual if isinstance(residual, Reading) else None
    return UncertainCall(effect, record.facts, command.facts, command.targets, baseline)


def command_began(record: Record) -> Record:
    """What is known when a command begins: what an earlier one left unknown stays so, and no bytes decide it later."""
    return replace(record, uncertain=replace(record.uncertain, call=None, acked_unrepeatable=False, intent=None))


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
