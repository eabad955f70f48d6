"""One command on one engine, in six steps: claim, ask, fire, send, prove, fire; and reconcile where it failed.

0. **claim**, before this class is made: the row was looked up and the engine marked busy, without an await.
1. **ask**: the fresh evidence that the row's guards need, and the baseline of its proofs. What contradicts the facts
   ends the command here, and the engine is reconciled. A cancellation here leaves everything as it was. Engines that
   are released together wait for each other here.
2. **fire**: the guards, on that evidence, and the transient state. It is saved first: what is about to be sent cannot
   be repeated, and must not be forgotten if this process ends. A refusal has sent nothing and changed nothing.
3. **send** each call of the plan in turn. What is known is known per call: half a release is known as half a release.
4. **prove**: the row's proofs are asked until all hold, or one never will, or the deadline passes.
5. **fire** succeeded. Where anything failed: failed, and then, unless the caller gave up, reconcile; the error says
   where the engine was found. Where neither memory nor weights were changed, what is desired is what was before. Where
   the caller gave up before anything was sent, as of every drain, the engine is where it was.

The deadline is one for all steps. A part of it is kept back for reconciling.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any

from ..core.calls import PUSH, Call
from ..core.commands import Command, Drain, Release, RestoreKV, UpdateWeights
from ..core.deadline import Deadline, growing
from ..core.errors import DeadlineExceeded, GuardRefused, NotProved, OperationFailed, Unreachable
from ..core.facts import Fact, Tag
from ..core.frozen import EMPTY, FrozenMap, replace
from ..core.readings import Reading
from ..core.record import Record
from ..core.replies import CallReply
from ..core.requests import RequestFates
from ..core.states import State
from ..core.transition import Transition
from ..core.verdicts import Pending, Unmeasurable, Verdict, below_grade
from ..rules import knowledge
from ..rules.checksums import by_model_role
from ..rules.contradiction import contradiction, other_process, requests_let_in
from ..rules.desired import desired_unless_touched, set_desired, was_loaded
from ..rules.evidence import Context, Evidence, EvidenceKind, believed_only, targets
from ..rules.machine import Refusals, refusals
from ..rules.mapping import since_call_before
from ..rules.proofs import unread_by, waived_no_longer
from ..rules.returned import moving
from ..rules.table import Operation, fits
from ..rules.weights import invalid_weights, is_kept
from . import canary
from .call import failure, send
from .collective import Collective, CollectiveFailed
from .edge import Edge
from .gather import gather, residual, residual_again
from .preempt import preemptible
from .push import Pushes, close_cancelled, closing_call
from .reconcile import reconcile_failed
from .session import NotSaved, Session

#: The guard of a release with others: all of them are ready.
ALL_READY = "all_ready"

#: Seconds after which what was asked before the others were ready is asked again.
ASKED_BEFORE_S = 1.0

#: Seconds for which an engine is asked to wait until it is idle. What gives the wait up meanwhile leaves that question
#: standing in the engine, where the next one waits behind it: no longer than this.
IDLE_WAIT_S = 1.0

_log = logging.getLogger("lifecycle")


class Attempt:
    """A claimed command: the engine is marked busy, and stays so until `run` has returned or raised."""

    def __init__(
        self,
        session: Session,
        command: Command,
        row: Operation,
        deadline: Deadline,
        *,
        pushes: Pushes,
        collective: Collective | None = None,
    ) -> None:
        self.session = session
        self.command = command
        self.row = row
        self.deadline = deadline
        self.collective = collective
        self._pushes = pushes
        self._sent = False
        self._about: dict[str, Any] = session.about(command.name)
        #: The tags that each call of a release gave back, and what was resident after it.
        self._readings: list[tuple[frozenset[Tag], Reading | Unmeasurable]] = []
        self._requests: RequestFates | None = None
        self._replies: tuple[CallReply, ...] = ()

    def run(self) -> Coroutine[Any, Any, Transition]:
        """Awaited: the engine is in the row's destination, on evidence; else this raises and says where it is."""
        steps = self._steps()
        return preemptible(self.session, steps) if isinstance(self.command, Drain) else steps

    async def _steps(self) -> Transition:
        try:
            with self.session.tenancy.until_begun():
                context = await self._ready(await self._ask())
                self._fire(context)
        except (OperationFailed, GuardRefused) as error:
            self._fail_collective(error)
            raise
        try:
            await self._send(context)
            verdicts, proved = await self._prove(context)
            self._requests = await self.session.requests.after(self.command, self._requests, self.deadline)
        except OperationFailed as error:
            self._fail_collective(error)
            if not isinstance(error, NotProved):
                self._leave_unproved(context)
            self._undo_desired(context)
            raise await reconcile_failed(self.session, error, self.deadline, self.command) from error.__cause__
        except BaseException as error:
            self._fail_collective(error)
            self._leave_unproved(context)
            self._undo_desired(context)
            await self._given_up(error)
            raise
        return self._succeed(context, verdicts, proved)

    async def _given_up(self, error: BaseException) -> None:
        """The caller gave up: nothing is asked, but a push is ended. Where nothing was sent it is where it was."""
        session, name = self.session, self.command.name
        try:
            if isinstance(error, asyncio.CancelledError):
                left_s = min(session.policy.settle_s, self.deadline.left_s)
                await close_cancelled(session, self._pushes, Deadline(left_s))
        finally:
            session.go("failed", command=name, reason=f"cancelled: {type(error).__name__}")
        valid = invalid_weights(session.record, session.capabilities) is None
        if not self._sent and fits(session.facts, session.capabilities, weights_are_valid=valid) is self.row.source:
            session.go(f"observed_{self.row.source}", command=name, reason="nothing had been sent")

    def _fail_collective(self, error: BaseException) -> None:
        if self.collective is not None:
            self.collective.fail(error, who=self.session.name)

    def _leave_unproved(self, context: Context) -> None:
        """The proofs were not asked, or nothing answered them: what an answer alone said is unknown."""
        self.session.commit(knowledge.unproved(self.session.record, self.row.proofs, context))

    def _undo_desired(self, context: Context) -> None:
        self.session.commit(desired_unless_touched(self.session.record, context.record))

    # 1. ask

    async def _ask(self) -> Context:
        session = self.session
        acted_on = targets(self.command, session.facts, session.capabilities)
        if session.state is State.SERVING:
            await canary.record_baseline(session, deadline_s=self.deadline.work_s / 2)
        kinds = self._kinds(acted_on)
        evidence = await gather(session, kinds, self.command, deadline_s=self.deadline.work_s)
        await self._deny(evidence)
        was_read = acted_on and session.record.calibration.reading_all_mapped is not None
        if was_read and _unread(evidence, kinds):  # the rest is asked anew after that wait, and not in it
            reading = await residual_again(session, deadline_s=self.deadline.work_s / 2)
            rest = kinds - {EvidenceKind.RESIDUAL}
            evidence = await gather(session, rest, self.command, deadline_s=self.deadline.work_s)
            evidence = replace(evidence, residual=reading)
            await self._deny(evidence)
        self._requests = await session.requests.before(self.command, session.state, self.deadline)
        return session.context(self.command, targets=acted_on, evidence=evidence, baseline=evidence)

    async def _deny(self, evidence: Evidence) -> None:
        """What contradicts the facts is taken in, and ends the command."""
        session, seen = self.session, evidence.observed
        record, capabilities = session.record, session.capabilities
        denied, let_in, moved = contradiction(record, seen), None, None
        if denied is None or other_process(record.facts, seen) is None:
            let_in = requests_let_in(record.facts, capabilities, evidence.idle)
            moved = knowledge.moved_unseen(record, seen, evidence.residual, capabilities, session.policy)
        if denied is None and let_in is None and moved is None:
            return
        taken_in = knowledge.denied if let_in is None else knowledge.let_in_by_others
        record = taken_in(record, seen, capabilities)
        session.commit(record if moved is None else knowledge.memory_is_unknown(record, capabilities))
        error = Unreachable(denied or let_in or moved or "", **self._about)
        self._fail_collective(error)
        raise await reconcile_failed(self.session, error, self.deadline, self.command, trigger="contradicted")

    def _kinds(self, acted_on: frozenset[Tag]) -> frozenset[str]:
        """What the guards need, and of what the proofs need that which has to be read before the calls too."""
        kinds = self.row.needed_before
        if self._keeps(acted_on):
            kinds |= {EvidenceKind.CHECKSUM}
        elif not self.session.record.calibration.kept_checksums and not isinstance(self.command, UpdateWeights):
            kinds -= {EvidenceKind.CHECKSUM}
        if self.session.facts.admission is not None:
            kinds |= {EvidenceKind.ADMISSION}
        if EvidenceKind.RESIDUAL not in self.row.needed_by_proofs and not believed_only(self.session.record):
            kinds -= {EvidenceKind.RESIDUAL}
        return kinds

    def _keeps(self, acted_on: frozenset[Tag]) -> bool:
        """Whether this is a release of weights that the engine keeps by its own backup."""
        if not isinstance(self.command, Release):
            return False
        capabilities, source = self.session.capabilities, self.command.weights
        weights = acted_on & capabilities.stage("weights")
        return any(is_kept(capabilities.spec(tag), source) for tag in weights)

    async def _ready(self, context: Context) -> Context:
        """All that are released with this engine are ready for it too; GuardRefused where one is not.

        None is told anything before, so that what keeps one leaves all of them as they are. What was asked before
        others took their time is asked again.
        """
        if self.collective is None or not isinstance(self.command, Release) or refusals(self.row.guards, context):
            return context
        begun_s, limit_s = self.deadline.elapsed_s, self.deadline.work_s
        try:
            await self.collective.arrive(self.session.name, deadline_s=limit_s)
        except (CollectiveFailed, TimeoutError) as error:
            why = str(error) or f"the others are not ready in {limit_s:.1f} s"
            raise GuardRefused({ALL_READY: why}, **self._about) from error
        return await self._ask() if self.deadline.elapsed_s - begun_s > ASKED_BEFORE_S else context

    # 2. fire

    def _fire(self, context: Context) -> None:
        edge = Edge(self.command.name, command=self.command.name, context=context)
        try:
            self.session.commit(self._begun(context), edge, save="begin")
        except Refusals as refused:
            raise GuardRefused(refused.reasons, **self._about) from None
        except NotSaved as problem:
            raise self.session.not_kept(problem, self.command.name) from problem

    def _begun(self, context: Context) -> Record:
        """The record at the moment before the first call."""
        record, capabilities = knowledge.command_began(context.record), context.capabilities
        if context.targets:  # half of a call that moves memory moves some too
            moves = moving(record, restores=not isinstance(self.command, Release))
            record = record.with_condition("memory_returned", moves)
        match self.command:
            case UpdateWeights(source=source):
                return set_desired(record, source, capabilities)
            case Release(weights=weights):
                record = record if weights is None else set_desired(record, weights, capabilities)
                return replace(record, calibration=replace(record.calibration, **self._measured_before(context)))
        return record

    def _measured_before(self, context: Context) -> dict[str, Any]:
        """What a release remembers of the time before it, to compare with later."""
        measured: dict[str, Any] = {}
        if not context.facts.unmapped() and isinstance(context.baseline.residual, Reading):
            measured["reading_all_mapped"] = context.baseline.residual
        if self._keeps(context.targets):
            measured["kept_checksums"] = by_model_role(context.baseline.observed)
        return measured

    # 3. send

    async def _send(self, context: Context) -> None:
        session = self.session
        open_push = closing_call(session) if isinstance(self.command, UpdateWeights) else None
        if open_push is not None:
            await self._call(open_push, context)
        calls = session.adapter.plan(self.command, session.facts)
        for call in calls:
            await (self._push(call) if call.name == PUSH.name else self._call(call, context))
            if isinstance(self.command, Release):
                await self._read_after(call, context, last=call is calls[-1])

    async def _call(self, call: Call, context: Context) -> None:
        intent = context
        if self._readings:
            so_far = replace(context, readings_per_call=tuple(self._readings))
            intent = since_call_before(so_far, self.session.record, call)
        deadline_s, sent = self.deadline.work_s, partial(setattr, self, "_sent", True)
        reply = await send(self.session, call, deadline_s=deadline_s, command=context, intent=intent, on_sent=sent)
        if reply.outcome != "done":
            raise failure(reply, call, **self._about, deadline=self.deadline)
        self._replies += (CallReply.of(call, reply),)

    async def _read_after(self, call: Call, context: Context, *, last: bool) -> None:
        """What is resident between two calls of a release shows what each gave back; after the last the proof reads.

        One that fails is asked again, for half of the time that is left: the call after it needs some too.
        """
        reading: Reading | Unmeasurable = Unmeasurable(reason="the proof reads it")
        if not last and isinstance(context.baseline.residual, Reading):
            reading = await residual_again(self.session, deadline_s=self.deadline.work_s / 2)
        elif not last:
            reading = await residual(self.session, deadline_s=self.deadline.work_s)
        self._readings.append((frozenset(call.effect.get(Fact.MAPPED, {})), reading))

    async def _push(self, call: Call) -> None:
        if self.collective is None:
            raise Unreachable("a push needs its collective; update through updating_weights()", **self._about)
        try:
            with self._pushes.allowed(self.deadline):
                await self.collective.arrive(self.session.name, deadline_s=self.deadline.work_s)
        except BaseException as error:
            self.session.commit(knowledge.after_push(self.session.record, call, failed=True))
            self._fail_collective(error)
            if isinstance(error, CollectiveFailed | TimeoutError) or not self.session.capabilities.cancellable:
                await self._pushes.ended()
            if isinstance(error, CollectiveFailed):
                raise Unreachable(str(error), **self._about) from error
            if isinstance(error, TimeoutError):
                total_s = self.deadline.total_s
                why = f"the push did not end in {total_s:.1f} s"
                raise DeadlineExceeded(why, deadline_s=total_s, **self._about) from error
            raise
        self.session.commit(knowledge.after_push(self.session.record, call, failed=False))

    # 4. prove

    async def _prove(self, asked: Context) -> tuple[Mapping[str, Verdict], Context]:
        """Verdicts and what they rest on, once every proof holds; NotProved where one never will, or no time is left.

        A claim that the policy waives is waited for too, but for no longer than `settle_s`.
        """
        policy, waiting = self.session.policy, Deadline(self.session.policy.settle_s)
        polls, again = growing(policy.poll_s), False
        while True:
            verdicts, context = await self._ask_proofs(asked, again=again)
            if min(waiting.left_s, self.deadline.work_s) <= 0:
                verdicts = waived_no_longer(verdicts, policy, waited_s=self.deadline.elapsed_s)
            failed = frozenset(name for name, verdict in verdicts.items() if not policy.takes(name, verdict))
            if not failed:
                return verdicts, context
            record = self.session.record
            unread = {proof.name for proof in self.row.proofs if unread_by(proof, verdicts[proof.name], context)}
            pending = all(isinstance(verdicts[name], Pending) or name in unread for name in failed)
            if not pending or self.deadline.work_s <= 0:
                if failed & unread:  # bytes decide once they can be read again
                    self._leave_unproved(asked)
                    record = self.session.record
                elapsed_s = self.deadline.elapsed_s
                refuted = knowledge.after_refuted(
                    record, self.row.proofs, verdicts, failed, context, elapsed_s=elapsed_s
                )
                self.session.commit(refuted)
                raise self._not_proved(verdicts, failed, elapsed_s)
            await asyncio.sleep(min(next(polls), self.deadline.work_s))
            again = True

    async def _ask_proofs(self, context: Context, *, again: bool) -> tuple[Mapping[str, Verdict], Context]:
        session, kinds = self.session, self.row.needed_by_proofs
        # The last look takes from what is kept back: one without time for an answer would call the engine silent.
        deadline_s = max(self.deadline.work_s, self.deadline.look_s(0.5))
        evidence = await gather(session, kinds, self.command, deadline_s=deadline_s, again=again, wait_s=IDLE_WAIT_S)
        context = replace(context, record=session.record, evidence=evidence, readings_per_call=tuple(self._readings))
        session.tenancy.seen(evidence.residual)
        other = other_process(session.facts, evidence.observed)
        if other is not None:
            self.session.commit(knowledge.another_answered(self.session.record, evidence.observed))
            raise Unreachable(other, **self._about)
        return FrozenMap({proof.name: proof.check(context) for proof in self.row.proofs}), context

    def _not_proved(self, verdicts: Mapping[str, Verdict], failed: frozenset[str], elapsed_s: float) -> OperationFailed:
        policy = self.session.policy
        short = {
            name: below_grade(verdict, policy.least_grade(name), elapsed_s)
            for name, verdict in verdicts.items()
            if name in failed
        }
        return NotProved(short, **self._about)

    # 5. fire

    def _succeed(self, context: Context, verdicts: Mapping[str, Verdict], proved: Context) -> Transition:
        record = knowledge.after_proofs(self.session.record, self.row.proofs, verdicts, proved)
        record = knowledge.command_ended(record)
        if isinstance(self.command, UpdateWeights):
            record = was_loaded(record, self.command.source)
        if isinstance(self.command, UpdateWeights | RestoreKV):
            record = replace(record, calibration=replace(record.calibration, kept_checksums=EMPTY))
        if self.row.dest is State.RELEASED:
            by_call = [tags for tags, _ in self._readings]
            record, warnings = knowledge.after_release(record, context, verdicts.get("memory_returned"), by_call)
            for warning in warnings:
                _log.warning("%s: %s", self.session.name, warning)
        name, duration_s = self.command.name, self.deadline.elapsed_s
        edge = Edge("succeeded", name, verdicts, duration_s, requests=self._requests, replies=self._replies)
        transition = self.session.commit(record, edge)
        assert transition is not None
        return transition


def _unread(evidence: Evidence, kinds: frozenset[str]) -> bool:
    """Whether what is resident was asked for, and could not be read."""
    return EvidenceKind.RESIDUAL in kinds and isinstance(evidence.residual, Unmeasurable)
