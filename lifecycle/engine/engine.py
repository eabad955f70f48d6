"""One engine: where it is, what is known of it, and the verbs that move it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..core.capabilities import Capabilities
from ..core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ..core.deadline import Deadline
from ..core.errors import ConfigurationError, EngineBusy, InvalidTransition
from ..core.facts import Facts, Grade, PauseMode, Tag
from ..core.observer import Observer, Observers
from ..core.policy import Policy
from ..core.ports import EngineAdapter, ResidualProbe
from ..core.readings import Reading
from ..core.sources import FromDisk, Kept, Pushed, Source, version_of
from ..core.states import UNCLAIMED, State
from ..core.transition import Transition
from ..core.verdicts import Condition, Proved, Verdict
from ..nodes.probes import probe_for
from ..rules.evidence import Context, Evidence
from ..rules.guards import weights_valid
from ..rules.knowledge import contradiction
from ..rules.machine import fire
from ..rules.table import allowed, row
from ..rules.trend import Slopes
from ..store.sqlite import Memory
from .attach import attach, check_declaration, check_evidence, claims_of
from .attempt import Attempt
from .call import Doubt
from .canary import Canary
from .collective import Collective
from .gather import EVERYTHING
from .push import Pushes
from .reconcile import look


class Engine:
    """One inference engine. Every verb returns the `Transition` it made, or raises (see `errors`).

    A verb's `deadline_s` bounds everything from the call to its return; None takes the policy's.
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
        memory: Memory | None = None,
    ) -> None:
        self.adapter = adapter
        self.name: str = name or adapter.url
        self.group = group
        self.offloads = offload
        self.policy = policy or Policy()
        self.observers = observers if isinstance(observers, Observers) else Observers(observers)
        self.has_router = has_router
        self.state = State.DETACHED
        self.facts = Facts()
        self.conditions: dict[str, Condition] = {}
        #: True while an effect may still be running on the engine: nothing is sent before a barrier has returned.
        self.unsettled = False
        #: The last call of which nobody knows whether it took effect, until the next command.
        self.doubt: Doubt | None = None
        #: Whether a call of the present command that moves memory was answered; perhaps by a process in its place.
        self.touched = False
        self.wanted: str | None = None
        #: Where the weights of the present window come from, as declared; `last_good` is what was loaded last.
        self.source: Source | None = None
        self.last_good: FromDisk | None = None
        self.attached_boot: str | None = None
        self._capabilities: Capabilities | None = None
        self._probe = probe
        self._memory = memory
        self.full: Reading | None = None
        #: By owner, of the weights before a release that keeps them, until they were seen to have been kept.
        self.kept_checksums: Mapping[str, str] = {}
        self.slopes = Slopes()
        self.canary = Canary(self.policy.canary_tokens)
        self.learned: dict[frozenset[Tag], int] = {}
        self._busy: str | None = None
        self.pushes = Pushes()
        #: The fleet's move that the engine takes part in, if any.
        self.in_move: str | None = None

    # what it is

    @property
    def capabilities(self) -> Capabilities:
        """What the engine can do; ConfigurationError before connect()."""
        if self._capabilities is None:
            raise ConfigurationError(f"{self.name}: not connected yet; await connect() first")
        return self._capabilities

    @property
    def probe(self) -> ResidualProbe:
        """What measures the memory of its processes."""
        if self._probe is None:
            self._probe = probe_for(self.capabilities, self.policy)
        return self._probe

    @property
    def busy(self) -> str | None:
        """The command under way, if any."""
        return self._busy

    @property
    def fallback(self) -> Source | None:
        """What brings its weights back without the trainer: the last source that was loaded and shown to be."""
        return self.last_good

    @property
    def memory_is_free(self) -> bool:
        """Whether its devices may be handed to the next tenant: memory proved returned, or process gone."""
        condition = self.conditions.get("memory_returned")
        returned = condition is not None and isinstance(condition.verdict, Proved)
        return self.state is State.GONE or (self.state is State.RELEASED and returned)

    def __repr__(self) -> str:
        parts = [f"<Engine {self.name} {self.state}"]
        if self._busy:
            parts.append(f"busy={self._busy}")
        versions = {str(contents) for contents in self.facts.contents.values() if contents is not None}
        if versions:
            parts.append(f"weights={','.join(sorted(versions))}")
        condition = self.conditions.get("memory_returned")
        if condition is not None and "resident_bytes" in condition.verdict.figures:
            parts.append(f"residual={condition.verdict.figures['resident_bytes'] / (1 << 30):.2f}GiB")
        return " ".join(parts) + ">"

    # attaching

    async def connect(self, *, deadline_s: float = 30.0) -> Engine:
        """The engine was observed: its capabilities are known and its state is what the facts make.

        Raises ConfigurationError where it cannot be driven, or cannot give the evidence that the policy asks for.
        """
        deadline = Deadline(deadline_s)
        self._capabilities = await self.adapter.connect(deadline_s=deadline.left_s)
        await attach(self, self._memory, deadline)
        if self.offloads:
            await check_evidence(self, deadline)
        return self

    async def aclose(self) -> None:
        """Connections are let go; the engine is left as it is."""
        await self.adapter.aclose()

    # the verbs

    async def pause(self, mode: PauseMode | None = None, *, deadline_s: float | None = None) -> Transition:
        """The engine admits no requests; those in flight are handled as `mode` says (default: the policy's)."""
        return await self.execute(Pause(mode or self.policy.pause_mode), deadline_s=deadline_s)

    async def drain(self, *, deadline_s: float | None = None) -> Transition:
        """No request can run a step or hold device memory. When the deadline passes it settles to paused."""
        return await self.execute(Drain(), deadline_s=deadline_s)

    async def release(
        self,
        tags: Iterable[Tag] | None = None,
        *,
        weights: Source | None = None,
        deadline_s: float | None = None,
    ) -> Transition:
        """The memory of `tags` (None: all) is back, measured; `weights` says where their contents will come from."""
        named = None if tags is None else frozenset(tags)
        return await self.execute(Release(named, weights or self.fallback), deadline_s=deadline_s)

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

    async def resume(self, *, deadline_s: float | None = None) -> Transition:
        """The engine admits requests again and has generated a real token."""
        return await self.execute(Resume(), deadline_s=deadline_s)

    async def push(self, how: str, /, **args: Any) -> Any:
        """One call of a push (`tensor`, `distributed`: what the engine has), only inside an update by the trainer.

        Returns the engine's answer; raises Rejected, Unreachable or DeadlineExceeded, and the collective fails.
        """
        return await self.pushes.make(self, how, args)

    async def execute(
        self,
        command: Command,
        *,
        deadline_s: float | None = None,
        for_move: bool = False,
        collective: Collective | None = None,
    ) -> Transition:
        """The command was carried out in six steps, and its destination entered on evidence.

        `for_move`: it comes from the move that the engine takes part in; from anybody else it is refused meanwhile.
        `collective`: the push that an update by the trainer takes part in.
        """
        limit_s = self.policy.deadline_s(command.name, deadline_s)
        operation = row(command.name, self.state)
        holder = self._busy or (None if for_move else self.in_move)
        if holder is not None:
            raise EngineBusy(holder, engine=self.name, command=command.name, state=self.state)
        if operation is None:
            hint = "; recover() looks where it is" if self.state in UNCLAIMED else ""
            here = allowed(self.state)
            raise InvalidTransition(engine=self.name, command=command.name, state=self.state, allowed=here, hint=hint)
        self._busy = command.name
        try:
            deadline = Deadline(limit_s, reserve_s=self.policy.settle_s)
            return await Attempt(self, command, operation, deadline, collective).run()
        finally:
            self._busy = None

    # looking

    async def verify(self, *, deadline_s: float = 10.0) -> State:
        """The state it is in, observed just now: a claim that the observation denies was given up.

        Only looks: while a command or a move has the engine it is not interfered with.
        """
        deadline, facts = Deadline(deadline_s), self.facts
        seen = await self.adapter.observe(EVERYTHING, deadline_s=deadline.left_s)
        if self._busy is not None or self.in_move is not None or self.facts is not facts:
            return self.state
        denied = None if self.state in UNCLAIMED else contradiction(facts, seen, self.state)
        returned = self.state is State.GONE and seen.boot is not None
        if denied is None and not returned:
            return self.state
        self._claim_for("verify")
        try:
            trigger = "contradicted" if denied else f"observed_{State.FAILED}"
            self.move(trigger, reason=denied or "a process answers in its place")
            return await look(self, deadline)
        finally:
            self._busy = None

    async def recover(self, *, deadline_s: float = 30.0) -> State:
        """The state that barrier and observation make; failed where a fact stays unknown.

        An engine that admits requests without being worth serving is closed first.
        """
        self._claim_for("recover")
        try:
            if self.state not in UNCLAIMED:
                self.move("contradicted", reason="recover() was asked for")
            return await look(self, Deadline(deadline_s))
        finally:
            self._busy = None

    def declare(self, state: State, *, by: str, reason: str) -> Transition:
        """The engine is taken to be in `state` because a person says so; every fact of it is graded declared.

        Refused while what was sent before may still run: nobody can say what is so after it.
        """
        check_declaration(self, state, by, reason)
        self.conditions.pop("memory_returned", None)  # proved of what it was before: nobody has measured this
        self.facts, self.doubt = self.facts.learn(claims_of(state, self), Grade.DECLARED), None
        return self.move(f"declared_{state}", reason=f"declared by {by}: {reason}")

    def _claim_for(self, what: str) -> None:
        holder = self._busy or self.in_move
        if holder is not None:
            raise EngineBusy(holder, engine=self.name, command=what, state=self.state)
        self._busy = what

    # what the steps use

    def context(
        self,
        command: Command,
        *,
        targets: frozenset[Tag] = frozenset(),
        evidence: Evidence | None = None,
        baseline: Evidence | None = None,
        facts: Facts | None = None,
    ) -> Context:
        """What a guard or proof of this command is given now."""
        return Context(
            command=command,
            facts=facts or self.facts,
            capabilities=self.capabilities,
            policy=self.policy,
            targets=targets,
            evidence=evidence or Evidence(),
            baseline=baseline or Evidence(),
            wanted=self.wanted,
            attached_boot=self.attached_boot,
            has_router=self.has_router,
            source=self.source,
            learned=self.learned,
            full=self.full,
            kept_checksums=self.kept_checksums,
        )

    def weights_refusal(self) -> str | None:
        """Why its weights are not worth serving; None where they are."""
        return weights_valid(self.context(Resume()))

    def move(
        self,
        trigger: str,
        *,
        command: str = "",
        verdicts: Mapping[str, Verdict] | None = None,
        duration_s: float = 0.0,
        reason: str = "",
    ) -> Transition:
        """The engine went along one edge without guards, and the observers were told."""
        source = self.state
        fire(self, trigger)
        return self.note(trigger, source, command=command, verdicts=verdicts, duration_s=duration_s, reason=reason)

    def note(
        self,
        trigger: str,
        source: State,
        *,
        command: str = "",
        verdicts: Mapping[str, Verdict] | None = None,
        duration_s: float = 0.0,
        reason: str = "",
        keep: bool = True,
    ) -> Transition:
        """The observers were told of the edge from `source` to the present state."""
        record = Transition(
            engine=self.name,
            group=self.group,
            trigger=trigger,
            source=source,
            dest=self.state,
            command=command,
            verdicts=verdicts or {},
            duration_s=duration_s,
            reason=reason,
            at_s=time.monotonic(),
        )
        try:
            if keep:
                self.keep()
        except Exception:  # the edge was gone along all the same; what is remembered of it is older
            logging.getLogger("lifecycle").exception("%s: what is known of it could not be kept", self.name)
        self.observers.transition(record)
        return record

    def keep(self) -> None:
        """What is known is kept for other processes, where there is a memory; raises what that raised."""
        if self._memory is not None:
            self._memory.save(self)

    def expect(self, source: Source) -> None:
        """From here on the engine should serve what `source` brings."""
        self.source = source
        version = version_of(source)
        if version is not None:
            self.wanted = version
        elif isinstance(source, Kept):
            held = [self.facts.contents.get(tag) for tag in self.capabilities.stage("weights")]
            self.wanted = next((contents.version for contents in held if contents is not None), None)

    def remember(self, source: Source) -> None:
        """`source` was loaded and shown to be. A push cannot be made again, so nothing can be gone back to after it."""
        self.last_good = source if isinstance(source, FromDisk) else None

    def learn_expectation(self, tags: frozenset[Tag], verdict: Verdict | None) -> None:
        """What these tags gave back, where no figure was known, is what they are expected to give next time."""
        if isinstance(verdict, Proved) and verdict.figures.get("expected_bytes") is None and tags:
            returned = int(verdict.figures["returned_bytes"]) * int(verdict.figures["devices"])
            self.learned[tags] = returned // self.capabilities.ranks
