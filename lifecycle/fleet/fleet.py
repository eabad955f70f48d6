"""A fleet: engines in groups, moved together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Self

from ..core.advice import Recovery
from ..core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ..core.errors import ConfigurationError
from ..core.facts import PauseMode, Tag
from ..core.frozen import replace
from ..core.observer import Observer, Observers
from ..core.policy import Policy, positive
from ..core.ports import Agreement, ResidualProbe, Router, StateStore, TenantLedger
from ..core.sources import FromDisk, Pushed, Source
from ..core.states import IDLE, UNCLAIMED, State
from ..core.transition import Transition
from ..core.verdicts import Verdict
from ..engine.engine import RECOVER_S, Engine, store_given
from ..engine.ownership import LeaseChoice, chosen_lease
from ..rules.table import allowed
from .claims import claimed, leased, verify_all
from .connect import connected, disconnected, member
from .desired import desired_set
from .groups import Group, check_members, waves_of
from .move import Between, Move
from .preflight import check_allowed, check_deadline, check_static, goals_of_offload
from .quarantine import follow, taking_part
from .ranks import Ranks, move_of_ranks, step_of_ranks
from .recovery import Moves, RecoverTo, brought, recovered
from .routing import Routing, router_of
from .step import together
from .updating import updating
from .window import CANCELLED, restore_on_error, window_lock

Selection = Iterable[str | Engine] | None


class Fleet:
    """Engines that share devices with a trainer, each in a group; results stand in the groups' order.

    Groups with `offload=False` are never part of a move.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        groups: Mapping[str, Group] | None = None,
        router: Router | str | None = None,
        policy: Policy | None = None,
        agreement: Agreement | None = None,
    ) -> None:
        if not engines:
            raise ConfigurationError("a fleet needs at least one engine")
        self.groups = {engine.group: Group() for engine in engines} | dict(groups or {})
        place = {group: number for number, group in enumerate(dict.fromkeys(engine.group for engine in engines))}
        self.engines = sorted(engines, key=lambda engine: place[engine.group])
        self._place = {engine.name: number for number, engine in enumerate(self.engines)}
        self.router = router_of(router, self.engines)
        self.policy = policy or Policy()
        self._in_windows: set[str] = set()
        self.ranks = Ranks(agreement)
        check_members(self.engines, self.groups)

    @classmethod
    def connect(
        cls,
        urls: Iterable[str],
        *,
        groups: Mapping[str, Group] | None = None,
        router: Router | str | None = None,
        policy: Policy | None = None,
        observers: Iterable[Observer] = (),
        store: StateStore | None = None,
        lease: LeaseChoice = "user",
        tenants: TenantLedger | None = None,
        probe: ResidualProbe | None = None,
        agreement: Agreement | None = None,
        memory: StateStore | None = None,
    ) -> Self:
        """A fleet of these URLs, observed on entering it: `async with Fleet.connect([...]) as fleet`.

        `store` keeps what is known across processes (`lifecycle.store.Store`); `memory` is its deprecated name.
        `lease` keeps other drivers away: "user" (the leases of this user on this host), another holder, or None.
        `agreement` joins the ranks of an SPMD job, each with a fleet of its own: they go on together or not at all.
        `tenants` is a ledger of who may hold memory of which device (`lifecycle.store.Tenants`). `probe` measures in
        place of the one that fits each engine's device. `router` may be the URL of one (`smg://127.0.0.1:30000`).
        Options of an engine's URL beside its adapter's: `name`, `group`, `offload`, `drain_after`, `worker` (there).
        """
        heard, kept = Observers(observers), store_given(store, memory)
        known, holder = dict(groups or {}), chosen_lease(lease)
        engines = [member(url, known, router is not None, policy, heard, kept, probe, holder, tenants) for url in urls]
        return cls(engines, groups=known, router=router, policy=policy, agreement=agreement)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.aclose)
            await connected(self.engines)
            stack.pop_all()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Connections are let go; the engines are left as they are."""
        await disconnected(self.engines, self.router)

    def __getitem__(self, name: str) -> Engine:
        if name not in self._place:
            raise KeyError(f"no engine {name!r}; the fleet has {', '.join(self._place)}")
        return self.engines[self._place[name]]

    def __iter__(self) -> Iterator[Engine]:
        return iter(self.engines)

    def __len__(self) -> int:
        return len(self.engines)

    def __repr__(self) -> str:
        return f"<Fleet {' '.join(f'{engine.name}={engine.state}' for engine in self.engines)}>"

    @property
    def quarantined(self) -> dict[str, Verdict]:
        """The engines that moves and steps leave out until they are recovered, by name: since when, and why."""
        return {each.name: why for each in self.engines if (why := each.quarantined) is not None}

    # step by step

    @step_of_ranks
    async def pause(
        self, mode: PauseMode | None = None, *, engines: Selection = None, deadline_s: float | None = None
    ) -> list[Transition]:
        """No participant admits requests; the router, if there is one, stopped sending to them first."""
        routing, participants = Routing(self.router), self._taking_part(engines, "pause")
        command = Pause(mode or self.policy.pause_mode)
        check_deadline(deadline_s)
        check_static(participants, command)
        async with claimed(participants, "pause", deadline_s):
            await routing.close([each for each in participants if each.state is State.SERVING])
            try:
                return await together([(each, command) for each in participants], deadline_s, self.ranks)
            finally:
                await routing.open([each for each in participants if each.state is State.SERVING])

    @step_of_ranks
    async def drain(self, *, engines: Selection = None, deadline_s: float | None = None) -> list[Transition]:
        """Every participant is idle; groups drain in the order of `drain_after`."""
        done: dict[str, Transition] = {}
        participants = self._taking_part(engines, "drain")
        for wave in self.waves(participants):
            done |= {each.engine: each for each in await self._step(lambda engine: Drain(), wave, deadline_s)}
        return [done[engine.name] for engine in participants if engine.name in done]

    @step_of_ranks
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

        def command(each: Engine) -> Release:
            return Release(named, weights or each.desired.rollback_source)

        return await self._step(command, engines, deadline_s, weights, all_must=True)

    @step_of_ranks
    async def restore_weights(self, *, engines: Selection = None, deadline_s: float | None = None) -> list[Transition]:
        """The participants' weights are mapped again; their contents may be garbage until updated."""
        return await self._step(lambda engine: RestoreWeights(), engines, deadline_s)

    @step_of_ranks
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
    async def restore_kv(self, *, engines: Selection = None, deadline_s: float | None = None) -> list[Transition]:
        """All of the participants' memory is mapped again; refused where the weights are not valid."""
        return await self._step(lambda engine: RestoreKV(), engines, deadline_s)

    @step_of_ranks
    async def resume(
        self, *, preempt: bool = False, engines: Selection = None, deadline_s: float | None = None
    ) -> list[Transition]:
        """The participants generated a real token each, and the router sends to them; `preempt` as in Engine.resume."""
        participants = self._taking_part(engines, "resume")
        check_deadline(deadline_s)
        if preempt and participants:
            deadline_s = min(await asyncio.gather(*(each.preempt_drain(deadline_s) for each in participants)))
        async with claimed(participants, "resume", deadline_s):
            try:
                return await together([(each, Resume()) for each in participants], deadline_s, self.ranks)
            finally:
                await Routing(self.router).open([each for each in participants if each.state is State.SERVING])

    # moves

    @move_of_ranks
    async def offload(
        self,
        tags: Iterable[Tag] | None = None,
        *,
        weights: Source | None = None,
        mode: PauseMode | None = None,
        engines: Selection = None,
        deadline_s: float | None = None,
    ) -> list[Transition]:
        """Every participant is released, proved: results of the releases. `deadline_s` bounds each phase.

        Routers close, all pause, all drain, and only then is any released. When some fail the others serve again
        (policy `on_failure="restore"`) before FleetError is raised; with "quarantine" it goes on without those that
        failed, where that puts no device in doubt, and `quarantined` names them. Cancelled, it leaves every engine
        where it is: `recover()`, then `onload()`; `offloaded()` does that by itself.
        """
        chosen, participants = self.participants(engines), self._taking_part(engines, "offload")
        named = None if tags is None else frozenset(tags)
        async with claimed(participants, "offload", deadline_s):
            goals = goals_of_offload(chosen, named, weights, mode or self.policy.pause_mode)
            move = self._move(chosen, deadline_s)
            return await move.offload(goals) if participants or self.ranks.votes else []

    @move_of_ranks
    async def onload(
        self,
        *,
        weights: Source | None = None,
        between: Between | None = None,
        between_deadline_s: float | None = None,
        overlap: bool = False,
        engines: Selection = None,
        deadline_s: float | None = None,
    ) -> list[Transition]:
        """Every participant serves: weights restored and updated from their named source, then KV, then resumed.

        `weights` names the source now. Without it an engine with none falls back to the last that was proved, else to
        what it was launched with. Refused before any call where nothing brings an engine the weights that are wanted.

        `between` is called once all weights are back and before any KV cache is (a trainer frees its weights there). An
        exception in it, or no end in `between_deadline_s`, fails the move: the engines stay weights_restored, and
        another `onload()` goes on from there.

        With `overlap` each engine goes from its weights to its KV cache at its own pace, without waiting for the
        others; all wait for each other before they resume. ConfigurationError where there is a step between, or a push.
        """
        chosen, participants = self.participants(engines), self._taking_part(engines, "onload")
        if between_deadline_s is not None:
            positive("between_deadline_s", between_deadline_s)
        async with claimed(participants, "onload", deadline_s):
            move = self._move(chosen, deadline_s)
            return await move.onload(between, weights=weights, between_deadline_s=between_deadline_s, overlap=overlap)

    @asynccontextmanager
    async def offloaded(
        self,
        tags: Iterable[Tag] | None = None,
        *,
        weights: Source | None = None,
        mode: PauseMode | None = None,
        engines: Selection = None,
        deadline_s: float | None = None,
    ) -> AsyncIterator[list[Transition]]:
        """Inside, the participants' memory is free for the trainer; after it they serve, with weights of `weights`.

        An exception inside, or a cancellation at any point, comes through once the fleet is back; what failed on the
        way is noted on it. EngineBusy where another window has one of the engines.
        """
        chosen = self.participants(engines)

        async def back(some: Sequence[Engine]) -> None:
            with self.ranks.alone():
                await self.onload(engines=some, deadline_s=deadline_s)

        with window_lock(chosen, self._in_windows):
            async with leased(self._taking_part(chosen, "offloaded"), "offloaded", deadline_s):
                before = {engine.name: engine.desired for engine in chosen}
                restored = partial(restore_on_error, chosen, back, deadline_s=deadline_s)
                async with restored(after=CANCELLED if self.policy.on_failure != "hold" else (), before=before):
                    released = await self.offload(
                        tags, weights=weights, mode=mode, engines=chosen, deadline_s=deadline_s
                    )
                async with restored(after=(BaseException,), before=before), self.ranks.window():
                    yield released
                async with restored(after=CANCELLED):
                    await self.onload(engines=chosen, deadline_s=deadline_s)

    async def recover(
        self,
        *,
        to: RecoverTo | None = None,
        weights: Source | None = None,
        engines: Selection = None,
        deadline_s: float | None = None,
    ) -> dict[str, Recovery]:
        """What was found of each engine that is failed, gone or in quarantine, all at once; of those named, of all.

        With `to` every participant (of those named) is then brought to that state, from where it was found; where one
        is not, its reason says why, and the others are not kept from it. `weights` as in `onload` and `offload`;
        without them, one that was started again is to serve the version that was named for the others, and one whose
        weights only the trainer can push is released. `deadline_s` bounds finding out (default 30 s) and each phase.

        It raises for none of them: where an engine cannot be asked, its reason says why.
        """
        check_deadline(deadline_s)
        limit_s = RECOVER_S if deadline_s is None else deadline_s
        if to is None:
            lost = [each for each in self.engines if each.state in UNCLAIMED or each.quarantined is not None]
            return await recovered(lost if engines is None else self._named(engines), limit_s)
        # Where some fail to be released the others are not brought back: they are to be released too.
        policy = replace(self.policy, on_failure="hold") if self.policy.on_failure == "restore" else self.policy
        held = Fleet(self.engines, groups=self.groups, router=self.router, policy=policy)
        moves: dict[str, Moves] = {State.SERVING: self.onload, State.RELEASED: held.offload}
        with self.ranks.alone():
            return await brought(self.participants(engines), self.engines, to, moves, weights, limit_s, deadline_s)

    # who takes part

    def participants(self, engines: Selection = None) -> list[Engine]:
        """The engines of a move, in the groups' order: those named (KeyError if unknown), of groups that offload.

        Those of them that are in quarantine are left out of it.
        """
        if engines is None:
            return [engine for engine in self.engines if engine.offloads]
        return [engine for engine in self._named(engines) if engine.offloads]

    def _taking_part(self, engines: Selection, what: str) -> list[Engine]:
        return taking_part(self.participants(engines), what)

    def _named(self, engines: Iterable[str | Engine]) -> list[Engine]:
        named = {self[each if isinstance(each, str) else each.name].name for each in engines}
        return [self[name] for name in sorted(named, key=self._place.__getitem__)]

    def waves(self, engines: Sequence[Engine]) -> list[list[Engine]]:
        """The engines in waves, each of groups that wait for the groups before."""
        return waves_of(engines, self.groups)

    def _move(self, chosen: Sequence[Engine], deadline_s: float | None) -> Move:
        check_deadline(deadline_s)
        return Move(
            [engine for engine in chosen if engine.quarantined is None],
            left_out=[engine for engine in chosen if engine.quarantined is not None],
            router=self.router,
            waves=self.waves,
            deadline_s=deadline_s,
            on_failure=self.policy.on_failure,
            ranks=self.ranks,
        )

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
