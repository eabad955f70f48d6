"""One command on one engine, in six steps: claim, ask, fire, send, prove, fire; and settle where it failed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from ..core.calls import Call, Reply
from ..core.commands import Command, Release, RestoreKV, UpdateWeights
from ..core.deadline import Deadline
from ..core.errors import DeadlineExceeded, GuardRefused, NotProved, OperationFailed, Rejected, Unreachable
from ..core.facts import Fact, Grade, Tag
from ..core.readings import Reading
from ..core.states import State
from ..core.transition import Transition
from ..core.verdicts import Condition, Pending, Proved, Refuted, Unmeasurable, Verdict, expired, falling_short, holds
from ..rules.checksums import by_owner
from ..rules.evidence import Context, Need, targets
from ..rules.knowledge import contradiction, replaced
from ..rules.machine import Refusals, fire
from ..rules.proofs import Proof, learned
from ..rules.table import Operation
from .call import Doubt, send
from .collective import Collective, CollectiveFailed
from .gather import gather, residual
from .reconcile import settle

if TYPE_CHECKING:
    from .engine import Engine


class Attempt:
    """A claimed command: the engine is marked busy, and stays so until `run` has returned or raised."""

    def __init__(
        self, engine: Engine, command: Command, row: Operation, deadline: Deadline, collective: Collective | None = None
    ) -> None:
        self.engine = engine
        self.command = command
        self.row = row
        self.deadline = deadline
        self.collective = collective
        self.source = engine.state
        #: What the engine was to serve before this command.
        self._expected = engine.source, engine.wanted
        #: The tags that each call of a release gave back, and what was resident after it.
        self.weighed: list[tuple[frozenset[Tag], Reading | Unmeasurable]] = []

    async def run(self) -> Transition:
        """The engine is in the row's destination, on evidence; otherwise this raises and says where it is."""
        context = await self._ask()
        self._fire(context)
        try:
            await self._send_all(context)
            verdicts = await self._prove(context)
        except OperationFailed as error:
            self._fail_collective(error)
            self._expect_as_before(context)
            raise await settle(self.engine, error, self.deadline, self.command) from error.__cause__
        except BaseException as error:
            self._fail_collective(error)
            self._leave_unproved(context)
            self._expect_as_before(context)
            self.engine.move("failed", command=self.command.name, reason=f"cancelled: {type(error).__name__}")
            raise
        return self._succeed(context, verdicts)

    # 1. ask

    async def _ask(self) -> Context:
        needs = frozenset().union(*(guard.needs for guard in self.row.guards))
        needs |= {Need.RESIDUAL, Need.CHECKSUM} & frozenset().union(*(proof.needs for proof in self.row.proofs))
        acted_on = targets(self.command, self.engine.facts, self.engine.capabilities)
        if self._keeps(acted_on):
            needs |= {Need.CHECKSUM}
        elif not self.engine.kept_checksums and not isinstance(self.command, UpdateWeights):
            needs -= {Need.CHECKSUM}
        if self.engine.facts.admission is not None:
            needs |= {Need.ADMISSION}
        if self.source is State.SERVING:
            canary = self.engine.canary
            await canary.meet(self.engine.adapter, self.engine.facts, deadline_s=self.deadline.work_s / 2)
        evidence = await gather(self.engine, needs, deadline_s=self.deadline.work_s, command=self.command)
        denied = contradiction(self.engine.facts, evidence.observation, self.source)
        if denied is not None:
            raise await self._contradicted(denied)
        return self.engine.context(self.command, targets=acted_on, evidence=evidence, baseline=evidence)

    def _keeps(self, acted_on: frozenset[Tag]) -> bool:
        """Whether this is a release of weights that the engine keeps by its own backup."""
        weights = acted_on & self.engine.capabilities.stage("weights")
        kept = [tag for tag in weights if self.engine.capabilities.spec(tag).on_release == "kept"]
        return isinstance(self.command, Release) and bool(kept)

    async def _contradicted(self, denied: str) -> OperationFailed:
        error = Unreachable(denied, engine=self.engine.name, command=self.command.name, state=self.source)
        self._fail_collective(error)
        return await settle(self.engine, error, self.deadline, self.command, trigger="contradicted")

    # 2. fire

    def _fire(self, context: Context) -> None:
        try:
            fire(self.engine, self.command.name, context)
        except Refusals as refused:
            error = GuardRefused(refused.reasons, engine=self.engine.name, command=self.command.name, state=self.source)
            self._fail_collective(error)
            raise error from None
        self.engine.doubt, self.engine.touched = None, False
        if isinstance(self.command, Release):
            self._note_release(self.command, context)
        if isinstance(self.command, UpdateWeights):
            self.engine.expect(self.command.source)
        try:
            self.engine.keep()
        except Exception as unkept:
            self.engine.state = self.source  # nothing was sent, and nobody saw the edge
            self.engine.source, self.engine.wanted = self._expected
            raise self._unkept(unkept) from unkept
        self.engine.note(self.command.name, self.source, command=self.command.name, keep=False)

    def _unkept(self, unkept: Exception) -> GuardRefused:
        """What is about to be sent cannot be repeated, and would be forgotten if this process ended now."""
        reasons = {"memory": f"what is known could not be kept ({unkept}); mend that, or connect again"}
        error = GuardRefused(reasons, engine=self.engine.name, command=self.command.name, state=self.source)
        self._fail_collective(error)
        return error

    def _expect_as_before(self, context: Context) -> None:
        """Where no memory and no weights were touched, the engine should serve what it should have before."""
        now, before = self.engine.facts, context.facts
        if (now.boot, now.mapped, now.contents) == (before.boot, before.mapped, before.contents):
            self.engine.source, self.engine.wanted = self._expected

    def _note_release(self, command: Release, context: Context) -> None:
        if command.weights is not None:
            self.engine.expect(command.weights)
        if not context.facts.unmapped() and isinstance(context.baseline.residual, Reading):
            self.engine.full = context.baseline.residual
        if self._keeps(context.targets):
            self.engine.kept_checksums = by_owner(context.baseline.observation)

    # 3. send

    async def _send_all(self, context: Context) -> None:
        try:
            await self._send(context)
        except OperationFailed:
            self._leave_unproved(context)
            raise

    async def _send(self, context: Context) -> None:
        if context.targets:
            reason = "memory was released or restored since"  # before the first call: half of one moves memory too
            self.engine.conditions["memory_returned"] = Condition(Pending(reason=reason))
        calls = self.engine.adapter.plan(self.command, self.engine.facts)
        for call in calls:
            if call.name == "push":
                await self._push(call)
            else:
                await self._send_one(call, context)
            if isinstance(self.command, Release):
                self.weighed.append((frozenset(call.effect.get(Fact.MAPPED, {})), await self._weigh(call is calls[-1])))

    async def _weigh(self, last: bool) -> Reading | Unmeasurable:
        """What is resident between two releases, so that it is seen what each gave back."""
        if last:
            return Unmeasurable(reason="the proof reads it")
        return await residual(self.engine, deadline_s=self.deadline.work_s)

    async def _push(self, call: Call) -> None:
        if self.collective is None:
            raise self._error(Unreachable, "a push needs its collective; update through updating_weights()")
        try:
            with self.engine.pushes.let(self.deadline):
                async with asyncio.timeout(self.deadline.work_s):
                    await self.collective.arrive(self.engine.name)
        except BaseException as error:
            self.engine.facts = self.engine.facts.doubt(call.effect)
            self.engine.unsettled = True  # the trainer's last call may be under way
            self._fail_collective(error)
            if isinstance(error, CollectiveFailed | TimeoutError):
                await self.engine.pushes.ended()
                raise self._push_failed(error) from error
            if not self.engine.capabilities.cancellable:
                await self.engine.pushes.ended()
            raise
        self.engine.facts = self.engine.facts.learn(call.effect, Grade.ACKNOWLEDGED)

    def _push_failed(self, error: CollectiveFailed | TimeoutError) -> OperationFailed:
        if isinstance(error, CollectiveFailed):
            return self._error(Unreachable, str(error))
        return self._late(f"the push did not end in {self.deadline.total_s:.1f} s")

    async def _send_one(self, call: Call, context: Context) -> None:
        reply = await send(self.engine, call, deadline_s=self.deadline.work_s, context=context)
        problem = failure(reply, call, self.engine.name, self.command.name, self.source, self.deadline)
        if problem is not None:
            raise problem

    # 4. prove

    async def _prove(self, context: Context) -> dict[str, Verdict]:
        while True:
            verdicts, context = await self._look(context)
            accepted = {proof.name: self._holds(proof, verdicts) for proof in self.row.proofs}
            if all(accepted.values()):
                self._learn(verdicts, context)
                return verdicts
            waiting = any(isinstance(verdicts[name], Pending) for name, ok in accepted.items() if not ok)
            hopeless = any(not isinstance(verdicts[name], Pending) for name, ok in accepted.items() if not ok)
            if hopeless or not waiting or self.deadline.work_s <= 0:
                self._doubt(verdicts, accepted, context)
                raise self._unproved(verdicts, accepted, context)
            await asyncio.sleep(min(self.engine.policy.poll_s, self.deadline.work_s))

    async def _look(self, context: Context) -> tuple[dict[str, Verdict], Context]:
        needs = frozenset().union(*(proof.needs for proof in self.row.proofs))
        # The last look takes from what is kept back: one without time for an answer would call the engine silent.
        evidence = await gather(self.engine, needs, deadline_s=max(self.deadline.work_s, self.deadline.look_s(0.5)))
        context = replace(context, facts=self.engine.facts, evidence=evidence, weighed=tuple(self.weighed))
        other = replaced(self.engine.facts, evidence.observation)
        if other is not None:
            raise self._error(Unreachable, other)
        return {proof.name: proof(context) for proof in self.row.proofs}, context

    def _holds(self, proof: Proof, verdicts: dict[str, Verdict]) -> bool:
        return holds(verdicts[proof.name], self.engine.policy.least_grade(proof.name))

    def _learn(self, verdicts: dict[str, Verdict], context: Context) -> None:
        for proof in self.row.proofs:
            verdict = verdicts[proof.name]
            if isinstance(verdict, Proved):
                self.engine.facts = self.engine.facts.learn(learned(proof.name, verdict, context), verdict.grade)
            if proof.condition:
                self.engine.conditions[proof.name] = Condition(verdict)

    def _doubt(self, verdicts: dict[str, Verdict], accepted: dict[str, bool], context: Context) -> None:
        """What a proof that failed was about is unknown now; some leave their verdict as a condition."""
        for proof in self.row.proofs:
            if proof.condition:
                self.engine.conditions[proof.name] = Condition(expired(verdicts[proof.name], self.deadline.elapsed_s))
            if accepted[proof.name]:
                continue
            tags = dict.fromkeys(context.targets or self.engine.facts.mapped)
            contents = dict.fromkeys(self.engine.capabilities.stage("weights"))
            values = {Fact.MAPPED: tags, Fact.CONTENTS: contents}
            self.engine.facts = self.engine.facts.doubt({fact: values.get(fact) for fact in proof.facts})
        for verdict in verdicts.values():
            if isinstance(verdict, Refuted) and verdict.denied:
                weights = verdict.denied & self.engine.capabilities.stage("weights")
                denied = {Fact.MAPPED: dict.fromkeys(verdict.denied), Fact.CONTENTS: dict.fromkeys(weights)}
                self.engine.facts = self.engine.facts.doubt(denied)

    def _leave_unproved(self, context: Context) -> None:
        """The proofs were not asked: what an answer alone says to be loaded or mapped is unknown until it is shown."""
        engine, proved = self.engine, {fact for proof in self.row.proofs for fact in proof.facts}
        if Fact.CONTENTS in proved and engine.facts.contents != context.facts.contents:
            contents = dict.fromkeys(engine.capabilities.stage("weights"))
            engine.facts = engine.facts.doubt({Fact.CONTENTS: contents, Fact.CACHE_FRESH: None})
        said = [tag for tag in context.targets if engine.facts.mapped[tag] and not context.facts.mapped[tag]]
        moves_memory = engine.doubt is not None and Fact.MAPPED in engine.doubt.effect
        if Fact.MAPPED in proved and said and not moves_memory:
            effect = {Fact.MAPPED: dict.fromkeys(said, True)}
            engine.doubt = Doubt(context, context.facts, effect)
            engine.facts = engine.facts.doubt(effect)

    def _unproved(self, verdicts: dict[str, Verdict], accepted: dict[str, bool], context: Context) -> OperationFailed:
        policy, elapsed_s = self.engine.policy, self.deadline.elapsed_s
        failed = {
            name: falling_short(verdict, policy.least_grade(name), elapsed_s)
            for name, verdict in verdicts.items()
            if not accepted[name]
        }
        return NotProved(failed, engine=self.engine.name, command=self.command.name, state=self.source)

    # 5. fire

    def _succeed(self, context: Context, verdicts: dict[str, Verdict]) -> Transition:
        engine = self.engine
        engine.touched = False
        if isinstance(self.command, UpdateWeights):
            engine.remember(self.command.source)
        if isinstance(self.command, UpdateWeights | RestoreKV):
            engine.kept_checksums = {}
        if self.row.dest is State.RELEASED:
            returned = verdicts.get("memory_returned")
            engine.learn_expectation(context.targets, returned)
            engine.conditions.update(engine.slopes.after_release(engine.name, context.targets, returned, engine.policy))
        return engine.move(
            "succeeded", command=self.command.name, verdicts=verdicts, duration_s=self.deadline.elapsed_s
        )

    def _fail_collective(self, error: BaseException) -> None:
        if self.collective is not None:
            self.collective.fail(error, who=self.engine.name)

    def _error(self, kind: type[Unreachable], why: str) -> Unreachable:
        return kind(why, engine=self.engine.name, command=self.command.name, state=self.source)

    def _late(self, why: str) -> DeadlineExceeded:
        return DeadlineExceeded(
            why,
            deadline_s=self.deadline.total_s,
            engine=self.engine.name,
            command=self.command.name,
            state=self.source,
        )


def failure(
    reply: Reply, call: Call, engine: str, command: str, state: State, deadline: Deadline
) -> OperationFailed | None:
    """The error that a reply stands for; None where the call was acknowledged."""
    if reply.outcome == "done":
        return None
    if reply.outcome == "rejected":
        why = f"{call} was answered with {reply.status or 'an error'}: {reply.detail or 'no reason given'}"
        return Rejected(why, status=reply.status, detail=reply.detail, engine=engine, command=command, state=state)
    if reply.late:
        why = f"{call} was not answered in time; whether it took effect is not known"
        return DeadlineExceeded(why, deadline_s=deadline.total_s, engine=engine, command=command, state=state)
    return Unreachable(f"{call} got no answer: {reply.detail}", engine=engine, command=command, state=state)
