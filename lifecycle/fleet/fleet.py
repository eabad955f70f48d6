"""A fleet: engines in groups, moved together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Self

from ..core.advice import Recovery
from ..core.commands import Command, RestoreKV, RestoreWeights
from ..core.deadline import Deadline, Limit, seconds
from ..core.errors import ConfigurationError
from ..core.facts import PauseMode, Tag
from ..core.frozen import replace
from ..core.observer import Observer, Observers
from ..core.policy import Policy, positive
from ..core.ports import Agreement, ResidualProbe, Router, StateStore, TenantLedger
from ..core.sources import Source
from ..core.states import UNCLAIMED, State
from ..core.transition import Transition
from ..engine.engine import RECOVER_S, Engine
from ..engine.ensure import confirm
from ..engine.given import store_given
from ..engine.ownership import LeaseChoice, chosen_lease
from ..rules.ensured import ensurable, weights_for
from .between import Between
from .changes import Turns
from .claims import claimed, leased
from .connect import connected, member
from .course import check_in_time
from .groups import Group, by_engine
from .membership import Membership
from .move import Move
from .participants import Selection, in_turn
from .plans import Plan, goals_of, said_of, taking_part_by
from .preflight import check_deadline, not_there
from .ranks import Ranks, move_of_ranks
from .recovery import Moves, RecoverTo, brought, recovered
from .routing import router_of
from .steps import Steps
from .window import CANCELLED, Window, find_out, restore_on_error, window_lock


class Fleet(Steps, Membership):
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
        self._have(engines, groups or {})
        self.router = router_of(router, self.engines)
        self.policy = policy or Policy()
        self._in_windows: set[str] = set()
        self.ranks = Ranks(agreement)
        self._turns = Turns()

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

        def makes(url: str, among: dict[str, Group]) -> Engine:
            return member(url, among, router is not None, policy, heard, kept, probe, holder, tenants)

        members = [makes(url, known) for url in urls]
        fleet = cls(members, groups=known, router=router, policy=policy, agreement=agreement)
        fleet._makes = makes
        return fleet

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.aclose)
            await connected(self.engines)
            stack.pop_all()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    # moves

    @move_of_ranks
    @in_turn
    async def offload(
        self,
        tags: Iterable[Tag] | None = None,
        *,
        weights: Source | None = None,
        mode: PauseMode | None = None,
        plan: Plan | None = None,
        engines: Selection = None,
        deadline_s: Limit = None,
    ) -> list[Transition]:
        """Every participant is released, proved: results of the releases. `plan` says by group what differs.

        `deadline_s` bounds each phase; a `Deadline` bounds the phases of the move together, here and in `onload`.

        Routers close, all pause, all drain, and only then is any released. When some fail the others serve again
        (policy `on_failure="restore"`) before FleetError is raised; with "quarantine" it goes on without those that
        failed, where that puts no device in doubt, and `quarantined` names them. Cancelled, it leaves every engine
        where it is: `recover()`, then `onload()`; `offloaded()` does that by itself.
        """
        chosen = taking_part_by(plan, self.participants(engines), self.groups)
        participants, named = self._taking_part(chosen, "offload"), None if tags is None else frozenset(tags)
        async with claimed(participants, "offload", seconds(deadline_s)):
            goals = goals_of(chosen, plan, named, weights, mode or self.policy.pause_mode)
            move = self._move(chosen, deadline_s)
            return await move.offload(goals, said_of(plan)) if participants or self.ranks.votes else []

    @move_of_ranks
    @in_turn
    async def onload(
        self,
        *,
        weights: Source | None = None,
        between: Between | None = None,
        between_deadline_s: float | None = None,
        overlap: bool = False,
        engines: Selection = None,
        deadline_s: Limit = None,
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
        async with claimed(participants, "onload", seconds(deadline_s)):
            move = self._move(chosen, deadline_s)
            return await move.onload(between, weights=weights, between_deadline_s=between_deadline_s, overlap=overlap)

    @asynccontextmanager
    async def offloaded(
        self,
        tags: Iterable[Tag] | None = None,
        *,
        weights: Source | None = None,
        mode: PauseMode | None = None,
        plan: Plan | None = None,
        engines: Selection = None,
        deadline_s: float | None = None,
    ) -> AsyncIterator[Window]:
        """Inside, the participants' memory is free for the trainer; after it they serve, with weights of `weights`.

        The window that is yielded has steps that bring them back inside, one by one (`window.restore_weights()`);
        leaving it goes on from wherever they are. An exception inside, or a cancellation at any point, comes through
        once the fleet is back; what failed on the way is noted on it. EngineBusy where another window has an engine.
        """
        async with self.ranks.before("offload"), self._in_turn("offloaded", deadline_s):
            chosen = taking_part_by(plan, self.participants(engines), self.groups)
            window = self._window(chosen, tags, weights, mode, plan, deadline_s)
            async with window as opened:
                yield opened

    @asynccontextmanager
    async def _window(
        self,
        chosen: Sequence[Engine],
        tags: Iterable[Tag] | None,
        weights: Source | None,
        mode: PauseMode | None,
        plan: Plan | None,
        deadline_s: float | None,
    ) -> AsyncIterator[Window]:
        async def back(some: Sequence[Engine]) -> None:
            with self.ranks.alone():
                await self.onload(engines=some, deadline_s=deadline_s)

        with window_lock(chosen, self._in_windows):
            async with leased(self._taking_part(chosen, "offloaded"), "offloaded", deadline_s):
                before = {engine.name: engine.desired for engine in chosen}
                restored = partial(restore_on_error, chosen, back, deadline_s=deadline_s)
                async with restored(after=CANCELLED if self.policy.on_failure != "hold" else (), before=before):
                    began_s = time.monotonic()
                    released = await self.offload(
                        tags, weights=weights, mode=mode, plan=plan, engines=chosen, deadline_s=deadline_s
                    )
                there = [each for each in chosen if each.quarantined is None]
                window = Window(there, released, partial(self._restored, deadline_s), time.monotonic() - began_s)
                async with restored(after=(BaseException,), before=before), self.ranks.window():
                    try:
                        yield window
                    finally:
                        await window.left()
                async with restored(after=CANCELLED), self.ranks.way_back():
                    await find_out(window.engines, deadline_s)
                    await self.onload(engines=chosen, deadline_s=deadline_s)

    async def _restored(
        self,
        of_window_s: Limit,
        engines: Sequence[Engine],
        until: type[Command],
        weights: Source | Mapping[str, Source] | None,
        deadline_s: float | None,
    ) -> list[Transition]:
        """The step of a window: an onload of its engines that ends after a phase."""
        limit = of_window_s if deadline_s is None else deadline_s
        async with self.ranks.verb(f"window.{until.name}"):
            participants = self._taking_part(engines, until.name)
            named = by_engine(participants, weights, self.groups)
            async with claimed(participants, until.name, seconds(limit)):
                return await self._move(engines, limit).onload(weights=named, until=until)

    async def ensure(
        self,
        state: State | str,
        *,
        weights: Source | None = None,
        mode: PauseMode | None = None,
        engines: Selection = None,
        deadline_s: float,
    ) -> list[Transition]:
        """Every participant is in this state, on evidence, by then; the results of the last step that led there.

        Those that are there, as seen less than `Policy.evidence_max_age_s` ago or now, are sent nothing, and where all
        are the list is empty. The others are brought there by a move, or by steps where the state is between the two.
        `weights` are those to serve, or to come back with, for those too that are there already; for paused and drained
        there are none to name (ConfigurationError). FleetError names those that are not brought there from where they
        are, before anything is sent. A command, a move or another task's window that has an engine is waited for.
        ConfigurationError where the fleet has an `agreement`: ranks could not vote on what each does for its engines.
        """
        self.ranks.refuse("ensure")
        to, deadline = ensurable(state), Deadline(positive("deadline_s", deadline_s))
        weights_for(to, weights)
        async with self._in_turn("ensure", deadline):
            participants = self._taking_part(engines, f"ensure({to})")
            looks = True
            while looks or not all(engine.is_free for engine in participants):  # none of a window that has begun since
                looked = (confirm(engine, engine.policy, to, deadline) for engine in participants)
                for problem in await asyncio.gather(*looked, return_exceptions=True):
                    if isinstance(problem, BaseException):
                        raise problem
                looks = False
            away = not_there(participants, to, weights)
            check_in_time(away, f"ensure({to})", deadline)
            wanted = mode or self.policy.pause_mode
            match to if away else None:
                case None:
                    return []
                case State.SERVING:
                    return await self.onload(weights=weights, engines=away, deadline_s=deadline)
                case State.RELEASED:
                    return await self.offload(weights=weights, mode=wanted, engines=away, deadline_s=deadline)
                case State.PAUSED | State.DRAINED:
                    return await self._towards(to, away, wanted, deadline)
            until = RestoreWeights if to is State.WEIGHTS_RESTORED else RestoreKV
            return await self._restored(deadline, away, until, weights, None)

    @in_turn
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
        weights only the trainer can push is released. `deadline_s` bounds finding out (default 30 s) and each phase,
        and with `to` for how long the window of another task is waited for.

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

    def _move(self, chosen: Sequence[Engine], deadline_s: Limit) -> Move:
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
