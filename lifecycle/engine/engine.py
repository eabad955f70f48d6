"""One engine: where it is, what is known of it, and the verbs that move it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ..core.advice import Recovery
from ..core.capabilities import Capabilities
from ..core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ..core.deadline import Deadline
from ..core.errors import CommandRefused, GuardRefused, LifecycleError
from ..core.facts import Grade, PauseMode, Tag
from ..core.observer import Observer, Observers
from ..core.policy import Policy
from ..core.ports import EngineAdapter, ResidualProbe, Router, StateStore, TenantLedger
from ..core.readings import Reading
from ..core.record import Desired, Record
from ..core.sources import FromDisk, Pushed, Source, checked
from ..core.states import UNCLAIMED, State
from ..core.transition import Transition
from ..core.verdicts import Unmeasurable, Verdict
from ..rules import knowledge, quarantine
from ..rules.advice import TRAINER, after_recovery
from ..rules.planner import Goal
from ..rules.table import row
from . import attach, canary, desired, ownership
from .attempt import Attempt
from .collective import Collective
from .ensure import ensure
from .fates import InFlight
from .gather import residual
from .given import store_given
from .journaling import EngineJournal
from .override import override
from .ownership import LeaseChoice, chosen_lease
from .preconditions import hook_mode_of
from .preempt import preempt
from .push import Pushes
from .reconcile import reconcile
from .session import Session
from .verify import VERIFY_S, verify
from .view import Advising, EngineView
from .windows import of_trainer

#: Seconds that finding out where an engine is may take unless the caller says.
RECOVER_S = 30.0


class Engine(EngineView):
    """One inference engine. Every verb returns the `Transition` it made, or raises (see `errors`).

    A verb's `deadline_s` bounds everything from the call to its return; None takes the policy's. `store` keeps what is
    known across processes, `tenants` what it may hold of its devices. States and facts can be read here and not set:
    the only way into a state without evidence is `override_state`.
    """

    def __init__(
        self,
        adapter: EngineAdapter,
        *,
        name: str | None = None,
        group: str = "default",
        offload: bool = True,
        policy: Policy | None = None,
        probe: ResidualProbe | None = None,
        observers: Observers | Iterable[Observer] = (),
        has_router: bool = False,
        store: StateStore | None = None,
        lease: LeaseChoice = "user",
        tenants: TenantLedger | None = None,
        memory: StateStore | None = None,
        address: str | None = None,
    ) -> None:
        self.offloads = offload
        self._address = address or adapter.url
        self._session = Session(
            adapter,
            name=name or adapter.url,
            group=group,
            policy=policy or Policy(),
            observers=observers if isinstance(observers, Observers) else Observers(observers),
            probe=probe,
            adapt_probe=self.adapt_probe,
            has_router=has_router,
            store=store_given(store, memory),
            lease=chosen_lease(lease),
            tenants=tenants,
        )
        self._pushes = Pushes()

    def capabilities_changed(self, capabilities: Capabilities) -> None:
        """What it can do is something else now (regions of an engine in this process have grown)."""
        self._session.capabilities_changed(capabilities)

    def adapt_probe(self, probe: ResidualProbe) -> ResidualProbe:
        """What measures its memory, given what measures its processes. For subclasses."""
        return probe

    # attaching

    async def connect(self, *, deadline_s: float = 30.0) -> Engine:
        """The engine was observed: its capabilities are known and its state is what the facts make.

        Raises ConfigurationError where it cannot be driven, or cannot give the evidence that the policy asks for.
        """
        ownership.prepare(self._session)
        with self.advising():
            await attach.connect(self._session, offloads=self.offloads, deadline_s=deadline_s)
        return self

    async def aclose(self) -> None:
        """Connections and the lease are let go; the engine is left as it is."""
        try:
            self._session.journal.flush()
            self._session.owner.free(self._session.facts.boot)
        finally:
            await self.adapter.aclose()

    # the verbs

    async def pause(self, mode: PauseMode | None = None, *, deadline_s: float | None = None) -> Transition:
        """The engine admits no requests; those in flight are handled as `mode` says (default: the policy's)."""
        return await self.execute(Pause(mode or self.policy.pause_mode), deadline_s=deadline_s)

    async def drain(self, *, deadline_s: float | None = None) -> Transition:
        """No request can run a step or hold device memory. When the deadline passes it settles to paused."""
        return await self.execute(Drain(), deadline_s=deadline_s)

    async def release(
        self, tags: Iterable[Tag] | None = None, *, weights: Source | None = None, deadline_s: float | None = None
    ) -> Transition:
        """The memory of `tags` (None: all) is back, measured; `weights` says where their contents will come from.

        One that is believed released is verified first, and refused as what it is found to be.
        """
        if self.state is State.RELEASED and self._session.holder() is None:
            deadline = Deadline(self.policy.deadline_s(Release.name, deadline_s))
            with self._session.claimed(Release.name):
                await verify(self._session, deadline, held=True)
            deadline_s = deadline.look_s()
        named = None if tags is None else frozenset(tags)
        return await self.execute(
            Release(named, checked(weights) or self.desired.rollback_source), deadline_s=deadline_s
        )

    async def restore_weights(self, *, deadline_s: float | None = None) -> Transition:
        """Every tag of the weights stage is mapped again; its contents may be garbage until updated."""
        return await self.execute(RestoreWeights(), deadline_s=deadline_s)

    async def update_weights(
        self, source: FromDisk | Pushed, *, force: bool = False, deadline_s: float | None = None
    ) -> Transition:
        """The weights are those of `source`, as far as the engine can show it."""
        collective = Collective(source, [self]) if isinstance(source, Pushed) else None
        return await self.execute(UpdateWeights(source, force), deadline_s=deadline_s, collective=collective)

    async def restore_kv(self, *, deadline_s: float | None = None) -> Transition:
        """Every tag is mapped again and the prefix cache is empty; refused while the weights are not valid."""
        return await self.execute(RestoreKV(), deadline_s=deadline_s)

    async def resume(self, *, preempt: bool = False, deadline_s: float | None = None) -> Transition:
        """The engine admits requests again and has generated a real token.

        `preempt`: a drain that another task has under way is given up first; its caller gets Preempted. It has sent
        nothing. While any other command is under way this raises EngineBusy all the same.
        """
        if preempt:
            deadline_s = await self.preempt_drain(deadline_s)
        return await self.execute(Resume(), deadline_s=deadline_s)

    async def ensure(
        self, state: State | str, *, weights: Source | None = None, mode: PauseMode | None = None, deadline_s: float
    ) -> list[Transition]:
        """The engine is in this state, on evidence, by then; the transitions that brought it there, if any had to.

        One that is there, as seen less than `Policy.evidence_max_age_s` ago or now, is sent nothing. `weights`, which
        no paused or drained one takes, are to be served or come back with. InvalidTransition where it is not brought.
        """
        with self.advising():
            return await ensure(self, self._session, state, weights, mode or self.policy.pause_mode, deadline_s)

    async def push(self, how: str, /, **args: Any) -> Any:
        """One call of a push (`tensor`, `distributed`: what the engine has), only inside an update by the trainer.

        Returns the engine's answer; raises Rejected, Unreachable or DeadlineExceeded, and the collective fails.
        """
        with self.advising(UpdateWeights(TRAINER)):
            return await self._pushes.make(self._session, how, args)

    async def execute(
        self,
        command: Command,
        *,
        deadline_s: float | None = None,
        for_move: bool = False,
        collective: Collective | None = None,
    ) -> Transition:
        """The command was carried out in six steps, and its destination entered on evidence.

        `for_move`: given by the move that has the engine. `collective`: the push that an update takes part in.
        """
        session, begun = self._session, time.monotonic()
        name, policy = session.name, session.policy
        deadline = Deadline(policy.deadline_s(command.name, deadline_s), reserve_s=policy.settle_s)
        try:
            with ownership.of_command(session, command.name, deadline, for_move=for_move):
                await ownership.caught_up(session, deadline)
                operation = row(command.name, session.state)
                if operation is None:
                    raise session.not_allowed(command.name)
                session.notify("command_started", name, command, session.state)
                attempt = Attempt(session, command, operation, deadline, pushes=self._pushes, collective=collective)
                transition = await attempt.run()
        except CommandRefused as error:
            session.notify("refused", name, command, self.advised(error, command))
            raise
        except BaseException as error:
            if isinstance(error, LifecycleError):
                self.advised(error, command)
            session.notify("command_ended", name, command, error, time.monotonic() - begun)
            raise
        session.notify("command_ended", name, command, transition, time.monotonic() - begun)
        return transition

    @property
    def in_ledger(self) -> bool:
        """Whether a ledger of tenants says what it may hold of its devices."""
        return self._session.tenancy.ledger is not None

    @property
    def journal(self) -> EngineJournal:
        """Where what is done to it is written down."""
        return self._session.journal

    # finding out where it is

    async def verify(self, *, deadline_s: float = VERIFY_S, for_move: bool = False, max_age_s: float = 0.0) -> State:
        """The state it is in, observed `max_age_s` ago at most: a claim that what was seen denies was given up.

        Of a released engine `memory_returned` is judged anew, by what is resident now. One that admits requests and is
        not worth serving is closed, unless another driver has it. While a command or a move has the engine it is not
        interfered with (`for_move`: asked by the move that has it).
        """
        session = self._session
        if (not self.connected and self.state is State.GONE) or time.monotonic() - session.confirmed_at_s < max_age_s:
            return self.state
        return (await verify(self._session, Deadline(deadline_s), for_move=for_move)).state

    async def recover(self, *, deadline_s: float = RECOVER_S) -> Recovery:
        """The state that barrier and observation make, why it is that one, and what leads on from there.

        It is failed where a fact stays unknown. An engine that admits requests without being worth serving is closed
        first. One in quarantine that is found in a state of the ring takes part in its fleet's moves again.
        """
        session, deadline = self._session, Deadline(deadline_s)
        if not self.connected and self.state is State.GONE:  # before it could be asked: perhaps it was started again
            await self.connect(deadline_s=deadline.left_s)
            if not self.connected:
                return Recovery(self.state, self.reason, self.advice)
        with self.advising(), ownership.of_command(session, "recover", deadline):
            await ownership.caught_up(session, deadline)
            if session.state not in UNCLAIMED:
                session.go("contradicted", reason="recover() was asked for")
            found = await reconcile(session, deadline)
            if found.state not in UNCLAIMED and session.tenancy.ledger is not None:
                left_s = deadline.look_s()
                await session.tenancy.measured(session.record, await residual(session, deadline_s=left_s))
            if found.state not in UNCLAIMED and self.quarantined is not None:
                session.commit(quarantine.taken_out(session.record), save="try")
            advice = after_recovery(self.where, found.candidates)
            return Recovery(found.state, session.reason, advice)

    def override_state(self, state: State, *, version: str | None = None, by: str, reason: str) -> Transition:
        """The engine is taken to be in `state` because a person says so; every fact of it is graded asserted.

        Only from failed; in the state where it is, `version` alone, where its weights are not known. Refused while what
        was sent before may still run. `version` is that of the weights that it holds, as a caller knows who put them
        there.
        """
        with self.advising(), ownership.of_assertion(self._session):
            return override(self._session, state, version=version, by=by, reason=reason)

    def declare(self, state: State, *, by: str, reason: str) -> Transition:
        """Deprecated name of `override_state`."""
        warnings.warn("declare() is now override_state()", DeprecationWarning, stacklevel=2)
        return self.override_state(state, by=by, reason=reason)

    def hold_to(self, policy: Policy) -> None:
        """It is held to this policy from here on; EngineBusy while a command or a move has it."""
        self._session.hold_to(policy)

    def forget_canary(self, version: str) -> None:
        """The next answer with this version of the weights is the one to remember."""
        self._session.commit(canary.forgotten(self._session.record, version))

    # what a fleet's move uses; none of it leads to a state

    def claimed_for(self, move: str) -> AbstractContextManager[None]:
        """The engine belongs to this move; EngineBusy where a command, another move or another driver has it."""
        return Engine.claimed_together([self], move)

    @staticmethod
    @contextmanager
    def claimed_together(engines: Sequence[Engine], move: str) -> Iterator[None]:
        """As `claimed_for`, of all of these engines: where one cannot be claimed, none is."""
        asked = {"offload": Goal(State.RELEASED), "onload": Goal(State.SERVING)}.get(move)
        sessions = [engine._session for engine in engines]
        with Advising(engines, asked), ownership.of_move(sessions, move):
            for session in sessions:
                session.in_move = move
            try:
                yield
            finally:
                for session in sessions:
                    session.in_move = None
                    session.let_go()

    @staticmethod
    @contextmanager
    def leased_together(engines: Sequence[Engine], what: str) -> Iterator[None]:
        """The engines are this driver's for the moves of a window; EngineHeld where another driver has one."""
        sessions = [engine._session for engine in engines]
        with Advising(engines, Goal(State.RELEASED)), ownership.of_move(sessions, what), of_trainer(sessions):
            yield

    @staticmethod
    def say_answered(engines: Sequence[Engine]) -> None:
        """No lease of these engines says of a call that it may run which was answered since.

        Otherwise the command that comes would say so of each engine by itself.
        """
        ownership.say_answered([engine._session for engine in engines])

    def forget_observed(self) -> None:
        """What was observed of it in its move serves no command that is still to come."""
        self._session.forget_observed()

    @property
    def is_behind(self) -> bool:
        """Whether `caught_up` has anything to find out."""
        return ownership.is_behind(self._session)

    async def caught_up(self, deadline_s: float | None = None) -> None:
        """What is known of it is of now, where another driver used it since this one looked. For its move."""
        limit_s = self.policy.settle_s if deadline_s is None else min(self.policy.settle_s, deadline_s)
        await ownership.caught_up(self._session, Deadline(limit_s))

    async def preempt_drain(self, deadline_s: float | None = None) -> float:
        """A drain under way was given up for a resume; returns what is left of the resume's deadline."""
        deadline = Deadline(self.policy.deadline_s(Resume.name, deadline_s))
        with self.advising(Resume()):
            await preempt(self._session, deadline)
        return deadline.look_s()

    def set_desired(self, source: Source) -> None:
        """From here on it should serve what `source` brings. GuardRefused where that cannot be kept."""
        for refused in self.set_desired_of([(self, source)]).values():
            raise refused

    @staticmethod
    def set_desired_of(wanted: Sequence[tuple[Engine, Source]]) -> dict[str, GuardRefused]:
        """Each of these engines is to serve what its source brings, or none is: why, by name, it could not be kept."""
        refused = desired.set_all([(engine._session, source) for engine, source in wanted])
        return {engine.name: engine.advised(refused[engine.name]) for engine, _ in wanted if engine.name in refused}

    @staticmethod
    def rollback_desired_of(before: Sequence[tuple[Engine, Desired]]) -> None:
        """Each of these engines should serve what it did before, or what brings it back from where it is."""
        desired.roll_back_all([(engine._session, then) for engine, then in before])

    @staticmethod
    def take_desired_back_of(before: Sequence[tuple[Engine, Record]]) -> None:
        """Each of these engines should serve what it did before, unless memory or weights of one were changed since."""
        desired.take_back_all([(engine._session, then) for engine, then in before])

    def router_confirmed(self, sends: bool | None, verdict: Verdict, grade: Grade) -> None:
        """The router in front of it sends to it or does not (None: not certain), as `verdict` says."""
        self._session.commit(knowledge.routed(self._session.record, sends, verdict, grade))

    def counted_by(self, router: Router | None) -> None:
        """The router in front of it, while it is closed for it, counts its requests where it does not itself."""
        self._session.requests.router = None if router is None else InFlight(router, self.name)

    def set_quarantined(self, reason: str) -> None:
        """It stays out of its fleet's moves from here on, until it is recovered."""
        self._session.commit(quarantine.put_in(self._session.record, reason, time.time()), save="try")

    async def read_residual(self, *, deadline_s: float = 10.0) -> Reading | Unmeasurable:
        """What its processes hold now, in bytes by device."""
        return await residual(self._session, deadline_s=deadline_s)

    async def read_hook_mode(self, *, deadline_s: float = 10.0) -> Verdict:
        """Whether torch_memory_saver's hook mode is safe where it runs."""
        return await hook_mode_of(self._session, deadline_s=deadline_s)
