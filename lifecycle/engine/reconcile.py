"""Reconcile: find out where an engine is, and enter the first state that its facts make.

Attaching to an engine, looking at one that failed, and settling a command that failed are one algorithm. Its order:

1. **Barrier.** While an effect that was sent may still be running, nothing that is seen counts.
2. **Observe.** A process that is gone makes `gone`. One that does not answer is asked again for a while, since a
   process takes some time to end; then it stays `failed`. Where another process answers than before, several looks
   must see that one alone. What is known afterwards: `rules.knowledge`; which process it is: `rules.identity`.
3. **End a push that failed**, where the engine may still wait for the rest of it and admits no requests.
4. **Decide** (`rules.decision`, pure), do what was decided, and decide again: read what is resident where the mapping
   is unknown, or only remembered; close an engine that admits requests and is not worth serving; ask one that is closed
   whether it is idle; enter a state, or stay for a reason that names the states it may be in and what would decide.

Attaching differs in two things: what is known at the beginning (the kept record of this boot, or what is taken of a
process met for the first time), and that it closes nothing: who only attaches acts on nobody's engine. Verifying
(`engine.verify`) reconciles only what an observation, or what is resident, denies.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

from ..core.commands import Command, Pause, Resume
from ..core.deadline import Deadline
from ..core.errors import ConfigurationError, EngineHeld, OperationFailed, Unreachable
from ..core.facts import Fact
from ..core.lease import Lease
from ..core.observation import Observation
from ..core.readings import Reading
from ..core.record import Record
from ..core.states import UNCLAIMED, State
from ..core.verdicts import Unmeasurable
from ..nodes.clock import set_since_s
from ..rules import knowledge, mapping
from ..rules.contradiction import contradiction
from ..rules.decision import AskIdle, Close, Enter, ReadBytes, Stay, closing_mode, decide, why_none
from ..rules.evidence import taken_as_launched
from ..rules.identity import IDENTITY, compare, is_contested, needs_confirming, same_process, two_answer
from .call import send
from .edge import Edge
from .gather import EVERYTHING, boot_anew, observe, residual, residual_again
from .processes import ENDING_S, with_processes
from .push import closing_call
from .session import Session

#: Why an engine that was gone is so no more: it was not seen to be gone.
NOT_GONE = "a process may be there in its place"

#: Further looks that must see the same process where another one answers than before. Of a load balancer that chooses
#: one of two at random, so many agree once in 4096 times.
CONFIRMING_LOOKS = 12

#: The same, of an engine that is met: of two that take turns, two looks in a row never agree.
ATTACHING_LOOKS = 2


async def reconcile_failed(
    session: Session, error: OperationFailed, deadline: Deadline, command: Command, *, trigger: str = "failed"
) -> OperationFailed:
    """The error, which now says where the engine is. The engine is in a stable state, or failed."""
    session.go(trigger, command=error.command, reason=error.why)
    try:
        found = await reconcile(session, deadline, must_close=isinstance(command, Resume))
    except BaseException as interrupted:
        error.settle(session.state, " (looking was interrupted)")
        raise interrupted from error
    return error.settle(found.state, _note(session.record, command, found.reason))


@dataclass(frozen=True, slots=True)
class Found:
    """Where an engine was found, and why no state of the ring was entered; the reason is empty where one was.

    `candidates` are the states that it may be in.
    """

    state: State
    reason: str = ""
    candidates: tuple[State, ...] = ()


async def attach(
    session: Session, deadline: Deadline, *, known_here: Record | None = None, reads: bool = True
) -> Reading | Unmeasurable | None:
    """The engine is in the state that its facts make: those kept of this boot, else those of the first observation.

    `known_here` is what counts as kept where no store has anything of it. With `reads` the result is what is resident
    now: of a released engine `memory_returned` is judged by it, and of one that admits requests it is remembered.
    """
    seen = await observe(session, EVERYTHING, deadline_s=deadline.left_s)
    used_by_others = session.owner.met(seen.boot)
    stored = session.kept()
    lease = call_under_way(session, seen.boot, stored)
    if lease is not None:
        await _call_over(session, lease, deadline)
        return await attach(session, deadline, known_here=known_here, reads=reads)  # nothing that was seen counts
    kept = stored or (None if used_by_others else known_here)
    record = await _met(session, seen, kept, deadline)
    if record.uncertain.needs_barrier and await session.adapter.barrier(deadline_s=deadline.left_s):
        seen = await observe(session, EVERYTHING, deadline_s=deadline.left_s)  # nothing counts that was seen
        record = knowledge.barrier_returned(await _met(session, seen, kept, deadline))
    known = kept is not None and bool(kept.facts.mapped) and same_process(kept.facts.boot, record.facts.boot)
    session.commit(await with_processes(session, record))
    session.journal.attached(session.adapter.url, session.group, session.policy)
    step = await _decided(session, deadline, may_close=False)
    state = step.state if isinstance(step, Enter) else State.FAILED
    reason = "attached" if isinstance(step, Enter) else why_none(step, seen, session.facts)
    reading = await residual(session, deadline_s=deadline.left_s) if reads else None
    if seen.released_tags is None and isinstance(reading, Reading) and await _was_moved(session, reading, deadline):
        return await attach(session, deadline, known_here=known_here, reads=reads)  # nothing that was seen counts
    if state is not State.RELEASED:  # what was kept of it was about a release
        session.commit(session.record.with_condition("memory_returned", None))
    record = _with_reading(session, state, reading)
    contested = record.conditions.get(IDENTITY)
    reason = reason if contested is None else contested.verdict.reason
    # Attaching takes nothing from another process, which may be in the middle of a command: what it kept stays.
    if not known and not session.keep_where_unchanged(replace(record, state=state), stored):
        return await attach(session, deadline, known_here=known_here, reads=reads)  # it counts, as if kept before
    session.commit(record, Edge(f"observed_{state}", reason=reason), save="no")
    return reading


async def _was_moved(session: Session, reading: Reading, deadline: Deadline) -> bool:
    """Whether somebody else moved memory of the engine since it was looked at: what is resident is not what it holds.

    Of a process that is taken to be as it launched the sizes may be wrong: of that an observation must say so too.
    """
    record, left_s = session.record, deadline.left_s
    if not left_s or mapping.denied_by_bytes(record, reading, session.capabilities, session.policy) is None:
        return False
    again = await observe(session, EVERYTHING, deadline_s=deadline.left_s)
    others = again.boot is not None and contradiction(record, again) is not None
    return others or not taken_as_launched(record)


async def _met(session: Session, seen: Observation, kept: Record | None, deadline: Deadline) -> Record:
    """What is known of the engine that answers alone. Raises ConfigurationError where two processes do."""
    seen = await _confirmed_alone(session, seen, deadline, looks=ATTACHING_LOOKS)
    if seen.others:
        boots = two_answer((seen.boot or "", *seen.others))
        raise ConfigurationError(f"{session.name}: {boots}; give each engine a URL of its own")
    return knowledge.attached(Record(state=session.state), kept, seen, session.capabilities)


def _with_reading(session: Session, state: State, reading: Reading | Unmeasurable | None) -> Record:
    """What is known of an engine that will be in this state, with what is resident."""
    reading = Unmeasurable(reason="what is resident was not read") if reading is None else reading
    record = replace(session.record, state=state)
    record = knowledge.read_at_rest(record, reading, session.capabilities, session.policy)
    return replace(record, state=session.state)


def call_under_way(session: Session, boot: str | None, kept: Record | None) -> Lease | None:
    """The lease of another driver of which a call that cannot be repeated may run, whether that driver lives or not."""
    now_s, other = time.time(), session.owner.other(boot)
    if other is not None and (other.call_until_s or 0.0) > now_s:
        return replace(other, until_s=other.call_until_s)
    intent = None if kept is None else kept.uncertain.intent
    if kept is None or intent is None or intent.token == session.owner.driver.token:
        return None
    ended = boot is not None and compare(kept.facts.boot or boot, boot) == "other"  # with the process that it went to
    set_s = set_since_s(intent.clock)
    if intent.until_s + set_s > now_s and not ended:
        since_s, until_s = intent.since_s + set_s, intent.until_s + set_s
        return Lease(intent.token, intent.by, intent.call, False, since_s, call_until_s=until_s)
    return None


async def _call_over(session: Session, lease: Lease, deadline: Deadline) -> None:
    """The call of a driver that has ended may run no more. EngineHeld where it lives, or the deadline comes before."""
    left_s = (lease.call_until_s or 0.0) - time.time()
    if lease.held or left_s >= deadline.left_s:
        raise session.held_by(lease, "connect")
    await asyncio.sleep(max(0.0, left_s))


async def catch_up(session: Session, deadline: Deadline, by: str) -> None:
    """What is known of the engine is of now, after another driver used it (`by`, in words).

    What that one kept of it counts, where it can be read here; otherwise nothing does but what is seen. Another process
    in its place is left to the command that follows, which observes the engine before it sends anything. Raises
    Unreachable where nothing answers.
    """
    session.requests.forget()
    seen = await observe(session, EVERYTHING, deadline_s=deadline.look_s(0.5))
    kept = session.kept()
    if seen.boot is None and seen.alive is not False:
        why = f"it did not answer, after another driver used it ({by}): {seen.detail or 'no reason given'}"
        raise Unreachable(why, **session.about("catching up"))
    if not _about_this(session.record, seen, session):
        return
    record = _caught_up(session, kept, seen)
    if record.uncertain.needs_barrier and await session.adapter.barrier(deadline_s=deadline.look_s(0.5)):
        again = await observe(session, EVERYTHING, deadline_s=deadline.look_s(0.5))
        if _about_this(session.record, again, session):  # nothing counts that was seen before
            record = knowledge.barrier_returned(_caught_up(session, kept, again))
    session.commit(record)
    step = await _decided(session, deadline, may_close=False)
    state = step.state if isinstance(step, Enter) else None
    if state is State.RELEASED:
        session.commit(_with_reading(session, state, await residual(session, deadline_s=deadline.look_s(0.5))))
    else:  # what was kept of it was about a release
        session.commit(session.record.with_condition("memory_returned", None))
    if state is session.state:
        return
    if session.state not in UNCLAIMED:
        session.go("contradicted", reason=f"another driver used it: {by}")
    if isinstance(step, Enter):
        session.commit(session.record, Edge(f"observed_{step.state}", reason=f"another driver left it so: {by}"))
    else:
        await reconcile(session, deadline)


def _caught_up(session: Session, kept: Record | None, seen: Observation) -> Record:
    """What another driver kept of the engine, where that is about the process that was seen; else what was seen."""
    if kept is not None and _about_this(kept, seen, session):
        return replace(knowledge.seen_again(kept, seen, session.capabilities), state=session.state)
    return knowledge.used_by_others(session.record, seen, session.capabilities)


def _about_this(known: Record, seen: Observation, session: Session) -> bool:
    """Whether what is known is about the process that answers, with the tags that it has."""
    tags = {spec.name for spec in session.capabilities.tags}
    return same_process(known.facts.boot, seen.boot) and set(known.facts.mapped) == tags


async def reconcile(session: Session, deadline: Deadline, *, must_close: bool = False) -> Found:
    """The engine is in the first state that its facts make; failed where they make none or it does not answer.

    Returns that state, and why it is that one. `must_close`: it is closed first even where it is worth serving.
    """
    found = await _found(session, deadline, must_close)
    session.reason = found.reason or session.reason
    return found


async def _found(session: Session, deadline: Deadline, must_close: bool) -> Found:
    settled = await session.adapter.barrier(deadline_s=deadline.look_s(0.5))
    seen = await _observed(session, deadline)
    if seen.alive is False:
        gone = knowledge.after_observation(session.record, seen, session.capabilities)
        reason = seen.detail or "its process is gone"
        session.commit(gone, Edge(f"observed_{State.GONE}", reason=reason))
        return Found(session.state, reason)
    if session.state is State.GONE:
        session.go(f"observed_{State.FAILED}", reason=NOT_GONE)
    if seen.boot is None:
        return Found(session.state, f"it does not answer{f' ({seen.detail})' if seen.detail else ''}")
    if not settled:
        return Found(session.state, "its barrier has not returned: what was sent before may still run")
    here = knowledge.barrier_returned(session.record)
    session.commit(await with_processes(session, knowledge.after_observation(here, seen, session.capabilities)))
    open_push = None if is_contested(session.record) else closing_call(session)
    if open_push is not None and _may_act(session, deadline):
        await send(session, open_push, deadline_s=deadline.look_s(0.5))
    step = await _decided(session, deadline, may_close=True, must_close=must_close)
    if isinstance(step, Stay):
        return Found(session.state, why_none(step, seen, session.facts), step.candidates)
    record = knowledge.command_ended(session.record)
    session.commit(record, Edge(f"observed_{step.state}", reason="its facts make this state"))
    return Found(session.state)


async def _observed(session: Session, deadline: Deadline) -> Observation:
    """What is seen of it. One that is silent is looked at again for a while: a process takes some to have ended."""
    end = Deadline(min(ENDING_S, deadline.left_s / 2))
    while True:
        seen = await observe(session, EVERYTHING, deadline_s=deadline.look_s(0.5))
        if seen.boot is not None and needs_confirming(session.record, seen):
            return await _confirmed_alone(session, seen, deadline, looks=CONFIRMING_LOOKS)
        if seen.boot is not None or seen.alive is False or not end.left_s:
            return seen
        await asyncio.sleep(min(session.policy.poll_s, end.left_s))


async def _confirmed_alone(session: Session, seen: Observation, deadline: Deadline, *, looks: int) -> Observation:
    """What was seen, with the other boots that further looks saw in its place; silence where those got no answer."""
    others: dict[str, None] = dict.fromkeys(seen.others)
    for _ in range(looks if seen.boot is not None else 0):
        again = await boot_anew(session, deadline_s=deadline.look_s(0.5))
        if again.boot is None:
            return Observation(
                detail=f"boot {seen.boot} answered, and then {again.detail or 'nothing did'}",
                sampled_at=again.sampled_at,
            )
        if not same_process(seen.boot, again.boot):
            others[again.boot] = None
    return replace(seen, others=tuple(others))


async def _decided(session: Session, deadline: Deadline, *, may_close: bool, must_close: bool = False) -> Enter | Stay:
    """The state to enter, or why none fits."""
    tried: frozenset[type] = frozenset()
    undecided = mapping.Undecided()
    while True:
        how: Any = {"may_close": may_close, "must_close": must_close, "undecided": undecided}
        step = decide(session.record, session.capabilities, tried=tried, **how)
        tried |= {type(step)}
        match step:
            case ReadBytes():
                undecided = await _decide_by_bytes(session, deadline)
            case Close():
                if not _may_act(session, deadline):
                    return Stay("it is to be closed, and another driver has it or used it since it was looked at")
                undecided = replace(undecided, unclosed=await _close(session, deadline))
                if session.record.uncertain.needs_barrier:
                    return Stay("the call that closes it got no answer, and may still run")
                if not await _confirmed(session, deadline):
                    return Stay("it was told to close, and did not answer as the same process afterwards")
            case AskIdle():
                if _may_act(session, deadline):
                    verdict = await session.adapter.prove_idle(session.facts, deadline_s=deadline.look_s(0.5))
                    session.commit(knowledge.found_idle(session.record, verdict))
            case Enter() | Stay():
                return step


async def _decide_by_bytes(session: Session, deadline: Deadline) -> mapping.Undecided:
    """What is resident has decided which tags are mapped; why not, where it has not."""
    reading = await _resident(session, deadline)
    if isinstance(reading, Unmeasurable):
        return mapping.Undecided(f"what is resident cannot be read ({reading.reason})")
    capabilities, policy = session.capabilities, session.policy
    session.commit(knowledge.decided_by_bytes(session.record, reading, capabilities, policy))
    if None not in session.facts.mapped.values():
        return mapping.Undecided()
    return mapping.undecided(session.record, reading, capabilities, policy)


def _may_act(session: Session, deadline: Deadline) -> bool:
    """Whether the engine is this driver's to act on. One that another driver has is left as it is."""
    try:
        session.take("reconcile", time.time() + deadline.left_s)
    except EngineHeld:
        return False
    if session.owner.missed is None:
        return True
    session.owner.free(session.facts.boot)  # what is known of it is of before: the next command finds out first
    return False


async def _resident(session: Session, deadline: Deadline) -> Reading | Unmeasurable:
    """What is resident; of an engine that could be measured before, asked again for a while."""
    call = session.record.uncertain.call
    measured = session.record.calibration.reading_all_mapped or (call and call.baseline)
    try:
        return await (residual_again if measured else residual)(session, deadline_s=deadline.look_s(0.5))
    except Unreachable as other:
        return Unmeasurable(reason=other.why)


async def _close(session: Session, deadline: Deadline) -> str:
    """Admission is closed where the calls that close it may be repeated; the facts say so.

    Returns why a call that closes it must not be sent, where its adapter says so.
    """
    mode = closing_mode(session.facts, session.capabilities, session.policy)
    session.requests.forget()  # others may have let requests in
    for call in () if mode is None else session.adapter.plan(Pause(mode), session.facts):
        if not call.repeatable:
            return str(call.args.get("why", ""))
        reply = await send(session, call, deadline_s=deadline.look_s())
        if reply.outcome != "done":
            session.commit(knowledge.not_closed(session.record, call))
            return ""
    return ""


async def _confirmed(session: Session, deadline: Deadline) -> bool:
    """Whether the same process answers after it was told to close: its facts tell then whether it did.

    Requests are counted where the state hangs on them; elsewhere a drain asks.
    """
    unread = {Fact.CONTENTS} if False in session.facts.mapped.values() else {Fact.CONTENTS, Fact.RUNNING}
    seen = await observe(session, EVERYTHING - unread, deadline_s=deadline.look_s())
    if not same_process(seen.boot, session.facts.boot):
        session.commit(knowledge.another_answered(session.record, seen))
        return False
    session.commit(knowledge.confirmed(session.record, seen, session.capabilities))
    return True


def _note(record: Record, command: Command, reason: str) -> str:
    """What an error says of the state to which its engine settled, beside its name."""
    if record.state in (State.FAILED, State.GONE):
        return f" ({reason})"
    condition = record.conditions.get("memory_returned")
    if record.state is State.RELEASED and condition is not None and not record.memory_is_free:
        return f", memory_returned is {condition.verdict.word}: its device is not free for others"
    if isinstance(command, Resume) and record.facts.admission == "closed":
        return ": it was closed again, and admits no requests"
    return ""
