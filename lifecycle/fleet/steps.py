"""The steps of a fleet: one command to each participant, and a barrier after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

from ..core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ..core.deadline import Deadline
from ..core.facts import PauseMode, Tag
from ..core.sources import FromDisk, Pushed, Source
from ..core.states import IDLE, State
from ..core.transition import Transition
from ..engine.engine import Engine
from ..rules.planner import Goal, next_command
from ..rules.table import allowed
from .claims import claimed, verify_all
from .course import check_in_time
from .desired import desired_set
from .participants import Participants, Selection, in_turn
from .preflight import check_allowed, check_deadline, check_static
from .quarantine import follow
from .ranks import step_of_ranks
from .routing import Routing
from .step import all_ready, together
from .updating import updating


class Steps(Participants):
    """The engines of a fleet, and the steps that they can be asked for together."""

    @step_of_ranks
    @in_turn
    async def pause(
        self, mode: PauseMode | None = None, *, engines: Selection = None, deadline_s: float | None = None
    ) -> list[Transition]:
        """No participant admits requests; the router, if there is one, stopped sending to them first."""
        routing, participants = Routing(self.router), self._taking_part(engines, "pause")
        command = Pause(mode or self.policy.pause_mode)
        check_deadline(deadline_s)
        check_static(participants, command)
        async with claimed(participants, "pause", deadline_s):
            commands = [(each, command) for each in participants]
            await all_ready(commands, deadline_s, self.ranks)
            await routing.close([each for each in participants if each.state is State.SERVING])
            try:
                return await together(commands, deadline_s, self.ranks)
            finally:
                await routing.open([each for each in participants if each.state is State.SERVING])

    @step_of_ranks
    @in_turn
    async def drain(self, *, engines: Selection = None, deadline_s: float | None = None) -> list[Transition]:
        """Every participant is idle; groups drain in the order of `drain_after`."""
        done: dict[str, Transition] = {}
        participants = self._taking_part(engines, "drain")
        for wave in self.waves(participants):
            done |= {each.engine: each for each in await self._step(lambda engine: Drain(), wave, deadline_s)}
        return [done[engine.name] for engine in participants if engine.name in done]

    @step_of_ranks
    @in_turn
    async def release(
        self,
        tags: Iterable[Tag] | None = None,
        *,
        weights: Source | None = None,
        engines: Selection = None,
        deadline_s: float | None = None,
    ) -> list[Transition]:
        """The participants' memory is back, measured. Refused, before any is touched, unless all are drained and ready.

        Where one is not ready FleetError names that one, and the others are as they were.
        """
        named = None if tags is None else frozenset(tags)
        return await self._step(
            lambda each: Release(named, weights or each.desired.rollback_source),
            engines,
            deadline_s,
            weights,
            all_must=True,
        )

    @step_of_ranks
    @in_turn
    async def restore_weights(self, *, engines: Selection = None, deadline_s: float | None = None) -> list[Transition]:
        """The participants' weights are mapped again; their contents may be garbage until updated."""
        return await self._step(lambda engine: RestoreWeights(), engines, deadline_s)

    @step_of_ranks
    @in_turn
    async def update_weights(
        self,
        source: FromDisk | Pushed,
        *,
        force: bool = False,
        engines: Selection = None,
        deadline_s: float | None = None,
    ) -> list[Transition]:
        """The participants hold the weights of `source`; a push is one collective, which one failure fails for all."""
        done = await self._step(lambda engine: UpdateWeights(source, force), engines, deadline_s, source)
        follow(self.participants(engines), source)
        return done

    def updating_weights(
        self, version: str, *, engines: Selection = None, deadline_s: float | None = None
    ) -> AbstractAsyncContextManager[Sequence[Engine]]:
        """Inside, every participant waits for the trainer's push (`engine.push(...)`); after it they hold `version`.

        An exception inside fails the update of every engine and comes through.
        """
        update = partial(self.update_weights, engines=engines, deadline_s=deadline_s)
        return updating(self.engines, version, update)

    @step_of_ranks
    @in_turn
    async def restore_kv(self, *, engines: Selection = None, deadline_s: float | None = None) -> list[Transition]:
        """All of the participants' memory is mapped again; refused where the weights are not valid."""
        return await self._step(lambda engine: RestoreKV(), engines, deadline_s)

    @step_of_ranks
    @in_turn
    async def resume(
        self, *, preempt: bool = False, engines: Selection = None, deadline_s: float | None = None
    ) -> list[Transition]:
        """The participants generated a real token each, and the router sends to them; `preempt` as in Engine.resume."""
        participants = self._taking_part(engines, "resume")
        check_deadline(deadline_s)
        commands = [(each, Resume()) for each in participants]
        if preempt and participants:
            await all_ready(commands, deadline_s, self.ranks)
            deadline_s = min(await asyncio.gather(*(each.preempt_drain(deadline_s) for each in participants)))
        async with claimed(participants, "resume", deadline_s):
            await all_ready(commands, deadline_s, self.ranks)
            try:
                return await together(commands, deadline_s, self.ranks)
            finally:
                await Routing(self.router).open([each for each in participants if each.state is State.SERVING])

    async def _towards(
        self, to: State, engines: Sequence[Engine], mode: PauseMode, deadline: Deadline
    ) -> list[Transition]:
        """These engines, which serve or are paused, are paused, or drained; the results of the last step."""
        goal = Goal(State.RELEASED, mode=mode)

        def whose_next_is(kind: type[Command]) -> list[Engine]:
            return [each for each in engines if isinstance(next_command(each.view(), goal), kind)]

        done = await self.pause(mode, engines=whose_next_is(Pause), deadline_s=deadline.look_s())
        if to is State.DRAINED:
            waves, done = self.waves(whose_next_is(Drain)), []
            for wave in waves:
                check_in_time(wave, Drain.name, deadline, done)
                done += await self.drain(engines=wave, deadline_s=deadline.look_s())
        return done

    async def _step(
        self,
        command: Callable[[Engine], Command],
        engines: Selection,
        deadline_s: float | None,
        weights: Source | None = None,
        all_must: bool = False,
    ) -> list[Transition]:
        what = command(self.engines[0]).name
        participants = self._taking_part(engines, what)
        check_deadline(deadline_s)
        async with claimed(participants, what, deadline_s):
            if all_must:
                there = [each for each in participants if each.state in IDLE]
                check_allowed([each for each in participants if each.state not in IDLE], command)
                await verify_all(there, deadline_s, for_move=True)
                check_allowed(participants, command)
            with desired_set([each for each in participants if what in allowed(each.state)], weights):
                return await together([(each, command(each)) for each in participants], deadline_s, self.ranks)
