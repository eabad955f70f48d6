"""Being somewhere by a deadline: nothing is sent where the engine is there on evidence, else it is brought there.

Whoever calls twice, or does not know what others did, asks for the state and not for the command that leads there. What
was observed less than `Policy.evidence_max_age_s` ago, or proved by the command that led there, is not asked for again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from ..core.commands import Command, Release, UpdateWeights
from ..core.deadline import Deadline
from ..core.errors import DeadlineExceeded, GuardRefused, InvalidTransition
from ..core.facts import PauseMode
from ..core.policy import Policy, positive
from ..core.sources import FromDisk, Pushed, Source
from ..core.states import State
from ..core.transition import Transition
from ..rules.desired import source_after_release, source_to_serve
from ..rules.ensured import ends_at, ensurable, not_there, weights_for
from ..rules.machine import refusals
from ..rules.planner import Goal, PlannerView, next_command
from ..rules.table import row
from .session import Session


class Driven(Protocol):
    """An engine, as far as it is brought anywhere."""

    def view(self, weights: Source | None = None) -> PlannerView:
        """The engine as the planner sees it."""

    def missing(self, to: State, weights: Source | None = None) -> str | None:
        """Why the engine is not in this state, with these weights."""

    def not_brought(self, to: State) -> InvalidTransition | None:
        """The error of an engine that is not brought there from where it is."""

    def too_late(self, command: str, deadline: Deadline) -> DeadlineExceeded | None:
        """The error of a command for which nothing is left of the deadline."""

    async def until_free(self, deadline: Deadline, what: str) -> None:
        """No command, move or window of another task has the engine any more."""

    async def verify(self, *, deadline_s: float, max_age_s: float) -> State:
        """The state that it is in."""

    def claimed_for(self, move: str) -> AbstractContextManager[None]:
        """The engine belongs to this."""

    def set_desired(self, source: Source) -> None:
        """From here on it should serve what `source` brings."""

    async def execute(self, command: Command, *, deadline_s: float) -> Transition:
        """The command was carried out."""

    async def update_weights(self, source: FromDisk | Pushed, *, deadline_s: float) -> Transition:
        """The weights are those of `source`."""


async def ensure(
    engine: Driven, session: Session, to: State | str, weights: Source | None, mode: PauseMode, deadline_s: float
) -> list[Transition]:
    """The engine is there, with these weights; the transitions that brought it there, none where it was there already.

    Raises ConfigurationError where no engine is brought to that state, InvalidTransition where this one is not brought
    there from where it is.
    """
    to, done = ensurable(to), list[Transition]()
    deadline = Deadline(positive("deadline_s", deadline_s))
    weights_for(to, weights)
    await confirm(engine, session.policy, to, deadline)
    while True:
        await engine.until_free(deadline, f"ensure({to})")
        why = engine.missing(to, weights)
        if why is None:
            return done
        refused = engine.not_brought(to)
        if refused is not None:
            raise refused
        following = _next(engine, session, to, weights, mode)
        late = None if following is None else engine.too_late(following.name, deadline)
        if late is not None:
            raise late
        match following:
            case None if not_there(session.record, session.capabilities, session.policy, to, weights) is None:
                _name(engine, session, to, weights)
            case None:
                reasons = {"ensure": f"{why}; no command changes that there"}
                raise GuardRefused(reasons, **session.about(f"ensure({to})"))
            case UpdateWeights(source=FromDisk() | Pushed() as source):
                done.append(await engine.update_weights(source, deadline_s=deadline.look_s()))
            case command:
                done.append(await engine.execute(command, deadline_s=deadline.look_s()))


def _name(engine: Driven, session: Session, to: State, weights: Source | None) -> None:
    """An engine that is there is to serve these weights; GuardRefused where a release would not be let to name them."""
    assert weights is not None
    about = session.about(f"ensure({to})")
    with engine.claimed_for(about["command"]):
        release = row(Release.name, State.DRAINED) if to is State.RELEASED else None
        static = tuple(guard for guard in release.guards if guard.static) if release else ()
        reasons = refusals(static, session.context(Release(None, weights)))
        if reasons:
            raise GuardRefused(reasons, **about)
        engine.set_desired(weights)


async def confirm(engine: Driven, policy: Policy, to: State, deadline: Deadline) -> None:
    """No command, move or window of another has the engine any more, and what is known of its state is young."""
    await engine.until_free(deadline, f"ensure({to})")
    await engine.verify(deadline_s=deadline.look_s(), max_age_s=policy.evidence_max_age_s)


def _next(engine: Driven, session: Session, to: State, weights: Source | None, mode: PauseMode) -> Command | None:
    """The next command on the way there; None where the engine is in that state, and something is missing all the same.

    On the way to serving it is to serve the weights that were named, from here on.
    """
    if session.state is to:
        return None
    if ends_at(to) is State.RELEASED:
        source = source_after_release(session.record, weights)
        return next_command(engine.view(), Goal(State.RELEASED, None, source, mode))
    if weights is not None and not (engine.view(weights).weights_are_valid and engine.view().weights_are_valid):
        engine.set_desired(weights)
    source = source_to_serve(session.record, session.capabilities)
    return next_command(engine.view(), Goal(State.SERVING, None, source, mode))
