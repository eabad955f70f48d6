"""What can be read of an engine. Nothing here changes it, or asks it anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ..core.advice import Advice
from ..core.capabilities import Capabilities
from ..core.commands import Command
from ..core.deadline import Deadline
from ..core.errors import DeadlineExceeded, EngineBusy, InvalidTransition, LifecycleError
from ..core.facts import Facts
from ..core.observer import Observers
from ..core.policy import Policy
from ..core.ports import ResidualProbe
from ..core.record import Desired, Record
from ..core.sources import Source
from ..core.states import State
from ..core.units import gib
from ..core.verdicts import Condition, Verdict
from ..rules.advice import Asked, Where, advice, not_connected, towards_serving
from ..rules.desired import set_desired
from ..rules.ensured import REACHED_FROM, not_there, other_desired
from ..rules.evidence import Context
from ..rules.planner import PlannerView
from ..rules.quarantine import quarantine_of
from ..rules.weights import invalid_weights
from .session import Session
from .windows import used_by_another

E = TypeVar("E", bound=LifecycleError)


class Advising:
    """Inside, an error about one of these engines is told what leads on."""

    __slots__ = ("_asked", "_engines")

    def __init__(self, engines: Sequence[EngineView], asked: Asked | None) -> None:
        self._engines, self._asked = engines, asked

    def __enter__(self) -> None:
        """Nothing is told before there is an error."""

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if not isinstance(error, LifecycleError) or error.advice is not None:
            return
        about = next((engine for engine in self._engines if engine.name == error.engine), None)
        if about is not None:
            about.advised(error, self._asked)


class EngineView:
    """One engine as it can be read: what it is, where it is, and what is known of it."""

    _session: Session
    _address: str

    @property
    def adapter(self) -> Any:
        """What drives it."""
        return self._session.adapter

    @property
    def name(self) -> str:
        """Its name in its fleet: the adapter's URL unless another was given."""
        return self._session.name

    @property
    def address(self) -> str:
        """What it is called on the command line: its URL, with the options that were given and are no secret."""
        return self._address

    @property
    def group(self) -> str:
        """The group it belongs to."""
        return self._session.group

    @property
    def policy(self) -> Policy:
        """What it is held to."""
        return self._session.policy

    @property
    def observers(self) -> Observers:
        """Who hears of its commands, calls and edges."""
        return self._session.observers

    @property
    def has_router(self) -> bool:
        """Whether requests reach it through a router that can be closed."""
        return self._session.has_router

    @property
    def record(self) -> Record:
        """All that is known of it, as one frozen value."""
        return self._session.record

    @property
    def state(self) -> State:
        """Where it is."""
        return self._session.state

    @property
    def facts(self) -> Facts:
        """What is known of it, fact by fact."""
        return self._session.facts

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """Verdicts that hang on it beside its state, by name."""
        return self._session.record.conditions

    @property
    def desired(self) -> Desired:
        """What it should serve: source, version, and what it can be rolled back to."""
        return self._session.record.desired

    @property
    def capabilities(self) -> Capabilities:
        """What it can do; ConfigurationError before connect()."""
        return self._session.capabilities

    @property
    def connected(self) -> bool:
        """Whether connect() has read what it can do."""
        return self._session.connected

    @property
    def probe(self) -> ResidualProbe:
        """What measures the memory of its processes."""
        return self._session.probe

    @property
    def busy(self) -> str | None:
        """The command under way, if any."""
        return self._session.busy

    @property
    def in_move(self) -> str | None:
        """The fleet's move that it takes part in, if any."""
        return self._session.in_move

    @property
    def used_by_another(self) -> str | None:
        """What has it though no command does: the window of another task; None where it is in none."""
        return used_by_another(self._session.window)

    @property
    def is_free(self) -> bool:
        """Whether no command, no move and no window of another task has it."""
        return self._session.holder() is None and self.used_by_another is None

    @property
    def reachable(self) -> bool:
        """Whether other processes can reach it: its URL has a host and a port."""
        return self._session.reachable

    @property
    def keeps_away(self) -> str | None:
        """Which other drivers its lease keeps away, in words; None where it takes none, or can take none."""
        holder = self._session.owner.holder
        return None if holder is None or getattr(holder, "reads_only", False) else str(holder)

    @property
    def driven_by(self) -> str | None:
        """The other driver that has it now, in words; None where none has, as far as the holder of leases knows."""
        other = self._session.owner.other(self._session.facts.boot)
        return None if other is None else str(other)

    @property
    def memory_is_free(self) -> bool:
        """Whether its devices may be handed to the next tenant: memory proved returned, or process gone."""
        return self._session.record.memory_is_free

    @property
    def quarantined(self) -> Verdict | None:
        """Why it stays out of its fleet's moves until it is recovered, and since when; None where it takes part."""
        return quarantine_of(self._session.record)

    def kept_conditions(self) -> Mapping[str, Condition]:
        """The conditions that were kept of it last, for one that cannot be observed; empty where nothing was kept."""
        kept = self._session.kept()
        return {} if kept is None else kept.conditions

    def weights_refusal(self) -> str | None:
        """Why its weights are not worth serving; None where they are."""
        return invalid_weights(self._session.record, self._session.capabilities)

    def missing(self, to: State, weights: Source | None = None) -> str | None:
        """Why it is not in this state as the state claims it, with these weights; None where it is."""
        away = not_there(self.record, self.capabilities, self.policy, to, weights)
        return away or other_desired(self.record, self.capabilities, to, weights)

    def not_brought(self, to: State) -> InvalidTransition | None:
        """The error of an engine that `ensure` does not bring there from where it is; None where it does."""
        sources = REACHED_FROM[to]
        if self.state in sources:
            return None
        hint = f"; ensure brings an engine there from {', '.join(sources)}" if self.state in REACHED_FROM else ""
        return self.not_allowed(f"ensure({to})", hint)

    def too_late(self, command: str, deadline: Deadline) -> DeadlineExceeded | None:
        """The error of a command that is not given, since the deadline has passed; None where it has not."""
        if not deadline.has_passed:
            return None
        why = f"the deadline of {deadline.total_s:g} s passed before it was sent, and it was not"
        error = DeadlineExceeded(why, deadline_s=deadline.total_s, **self.about(command))
        error.settle(self.state)
        return error

    async def until_free(self, deadline: Deadline, what: str) -> None:
        """No command, move or window of another task of this process has it; EngineBusy where the deadline passes."""
        while (holder := self._session.holder() or self.used_by_another) is not None:
            if not deadline.left_s:
                raise EngineBusy(holder, **self.about(what))
            await self._session.until_let_go(deadline)

    async def until_no_window(self, deadline: Deadline, what: str) -> None:
        """It is in no window of another task of this process; EngineBusy where the deadline passes before."""
        while (window := self.used_by_another) is not None:
            if not deadline.left_s:
                raise EngineBusy(window, **self.about(what))
            await self._session.until_let_go(deadline)

    @property
    def weights_version(self) -> str | None:
        """The version that its weights are of, where they are valid and one version is known of all of them."""
        if self.weights_refusal() is not None:
            return None
        held = (self.facts.contents.get(tag) for tag in self.capabilities.stage("weights"))
        versions = {each.version for each in held if each is not None}
        return versions.pop() if len(versions) == 1 else None

    def context(self, command: Command, *, facts: Facts | None = None) -> Context:
        """What a static guard of this command is given now; `facts` replaces what is known, for a plan."""
        return self._session.context(command, facts=facts)

    def view(self, weights: Source | None = None) -> PlannerView:
        """The engine as the planner sees it, once it should serve `weights` (None: what it should serve now)."""
        record = self.record if weights is None else set_desired(self.record, weights, self.capabilities)
        return PlannerView(
            self.state, self.facts, self.capabilities, invalid_weights(record, self.capabilities) is None
        )

    @property
    def where(self) -> Where:
        """The engine as advice sees it."""
        return Where(self.record, self.capabilities, self.name, self.address)

    @property
    def _was_met(self) -> bool:
        return self.connected or self.state is State.GONE

    @property
    def advice(self) -> Advice:
        """What makes it serve, from where it is."""
        return towards_serving(self.where) if self._was_met else not_connected(self.address)

    def advised(self, error: E, asked: Asked | None = None) -> E:
        """The error, which now says what leads on; `asked` is what was asked of the engine."""
        error.advise(advice(self.where, asked, error) if self._was_met else not_connected(self.address))
        return error

    def advising(self, asked: Asked | None = None) -> Advising:
        """An error about the engine comes through with what leads on."""
        return Advising((self,), asked)

    def about(self, command: str) -> dict[str, Any]:
        """Engine, command and state, as errors take them."""
        return self._session.about(command)

    def not_allowed(self, command: str, hint: str = "") -> InvalidTransition:
        """The error of a command that has no row in the state that the engine is in."""
        return self._session.not_allowed(command, hint)

    @property
    def reason(self) -> str:
        """Why the engine is in its state, in words; empty where that was not said."""
        return self._session.reason

    def __repr__(self) -> str:
        parts = [f"<Engine {self.name} {self.state}"]
        if self.busy:
            parts.append(f"busy={self.busy}")
        versions = {str(contents) for contents in self.facts.contents.values() if contents is not None}
        if versions:
            parts.append(f"weights={','.join(sorted(versions))}")
        condition = self.conditions.get("memory_returned")
        if condition is not None and "resident_bytes" in condition.verdict.figures:
            parts.append(f"residual={gib(condition.verdict.figures['resident_bytes']).replace(' ', '')}")
        return " ".join(parts) + ">"
