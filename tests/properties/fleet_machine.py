"""A state machine of hypothesis: a fleet of two or three engines behind a router, and what can happen to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any
from unittest import mock

import journals
from drawn import COMMANDS, V1, V2, deadlines_s, patience, push, push_half, script, some_faults
from engine_machine import GRACE_S, POLICY, close, cut_short
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from judge import Invariant, Judge, still_held
from observed_engine import ObservedAdapter, judge_at_rest
from virtual_time import VirtualTime

from lifecycle import CommandRefused, Engine, Fact, Fleet, FleetError, Group, LifecycleError, Pushed, State, Transition
from lifecycle.core.policy import OnFailure
from lifecycle.fleet.move import Move
from lifecycle.testing import Journal, ScriptedRouter, capabilities, scripted

Verb = Callable[[Fleet, float], Coroutine[Any, Any, Any]]


def on_the_way_back(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wraps a method of Move: from its call on, the engines of the move need not be drained together."""

    async def begun(move: Move, *args: Any, **how: Any) -> Any:
        for engine in move.engines:
            engine.adapter.together = []
        return await method(move, *args, **how)

    return begun


BACK = {name: on_the_way_back(getattr(Move, name)) for name in ("_bring_back", "onload")}


async def away(fleet: Fleet, limit_s: float) -> None:
    """Offloads the fleet for 0.1 s."""
    async with fleet.offloaded(weights=V1, deadline_s=limit_s):
        await asyncio.sleep(0.1)


async def away_and_breaks(fleet: Fleet, limit_s: float) -> None:
    """Offloads the fleet; the training step raises."""
    async with fleet.offloaded(weights=V1, deadline_s=limit_s):
        raise ArithmeticError("the step diverged")


async def updated_by_hand(fleet: Fleet, limit_s: float) -> None:
    """Pushes weights inside `updating_weights`."""
    async with fleet.updating_weights("v3", deadline_s=limit_s) as engines:
        await push(engines)


VERBS: dict[str, Verb] = {
    "pause": lambda fleet, limit: fleet.pause(deadline_s=limit),
    "pause keep": lambda fleet, limit: fleet.pause("keep", deadline_s=limit),
    "drain": lambda fleet, limit: fleet.drain(deadline_s=limit),
    "release": lambda fleet, limit: fleet.release(weights=V1, deadline_s=limit),
    "restore_weights": lambda fleet, limit: fleet.restore_weights(deadline_s=limit),
    "update v1": lambda fleet, limit: fleet.update_weights(V1, deadline_s=limit),
    "update v2": lambda fleet, limit: fleet.update_weights(V2, force=True, deadline_s=limit),
    "push": lambda fleet, limit: fleet.update_weights(Pushed(push, "v4"), deadline_s=limit),
    "push half": lambda fleet, limit: fleet.update_weights(Pushed(push_half, "v5"), deadline_s=limit),
    "updating_weights": updated_by_hand,
    "restore_kv": lambda fleet, limit: fleet.restore_kv(deadline_s=limit),
    "resume": lambda fleet, limit: fleet.resume(deadline_s=limit),
    "offload": lambda fleet, limit: fleet.offload(weights=V1, deadline_s=limit),
    "offload kv": lambda fleet, limit: fleet.offload(["kv_cache"], weights=V1, deadline_s=limit),
    "onload": lambda fleet, limit: fleet.onload(deadline_s=limit),
    "offloaded": away,
    "offloaded, and it breaks": away_and_breaks,
}
MOVES = ["offload", "onload", "offloaded", "offload kv"]
GROUPS = {"prefill": Group(), "decode": Group(drain_after=("prefill",))}

engines_ = st.integers(0, 2)


class FleetMachine(RuleBasedStateMachine):
    """The rules are what the trainer, the engines, the router and other drivers may do."""

    tally: Counter[str] = Counter()

    @initialize(
        size=st.integers(2, 3),
        waves=st.booleans(),
        cancellable=st.booleans(),
        on_failure=st.sampled_from(["restore", "quarantine"]),
    )
    def launch(
        self, size: int = 2, waves: bool = False, cancellable: bool = True, on_failure: OnFailure = "restore"
    ) -> None:
        journals.another_world()
        self.policy = replace(POLICY, on_failure=on_failure)
        self.time, self.judge, self.journal = VirtualTime(), Judge(), Journal()
        self.adapters: list[ObservedAdapter] = []
        engines = [self.new_engine(number, waves, cancellable) for number in range(size)]
        self.router = ScriptedRouter(self.journal)
        self.fleet = Fleet(engines, groups=GROUPS if waves else None, router=self.router, policy=self.policy)
        self.time.run(self.fleet.__aenter__())
        for engine, adapter in zip(self.in_order(), self.adapters, strict=True):
            adapter.ended(engine)

    def new_engine(self, number: int, waves: bool, cancellable: bool) -> Engine:
        able = capabilities(cancellable=cancellable)
        adapter = ObservedAdapter(f"e{number}", able, self.judge, journal=self.journal)
        self.adapters.append(adapter)
        group = ("prefill" if number else "decode") if waves else "default"
        engine = scripted(adapter, policy=self.policy, group=group, has_router=True)
        adapter.wanted = lambda: engine.desired.version
        adapter.believed = lambda: engine.facts
        return engine

    # the trainer

    def do(self, work: Coroutine[Any, Any, Any], patience: float | None = None, *, together: bool = False) -> Any:
        """Runs the verb and returns the exception that it raised, if any."""
        for engine, adapter in zip(self.in_order(), self.adapters, strict=True):
            adapter.boot_before = engine.facts.boot
            adapter.together = [each for each in self.adapters if each is not adapter] if together else []
        with mock.patch.multiple(Move, **BACK):
            ended = self.time.run(cut_short(work, patience))
        for engine, adapter in zip(self.in_order(), self.adapters, strict=True):
            adapter.together = []
            adapter.ended(engine, gave_up=isinstance(ended, asyncio.CancelledError))
        self.judge_served()  # before the next verb: what excuses this one may be known by then
        known = (LifecycleError, FleetError, asyncio.CancelledError, ArithmeticError)
        if ended is not None and not isinstance(ended, known):
            raise ended
        return ended

    def in_order(self) -> list[Engine]:
        return [self.fleet[adapter.name] for adapter in self.adapters]

    @rule(
        what=st.sampled_from(sorted(VERBS)), whom=engines_, faults=some_faults, limit_s=deadlines_s, patience=patience
    )
    def together(
        self, what: str, whom: int = 0, faults: Any = (), limit_s: float = 4.0, patience: float | None = None
    ) -> None:
        """A verb of the fleet while calls of one engine fail as drawn."""
        script(self.adapters[whom % len(self.adapters)], faults)
        self.do(VERBS[what](self.fleet, limit_s), patience, together=what.startswith("offload"))

    @rule(what=st.sampled_from(MOVES))
    def move(self, what: str) -> None:
        """A move without new faults: a healthy fleet must complete it."""
        calm = not any(adapter._scripts for adapter in self.adapters)
        calm = calm and self.well() and self.states() == {State.SERVING} and self.router.close_fails is None
        ended = self.do(VERBS[what](self.fleet, 30.0), together=what.startswith("offload"))
        if ended is None:
            self.arrived(what)
        elif calm:
            self.judge.hold(Invariant.SERVES_AGAIN, False, f"{what} of a fleet that is well: {ended!r}")

    def arrived(self, what: str) -> None:
        """Checks the states, routers and memory after a move that succeeded, on those that it did not leave out.

        All are on one device: one that it left out has to be gone.
        """
        goal = State.RELEASED if what.startswith("offload") and what != "offloaded" else State.SERVING
        self.judge.hold(Invariant.SERVES_AGAIN, self.states() == {goal}, f"{what}: {self.fleet!r}")
        for engine in self.fleet:
            if engine.quarantined is not None:
                alive = goal is State.RELEASED and engine.adapter.engine.alive
                self.judge.hold(Invariant.HANDED_OVER, not alive, f"{what}: {engine!r} is in quarantine, and lives")
                self.tally["asked: a move goes on without an engine only where that is gone"] += 1
                continue
            closed = engine.name in self.router.closed
            self.judge.hold(Invariant.SERVES_AGAIN, closed is (goal is State.RELEASED), f"{what}: router of {engine!r}")
            if what == "offload":
                self.judge.hold(Invariant.HANDED_OVER, engine.memory_is_free, f"{what}: {engine!r}")
                held = still_held(engine, engine.adapter.engine)
                self.judge.hold(Invariant.HANDED_OVER, held is None, f"{what}: {engine!r}: {held}")

    def states(self) -> set[State]:
        return {engine.state for engine in self.fleet if engine.quarantined is None}

    def well(self) -> bool:
        """Whether no engine has a fault or was externally modified."""
        return all(
            adapter.engine.reachable and adapter.engine.alive and not adapter.engine.stubborn
            and adapter.engine.frees and not adapter.engine.leak_bytes and not adapter.false_replies
            and not adapter.externally_modified and not adapter.replaced
            for adapter in self.adapters
        )  # fmt: skip

    @rule(whom=engines_, what=st.sampled_from(sorted(COMMANDS)), turns=st.integers(1, 30))
    def while_it_moves(self, whom: int, what: str, turns: int) -> None:
        """A second caller commands one engine while the fleet offloads, and is refused."""

        async def both() -> None:
            move = asyncio.ensure_future(self.fleet.offload(weights=V1, deadline_s=4.0))
            for _ in range(turns):
                await asyncio.sleep(0)
            engine = self.in_order()[whom % len(self.adapters)]
            if engine.in_move:
                before = (engine.state, engine.facts, len(self.journal))
                refused = await raised(COMMANDS[what](engine, 4.0))
                after = (engine.state, engine.facts, len(self.journal))
                self.judge.hold(Invariant.ONE_AT_A_TIME, isinstance(refused, CommandRefused), f"{what}: {refused!r}")
                self.judge.hold(Invariant.ONE_AT_A_TIME, before == after, f"{what}: refused, and changed")
            await move

        self.do(both(), together=True)

    @rule(whom=engines_, faults=some_faults)
    def recover(self, whom: int = 0, faults: Any = ()) -> None:
        """One engine is recovered."""
        number = whom % len(self.adapters)
        script(self.adapters[number], faults)
        began_s = self.time.clock()
        self.do(self.in_order()[number].recover(deadline_s=4.0))
        self.judge.hold(Invariant.IN_TIME, self.time.clock() - began_s <= 4.0 + GRACE_S, "recover")

    @rule()
    def recover_all(self) -> None:
        """Every failed engine is recovered."""
        for engine in self.fleet:
            if engine.state in (State.FAILED, State.GONE):
                self.do(engine.recover(deadline_s=4.0))

    # the engines and other drivers

    @rule(whom=engines_, requests=st.integers(1, 3))
    def requests_arrive(self, whom: int = 0, requests: int = 1) -> None:
        adapter = self.adapters[whom % len(self.adapters)]
        if adapter.name not in self.router.closed:
            adapter.engine.submit(requests)

    @rule(whom=engines_)
    def it_restarts(self, whom: int = 0) -> None:
        self.adapters[whom % len(self.adapters)].engine.restart()

    @rule(whom=engines_, opens=st.booleans())
    def somebody_else_restores(self, whom: int = 0, opens: bool = False) -> None:
        """Another driver restores what is released, and may open the engine."""
        adapter = self.adapters[whom % len(self.adapters)]
        if not adapter.engine.alive or not adapter.engine.unmapped:
            return
        adapter.externally_modified |= set(Fact) - {Fact.BOOT, Fact.ROUTED, Fact.CHECKSUM}
        adapter.engine.apply("restore", {"tags": sorted(adapter.engine.unmapped)})
        if opens:
            adapter.engine.apply("resume", {})

    @rule(whom=engines_, frees=st.booleans())
    def its_releases(self, whom: int = 0, frees: bool = True) -> None:
        self.adapters[whom % len(self.adapters)].engine.frees = frees

    @rule(fails=st.booleans())
    def the_router(self, fails: bool = False) -> None:
        """Closing the router fails from here on, or works again."""
        self.router.close_fails = LifecycleErrorOf("the router is down") if fails else None

    # the judge

    @invariant()
    def judged(self) -> None:
        if not hasattr(self, "fleet"):
            return
        self.tally["rules run"] += 1
        for engine, adapter in zip(self.in_order(), self.adapters, strict=True):
            self.judge.hold(Invariant.STABLE, engine.in_move is None, f"{engine!r} in {engine.in_move}")
            judge_at_rest(self.judge, engine, adapter)
        self.judge_served()
        self.judge.check()

    def judge_served(self) -> None:
        for engine, adapter in zip(self.in_order(), self.adapters, strict=True):
            violations, excuse = adapter.served_violations()
            self.judge.hold(Invariant.SERVED_FIT, not violations, f"{engine!r}: {violations}", excuse=excuse)

    def teardown(self) -> None:
        if hasattr(self, "time"):
            close(self.time, self.judge, self.tally)


class LifecycleErrorOf(ArithmeticError):
    """Raised by the scripted router."""


async def raised(work: Awaitable[Transition]) -> BaseException | None:
    """Returns what the verb raised, or None."""
    try:
        await work
    except Exception as error:
        return error
    return None
