"""One driver a rank: the ranks of a job go on together or not at all, each with engines of its own.

A verb of a fleet that has an agreement votes before anything is sent ("begin"), and after each of its phases. A phase
is entered only once all ranks voted for it. Where one refused, failed or did not vote, that is taken as if an engine of
this fleet had failed in that phase, and the failure policy says what becomes of its engines; from there on each rank
goes on by itself, and no more votes are asked for in this verb. All of it is within the caller's deadline: the engines
get what is left of it but for the part that the vote needs.

A caller that leaves in the middle (an error, a cancellation) says so at the next barrier, so that nobody waits for it.
One that is killed is missing there. Between its vote and what it does then, a rank may always be killed: the others
learn of that at the barrier which follows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ..core.agreement import RankOutcome, why_not
from ..core.commands import Command, Pause, Release, UpdateWeights
from ..core.deadline import LOOK_S, Deadline
from ..core.errors import (
    AgreementError,
    AgreementLost,
    ConfigurationError,
    FleetError,
    LifecycleError,
    RankFailed,
    RankMissing,
)
from ..core.policy import DEADLINES_S
from ..core.ports import Agreement
from ..core.sources import Source, version_of
from ..core.transition import Transition
from ..engine.engine import Engine
from ..rules.planner import Goal
from .plans import TAKES_PART
from .preflight import REFUSED

P = ParamSpec("P")

#: The part of a deadline that is kept for the vote, at most a quarter of it.
VOTE_S = 2.0
#: Seconds that verifying engines gets at least: one that lives answers within that, and else would be called failed.
VERIFY_LEAST_S = 1.0
#: Seconds that saying that one leaves may take.
LEAVE_S = 1.0
#: What a verb votes on before anything is sent.
BEGIN = "begin"
#: What a rank has left whose caller raised in its window.
WINDOW = "offloaded()"

#: Whether this task moves engines without the other ranks.
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)
#: Whether this task brings the engines of a window back at its end, whatever the other ranks say.
_WAY_BACK: ContextVar[bool] = ContextVar("way back", default=False)


class Ranks:
    """The other ranks, as the verbs of one fleet hear of them. Without an agreement there are none."""

    def __init__(self, agreement: Agreement | None = None) -> None:
        self._agreement = agreement
        self._verb = ""
        self._over = False
        self._verbs = 0
        self._windows = 0
        self._known: BaseException | None = None
        self._clock = Deadline(0.0)
        self.begun = False

    @property
    def votes(self) -> bool:
        """Whether other ranks have a say in what comes next."""
        return self._agreement is not None and bool(self._verb) and not self._over and not _ALONE.get()

    def refuse(self, verb: str) -> None:
        """ConfigurationError where there are other ranks: this verb does on each of them what its own engines need."""
        if self._agreement is not None:
            raise ConfigurationError(
                f"{verb}() on a fleet with an agreement of ranks: what it does depends on the engines of this rank "
                "alone, so ranks could not vote on it, and nothing was sent. Use offload() and onload(), which all "
                "ranks call, or recover(), which asks no other rank; for other members, connect a new fleet on each"
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, the verbs of this task ask no other rank: engines are brought back, or recovered."""
        token = _ALONE.set(True)
        try:
            yield
        finally:
            _ALONE.reset(token)

    @asynccontextmanager
    async def verb(self, name: str) -> AsyncIterator[None]:
        """Inside, the ranks do the same; where it is left by an error of which they do not know, they are told."""
        if self._agreement is None or _ALONE.get():
            yield
            return
        if self._verb:
            raise ConfigurationError(f"{name} while {self._verb} is under way: with an agreement, one after the other")
        self._verb, self._over, self.begun = name, False, False
        self._verbs, self._known = self._verbs + 1, None
        try:
            yield
        except BaseException as error:
            if not self._over:
                await self._leave(error, name if self.begun else f"{name}: {BEGIN}", sent=self.begun)
                self._over = True
            self._known = error
            raise
        finally:
            self._verb = ""

    @asynccontextmanager
    async def window(self) -> AsyncIterator[None]:
        """Inside, the caller has the memory; where that ends by an error, the others do not wait for this rank.

        Nothing is said where it is the error by which a step of the window failed: all know of that.
        """
        self._windows += 1
        try:
            yield
        except BaseException as error:
            if self._known is None or self._known not in (error, error.__cause__):
                await self._leave(error, WINDOW, sent=True)
            raise
        finally:
            self._windows -= 1

    @asynccontextmanager
    async def way_back(self) -> AsyncIterator[None]:
        """The end of a window: the engines are brought back whatever becomes of that on other ranks."""
        token = _WAY_BACK.set(True)
        try:
            async with self.before("onload"):
                yield
        finally:
            _WAY_BACK.reset(token)

    @asynccontextmanager
    async def before(self, verb: str) -> AsyncIterator[None]:
        """Where this ends by an error before any verb has begun inside, the others, who may be at that one, are told.

        Not where another verb is under way: a vote of that one would be taken back.
        """
        begun_before = self._verbs
        try:
            yield
        except BaseException as error:
            if self._verbs == begun_before and not self._verb:
                await self._leave(error, f"{verb}: {BEGIN}", sent=False)
            raise

    async def _leave(self, error: BaseException, phase: str, *, sent: bool) -> None:
        """The others are told that this rank left. One that had sent nothing refused, or was cancelled."""
        if self._agreement is None or _ALONE.get():
            return
        gave_up = sent or isinstance(error, asyncio.CancelledError)
        begins = not sent or phase == WINDOW  # its last vote was of a verb that has ended, and the others go on
        outcome = RankOutcome(phase, _said(error), vote="gave_up" if gave_up else "voted", begins=begins)
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._agreement.give_up(outcome, deadline_s=LEAVE_S)
        except Exception as problem:
            error.add_note(f"the other ranks were not told: {problem or type(problem).__name__}")

    # deadlines

    def phase_begins(
        self, command: str, engines: Iterable[Engine], deadline_s: float | None, *, after_s: float = 0.0
    ) -> None:
        """From here on a phase runs in which the engines are given this command, `after_s` that the caller may take."""
        limits = [each.policy.deadline_s(command, deadline_s) for each in engines]
        limit_s = max(limits, default=deadline_s or DEADLINES_S[command])
        self._clock = Deadline(after_s + limit_s, reserve_s=VOTE_S)

    def work_s(self, deadline_s: float | None) -> float | None:
        """Seconds that engines may take now: what was asked for, or what is left of the phase before the vote."""
        return max(LOOK_S, self._clock.work_s) if self.votes else deadline_s

    def verify_s(self, deadline_s: float | None) -> float | None:
        """Seconds that engines may take to be verified: `work_s`, and a least even where the phase took all of that."""
        least_s = min(VERIFY_LEAST_S, self._clock.total_s)
        return max(least_s, self._clock.work_s) if self.votes else deadline_s

    # votes

    async def begin(self, plan: Mapping[str, str], *, goes_on_alone: bool = False) -> list[AgreementError]:
        """All ranks are ready for the same; FleetError where one is not, and nothing was sent on any.

        With `goes_on_alone` one that did not come, or left, keeps nobody: why is returned. On the way back from a
        window nothing keeps this rank from it. The deadline is that of the phase that began last.
        """
        found = await self._vote(BEGIN, "", plan)
        while found and not self._windows and not _WAY_BACK.get() and all(map(_of_an_earlier_window, found)):
            self._over = False
            found = await self._vote(BEGIN, "", plan)
        if found and not (goes_on_alone and (_WAY_BACK.get() or all(map(_absent, found)))):
            raise FleetError.of(REFUSED, found)
        return found

    async def ended(self, phase: str, failed: Iterable[Exception] = ()) -> list[AgreementError]:
        """Why this rank does not go on after this phase, though its own engines may; empty where all voted for it."""
        return await self._vote(phase, "; ".join(map(_said, failed)), {})

    async def _vote(self, phase: str, problem: str, plan: Mapping[str, str]) -> list[AgreementError]:
        if self._agreement is None or not self.votes:
            return []
        name, rank = f"{self._verb}: {phase}", self._agreement.rank
        outcome, left_s = RankOutcome(name, problem, plan, begins=phase == BEGIN), max(LOOK_S, self._clock.left_s)
        self.begun = True
        try:
            outcomes = await self._agreement.agree(name, outcome, deadline_s=left_s)
        except AgreementLost as lost:
            self._over = True
            return [lost]
        except ConfigurationError:
            self._over = True
            raise
        found = why_not(outcomes, rank, name)
        self._over = bool(found or problem)
        return found


class _HasRanks(Protocol):
    @property
    def ranks(self) -> Ranks:
        """The other ranks."""


F = TypeVar("F", bound=_HasRanks)
R = TypeVar("R")


def move_of_ranks(
    verb: Callable[Concatenate[F, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[F, P], Coroutine[Any, Any, R]]:
    """The verb of a fleet, which votes itself, phase by phase."""

    @wraps(verb)
    async def call(self: F, /, *args: P.args, **kwargs: P.kwargs) -> R:
        async with self.ranks.verb(verb.__name__):
            return await verb(self, *args, **kwargs)

    return call


def step_of_ranks(
    verb: Callable[Concatenate[F, P], Coroutine[Any, Any, list[Transition]]],
) -> Callable[Concatenate[F, P], Coroutine[Any, Any, list[Transition]]]:
    """The verb of a fleet that is one command: the ranks vote on what came of it, too."""

    @wraps(verb)
    async def call(self: F, /, *args: P.args, **kwargs: P.kwargs) -> list[Transition]:
        ranks, name = self.ranks, verb.__name__
        async with ranks.verb(name):
            try:
                done = await verb(self, *args, **kwargs)
            except FleetError as error:
                more = await ranks.ended(name, error.exceptions) if ranks.begun else []
                if not more:
                    raise
                what = f"{len(error.exceptions)} engines of this rank"
                raise FleetError.of(what, [*error.exceptions, *more], error.succeeded) from None
            if ranks.votes and not ranks.begun:  # no engine of this rank takes part in it
                deadline_s: Any = kwargs.get("deadline_s")
                ranks.phase_begins(name, [], deadline_s)
                await ranks.begin({})
                ranks.phase_begins(name, [], deadline_s)
            more = await ranks.ended(name)
            if more:
                raise FleetError.of("no engine of this rank failed", more, done)
            return done

    return call


def plan_of_goals(goals: Iterable[tuple[Engine, Goal]], said: Mapping[str, str]) -> dict[str, str]:
    """What an offload is about to do, by group, and what else was said of groups."""
    parts = list(said.items())
    for engine, goal in goals:
        mode = (f"the pause mode of {engine.group}", goal.mode)
        parts += [(TAKES_PART.format(engine.group), "yes"), *_parts(engine, goal.weights, goal.tags), mode]
    return _plan(parts)


def plan_of_sources(sources: Iterable[tuple[Engine, Source | None]], *, overlap: bool, between: bool) -> dict[str, str]:
    """What an onload is about to do, by group."""
    parts = [("overlap=", str(overlap)), ("a step between", str(between))]
    for engine, source in sources:
        parts += _parts(engine, source)
    return _plan(parts)


def plan_of_commands(commands: Iterable[tuple[Engine, Command]]) -> dict[str, str]:
    """What a step is about to do, by group."""
    parts: list[tuple[str, str]] = []
    for engine, command in commands:
        match command:
            case Release(tags=tags, weights=source):
                parts += _parts(engine, source, tags)
            case UpdateWeights(source=source):
                parts += _parts(engine, source)
            case Pause(mode=mode):
                parts.append((f"the pause mode of {engine.group}", mode))
    return _plan(parts)


def _parts(engine: Engine, source: Source | None, *tags: frozenset[str] | None) -> list[tuple[str, str]]:
    """The version, where one is named, and the tags."""
    version = version_of(source)
    parts = [] if version is None else [(f"the version of {engine.group}", version)]
    for named in tags:
        parts.append((f"the tags of {engine.group}", "all" if named is None else ", ".join(sorted(named))))
    return parts


def _plan(parts: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The parts in which all engines of a group are alike: what they differ in is no plan of the group."""
    said: dict[str, set[str]] = {}
    for part, value in parts:
        said.setdefault(part, set()).add(value)
    return {part: values.pop() for part, values in said.items() if len(values) == 1}


def _absent(error: AgreementError) -> bool:
    return isinstance(error, RankMissing | AgreementLost) or (isinstance(error, RankFailed) and error.gave_up)


def _of_an_earlier_window(error: AgreementError) -> bool:
    """Whether a rank says that it left a window: outside of one, this rank had left the same by an error, too."""
    return isinstance(error, RankFailed) and error.gave_up and error.phase == WINDOW


def _said(error: BaseException) -> str:
    """What is told to the other ranks of an error."""
    if isinstance(error, FleetError):
        return "; ".join(map(_said, error.exceptions))
    if isinstance(error, asyncio.CancelledError):
        return "it was cancelled"
    return error.without_advice if isinstance(error, LifecycleError) else f"{type(error).__name__}: {error}"
