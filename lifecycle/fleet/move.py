"""Moves: several engines through the same phases, with a barrier after each, and what happens where some fail.

    offload: close the router -> Pause -> Drain -> Release
    onload:  (Pause -> Drain, where a cache is stale) -> RestoreWeights -> UpdateWeights -> the caller's step between
             -> RestoreKV -> Resume -> open the router

Where the caller asks for it (`overlap`), the three restores of an onload are one phase: each engine goes through them
at its own pace, and only the resume waits for all.

A phase gives every participant its next command, all at once, and ends when all have ended: no participant is released
before all are drained, and none is sent a release before the guards of all have passed. Groups drain in waves
(`drain_after`). The planner is asked anew in every phase, so an engine that is already there, or was found elsewhere,
gets the command that it needs and no other. What can be refused without sending anything is refused first
(`preflight`).

Before that, the engines that are believed to be there already are looked at: those that are released before an offload,
those that serve before an onload. What is found otherwise is planned for as it was found. An offload whose other
engines took their time looks at them once more, so nothing older than the move says that memory is free.

What becomes of the others, and of those that failed, is not decided here: `failure_policy` is the table. An engine that
somebody else moved meanwhile counts as failed, since the phases to come would pass it by. Where the policy goes on
without those that failed (`quarantine` says whether it may), so does one that was failed or gone before, in the first
phase, and each phase is asked again of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from ..core.commands import Command, Drain, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ..core.deadline import Deadline, Limit, seconds
from ..core.errors import FleetError, LifecycleError
from ..core.frozen import EMPTY
from ..core.observer import Observers
from ..core.policy import OnFailure
from ..core.ports import Router
from ..core.record import Desired
from ..core.sources import Source
from ..core.states import IDLE, UNCLAIMED, State
from ..core.transition import Transition
from ..engine.engine import Engine
from ..rules.desired import source_to_serve
from ..rules.planner import OFFLOAD, ONLOAD, Goal, next_command
from .between import Between, called
from .claims import verify_all
from .course import Course, Outcome, at_once, at_their_own_pace, release_again
from .desired import DesiredOfMove, holds_desired, setting_desired
from .failure_policy import FAILURE_POLICY, Consequence, Failed, MoveName, Others, Phase
from .journaling import MoveJournal
from .preflight import (
    Sources,
    check_overlap,
    check_sources,
    externally_modified,
    lost_before,
    moved_elsewhere,
    preflight,
    stays_behind,
)
from .quarantine import Quarantine, follow
from .ranks import Ranks, plan_of_goals, plan_of_sources
from .routing import Routing

#: The phases of an onload that engines may go through at their own pace.
OVERLAPPING: tuple[type[Command], ...] = (RestoreWeights, UpdateWeights, RestoreKV)

#: The command whose deadline is that of waiting until all ranks have come.
ARRIVING = Drain.name


class Move:
    """One offload or onload of some engines. `waves` orders the drain: each wave is idle before the next is asked."""

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        router: Router | None = None,
        waves: Callable[[Sequence[Engine]], list[list[Engine]]] | None = None,
        deadline_s: Limit = None,
        on_failure: OnFailure = "restore",
        left_out: Sequence[Engine] = (),
        ranks: Ranks | None = None,
    ) -> None:
        self.engines = list(engines)
        self._routing = Routing(router)
        self._waves = waves or (lambda engines: [list(engines)])
        self._limit = deadline_s
        self._back_s = None if isinstance(deadline_s, Deadline) else deadline_s  # what is left is for the move alone
        self._policy = FAILURE_POLICY[on_failure]
        self._ranks = ranks or Ranks()
        observers = Observers({id(each): each for engine in engines for each in engine.observers}.values())
        self._journal = MoveJournal(engines, observers)
        self._quarantine = Quarantine(
            left_out,
            routing=self._routing,
            journal=self._journal,
            observers=observers,
            deadline_s=seconds(deadline_s),
        )

    @property
    def _deadline_s(self) -> float | None:
        return seconds(self._limit)

    async def offload(self, goals: Mapping[str, Goal], said: Mapping[str, str] = EMPTY) -> list[Transition]:
        """Every engine is released, proved; the results of the releases, in the engines' order.

        `said` is what ranks compare beside the goals. Raises FleetError; where the policy restores, the engines that
        did not fail serve again by then.
        """
        self._ranks.phase_begins(ARRIVING, self.engines, self._deadline_s)
        await self._verify(self._in(*IDLE))
        before, lost = {engine.name: engine.desired for engine in self.engines}, list[Outcome]()
        if self._policy["offload", Phase.PAUSE].failed is Failed.QUARANTINE:
            lost = [Outcome(each, error=lost_before(each, goals[each.name])) for each in self._in(*UNCLAIMED)]
        away = {outcome.engine.name for outcome in lost}
        able = [engine for engine in self.engines if engine.name not in away]
        preflight(able or self.engines, goals)
        await self._quarantine.check(able)
        await self._ranks.begin(plan_of_goals(((each, goals[each.name]) for each in self.engines), said))
        begun, failed = self._journal.begins("offload", "", self.engines), list[Outcome]()
        try:
            await self._routing.close(able)
            with setting_desired() as desired:
                return await self._offload(goals, before, lost, failed, desired)
        finally:
            self._journal.ended(begun, failed)

    async def _offload(
        self,
        goals: Mapping[str, Goal],
        before: Mapping[str, Desired],
        lost: Sequence[Outcome],
        failed: list[Outcome],
        desired: DesiredOfMove,
    ) -> list[Transition]:
        """The phases of an offload; `lost` were failed or gone before, and `failed` takes in who failed."""
        done: list[Outcome] = []
        there = self._in(State.RELEASED)
        for kind in OFFLOAD:
            course, done = Course(list(self.engines)), []
            phase, lost = Phase(kind.name), course.ended(lost)
            self._ranks.phase_begins(kind.name, self.engines, self._deadline_s)
            while True:
                if not lost and kind is Release:
                    lost = course.ended(self._set_desired(desired, goals))
                if not lost:
                    ended = await self._phase("offload", kind, self.engines, goals)
                    done += [outcome for outcome in ended if outcome.error is None]
                    await self._verify_others(kind, ended, there)
                    lost = course.ended(ended) or course.ended(externally_modified(self.engines, kind, goals))
                if not lost:
                    break
                if not await self._goes_on_without("offload", phase, course, lost):
                    failed += course.failed
                    await self._fail("offload", phase, course, before)
                lost = []
            if kind is not Release:
                await self._wait_for_ranks(phase, course, before)
        came_back = await self._quarantine.back(self._quarantine.engines, self.engines)
        if came_back:
            failed += came_back
            await self._fail("offload", Phase.RELEASE, Course([], failed=came_back), before)
        await self._wait_for_ranks(Phase.RELEASE, course, before)
        for engine in self._quarantine.engines:
            follow([engine], goals[engine.name].weights)
        self._journal.handed_over(self.engines)
        return [outcome.transition for outcome in done if outcome.transition is not None]

    async def _fail(self, move: MoveName, phase: Phase, course: Course, before: Mapping[str, Desired]) -> NoReturn:
        """The others are brought back, where the policy says so; raises what failed, here and on other ranks."""
        on_ranks = await self._ranks.ended(phase, course.errors)
        raise self._error(course, [*on_ranks, *await self._bring_back(self._row(move, phase), course.failed, before)])

    async def _wait_for_ranks(self, phase: Phase, course: Course, before: Mapping[str, Desired]) -> None:
        """All ranks have ended this phase of an offload; where one failed, it is as if an engine of this one had."""
        on_ranks = await self._ranks.ended(phase)
        if on_ranks:
            problems = await self._bring_back(self._row("offload", phase), course.failed, before)
            raise self._error(course, [*on_ranks, *problems])

    def _set_desired(self, desired: DesiredOfMove, goals: Mapping[str, Goal]) -> list[Outcome]:
        """All engines come back with what the move names, those that are released already too; who cannot keep that."""
        refused = desired.set((engine, goals[engine.name].weights) for engine in self.engines)
        return [Outcome(engine, error=refused[engine.name]) for engine in self.engines if engine.name in refused]

    async def _verify_others(self, kind: type[Command], ended: Sequence[Outcome], there: Sequence[Engine]) -> None:
        """The engines to which a phase gave no command are verified, where it took its time with the others."""
        if kind is Release and ended:
            await self._verify(there)
        if kind is Drain and ended:  # the others were verified before it, and none is released before all are idle
            drained = {outcome.engine.name for outcome in ended}
            await self._verify([each for each in self._in(*IDLE) if each.name not in drained])

    async def onload(
        self,
        between: Between | None = None,
        *,
        weights: Source | Sources | None = None,
        between_deadline_s: float | None = None,
        overlap: bool = False,
        until: type[Command] = Resume,
    ) -> list[Transition]:
        """Every engine serves, and its router sends to it again; the results of the resumes, in the engines' order.

        With `weights`, for all or by engine, they serve those. With `until` the move ends after that phase; its results
        are returned. Refused before anything is sent where nothing brings an engine valid weights that it needs.
        What becomes of an engine that fails on the way, and of the others, the failure policy says. `between` is
        called once the weights are back and before the KV cache is: what it raises comes through, with a note, and the
        engines stay where they are. With `overlap` an engine restores its KV cache while others still load weights;
        not where a ledger keeps room for tenants, whose weights and KV cache would wait for each other.
        """
        self._ranks.phase_begins(ARRIVING, self.engines, self._deadline_s)
        await self._verify(self._in(State.SERVING))
        wanted = weights if isinstance(weights, Mapping) else {engine.name: weights for engine in self.engines}
        check_sources(self.engines, wanted)
        overlap = overlap and not any(engine.in_ledger for engine in self.engines)
        if overlap:
            check_overlap(self.engines, wanted, between)
        pairs = [(each, wanted[each.name]) for each in self.engines]
        sources = [(each, source or source_to_serve(each.record, each.capabilities)) for each, source in pairs]
        plan = plan_of_sources(sources, overlap=overlap, between=between is not None)
        on_ranks = await self._ranks.begin(plan, goes_on_alone=until is Resume)
        DesiredOfMove().set_all((each, source) for each, source in pairs if not holds_desired(each, source))
        begun = self._journal.begins("onload", "", self.engines)
        course, problems = Course(list(self.engines)), list[Exception]()
        try:
            for kind in ONLOAD[: ONLOAD.index(until) + 1]:
                if kind is RestoreKV and between is not None:
                    await self._between(between, between_deadline_s, course)
                if overlap and kind in OVERLAPPING:
                    continue
                if kind is Resume and overlap:
                    lost = course.ended(await self._overlapped(course.active))
                    on_ranks += await self._ranks.ended(Phase.RESTORE, course.errors)
                    await self._left_behind(Phase.RESTORE, course, lost)
                self._ranks.phase_begins(kind.name, course.active, self._deadline_s)
                lost = course.ended(await self._phase("onload", kind, course.active, self._home()))
                moved = course.ended(moved_elsewhere(course.active, kind, self._home())) if kind is until else []
                if kind is not Resume:
                    on_ranks += await self._ranks.ended(Phase(kind.name), course.errors)
                await self._left_behind(Phase(kind.name), course, lost)
                await self._goes_on_without("onload", Phase(kind.name), course, moved)
            if until is Resume:
                self._quarantine.follow(course.active)
                problems = await self._reopen(course.active)
                on_ranks += await self._ranks.ended(Phase.RESUME, [*course.errors, *problems])
        finally:
            self._journal.ended(begun, course.failed)
        if course.failed or problems or on_ranks:
            raise self._error(course, [*on_ranks, *problems])
        last = [course.done[engine.name] for engine in self.engines if engine.name in course.done]
        return [transition for transition in last if transition.command == until.name]

    # what is believed

    def _in(self, *states: State) -> list[Engine]:
        return [engine for engine in self.engines if engine.state in states]

    async def _verify(self, engines: Sequence[Engine]) -> None:
        await verify_all(engines, self._ranks.verify_s(self._deadline_s), for_move=True)

    # phases

    async def _phase(
        self, move: MoveName, kind: type[Command], engines: Sequence[Engine], goals: Mapping[str, Goal]
    ) -> list[Outcome]:
        """Every engine whose next command is of this kind was given it, and has ended."""
        begun = self._journal.begins(move, kind.name, engines)
        outcomes: list[Outcome] = []
        try:
            for wave in self._waves(engines) if kind is Drain else [engines]:
                planned = [(engine, next_command(engine.view(), goals[engine.name])) for engine in wave]
                commands = [(engine, command) for engine, command in planned if isinstance(command, kind)]
                outcomes += await at_once(commands, self._ranks.work_s(self._deadline_s), within=self._limit)
                failed = any(outcome.error for outcome in outcomes)
                if failed and self._policy[move, Phase(kind.name)].others is not Others.GO_ON:
                    break
        finally:
            self._journal.ended(begun, outcomes)
        place = {engine.name: index for index, engine in enumerate(self.engines)}
        return sorted(outcomes, key=lambda outcome: place[outcome.engine.name])

    async def _overlapped(self, engines: Sequence[Engine]) -> list[Outcome]:
        """Every engine has its weights and its KV cache back, each at its own pace."""
        begun = self._journal.begins("onload", Phase.RESTORE, engines)
        self._ranks.phase_begins(UpdateWeights.name, engines, self._deadline_s)
        outcomes: list[Outcome] = []
        try:
            limit_s = self._ranks.work_s(self._deadline_s)
            outcomes = await at_their_own_pace(engines, OVERLAPPING, self._home(), limit_s, within=self._limit)
        finally:
            self._journal.ended(begun, outcomes)
        return outcomes

    async def _between(self, step: Between, deadline_s: float | None, course: Course) -> None:
        """The caller's step has ended, on all ranks. Where that failed elsewhere this rank stays where it is.

        A rank waits for the others as long as their steps may take, where that is said.
        """
        after_s = 0.0 if deadline_s is None or isinstance(self._limit, Deadline) else deadline_s
        self._ranks.phase_begins(RestoreKV.name, course.active, self._deadline_s, after_s=after_s)
        if course.active:
            begun = self._journal.begins("onload", Phase.BETWEEN, course.active)
            try:
                await called(step, deadline_s, course, self._policy["onload", Phase.BETWEEN].others)
            finally:
                for engine in self.engines:  # the caller may have done anything to them
                    engine.forget_observed()
                self._journal.ended(begun)
        if deadline_s is None:
            self._ranks.phase_begins(RestoreKV.name, course.active, self._deadline_s)
        on_ranks = await self._ranks.ended(Phase.BETWEEN, course.errors)
        if on_ranks:
            raise self._error(course, on_ranks)

    async def _reopen(self, engines: Sequence[Engine]) -> list[Exception]:
        """The router sends to these engines again; what it raised instead, beside what else went wrong."""
        try:
            await self._routing.open(engines)
        except Exception as error:
            return [error]
        return []

    def _home(self) -> dict[str, Goal]:
        return {
            engine.name: Goal(State.SERVING, weights=source_to_serve(engine.record, engine.capabilities))
            for engine in self.engines
        }

    # when some fail

    def _row(self, move: MoveName, phase: Phase) -> Consequence:
        """What becomes of the engines where those that failed are not put in quarantine."""
        row = self._policy[move, phase]
        return FAILURE_POLICY["restore"][move, phase] if row.failed is Failed.QUARANTINE else row

    async def _goes_on_without(self, move: MoveName, phase: Phase, course: Course, lost: Sequence[Outcome]) -> bool:
        """Whether the move goes on without all that failed in this phase: they are in quarantine then.

        An offload goes on without all of them or not at all. Of the others the error says why they are not in it.
        """
        if not lost or self._policy[move, phase].failed is not Failed.QUARANTINE:
            return False
        found = await self._quarantine.find([outcome.engine for outcome in lost], course.active)
        may, without = all(each.why_not is None for each in found), set[str]()
        for outcome, each in zip(lost, found, strict=True):
            if each.why_not is not None and isinstance(outcome.error, LifecycleError):
                outcome.error.add_remark(f"It is not put in quarantine: {each.why_not}")
            elif may or move == "onload":
                self._quarantine.take_in(outcome, each, move)
                without.add(outcome.engine.name)
        course.goes_on_without(without)
        self.engines = [engine for engine in self.engines if engine.name not in without]
        return may

    async def _left_behind(self, phase: Phase, course: Course, lost: Sequence[Outcome]) -> None:
        """Those that failed in this phase of an onload are in quarantine, or released again, or stay."""
        if not lost or await self._goes_on_without("onload", phase, course, lost):
            return
        if self._row("onload", phase).failed is Failed.RELEASE_AGAIN:
            left = {outcome.engine.name for outcome in course.failed}
            again = [outcome for outcome in lost if outcome.engine.name in left]
            await release_again(again, self._back_s)

    def _error(self, course: Course, more: Sequence[Exception] = ()) -> FleetError:
        """Names all that failed; whom the move went on without before that, stands in its notes."""
        error = course.error(more)
        for engine in self._quarantine.put:
            error.add_note(f"{engine.name} is in quarantine {engine.quarantined and engine.quarantined.reason}")
        return error

    async def _bring_back(
        self, row: Consequence, failed: Sequence[Outcome], before: Mapping[str, Desired]
    ) -> list[Exception]:
        """All that can serve serve again: a refused or drained one is resumed, a released one restored.

        One whose release failed stays where it was found: its memory is in question. The weights are those of before
        the move where they are still there, else those of the rollback source: the new ones belong to a step that
        never began.
        """
        if row.others is not Others.ONLOAD:
            return []
        all_of_them = (*self.engines, *self._quarantine.put)
        Engine.rollback_desired_of([(engine, before[engine.name]) for engine in all_of_them])
        lost = {outcome.engine.name for outcome in failed}
        able = [engine for engine in self.engines if engine.name not in lost or engine.state is not State.RELEASED]
        able = [engine for engine in able if engine.state not in (State.FAILED, State.GONE)]
        stuck = {engine.name: why for engine in able if (why := stays_behind(engine)) is not None}
        home = [engine for engine in able if engine.name not in stuck]
        problems: list[Exception] = [*stuck.values()]
        try:
            left_out = self._quarantine.engines
            await Move(home, router=self._routing.router, deadline_s=self._back_s, left_out=left_out).onload()
        except FleetError as error:
            problems += error.exceptions
        return problems
