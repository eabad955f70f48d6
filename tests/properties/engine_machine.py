"""A state machine of hypothesis: one engine, everything that can happen to it, on a simulated clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import journals
from drawn import COMMANDS, SHAPES, V1, acts, deadlines_s, patience, script, some_faults
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from judge import Invariant, Judge
from observed_engine import ObservedAdapter, judge_at_rest
from virtual_time import VirtualTime

from lifecycle import CommandRefused, Engine, EngineBusy, InvalidTransition, OperationFailed, Policy, State
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command, UpdateWeights
from lifecycle.core.deadline import LOOK_S
from lifecycle.core.facts import Fact
from lifecycle.core.verdicts import Unmeasurable
from lifecycle.rules.planner import Goal, next_command
from lifecycle.testing import capabilities, scripted

POLICY = Policy(settle_s=1.0, poll_s=0.2)
#: Every look at an engine is given LOOK_S even where the deadline has passed; settling takes at most five.
GRACE_S = LOOK_S * 5

Ended = BaseException | None


async def cut_short(work: Coroutine[Any, Any, object], patience: float | None) -> Ended:
    """Returns what the work raised; it is cancelled after `patience` turns of the loop (int) or seconds (float)."""
    task = asyncio.ensure_future(work)
    if isinstance(patience, int):
        for _ in range(patience):
            await asyncio.sleep(0)
    elif patience is not None:
        await asyncio.wait([task], timeout=patience)
    gave_up = patience is not None and task.cancel()
    await asyncio.wait([task])
    if gave_up:
        assert task.cancelled(), "a cancellation did not reach its caller"
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def carry_out(engine: Engine, command: Command, limit_s: float) -> Coroutine[Any, Any, object]:
    """Executes a command of the planner."""
    if isinstance(command, UpdateWeights):
        return engine.update_weights(command.source, deadline_s=limit_s)  # type: ignore[arg-type]
    return engine.execute(command, deadline_s=limit_s)


def close(world: VirtualTime, judge: Judge, tally: Counter[str]) -> None:
    """Ends an example and adds its checks to the tally."""
    world.close()
    tally["examples"] += 1
    for each, times in judge.asked.items():
        tally[f"asked: {each}"] += times
    tally["excused"] += judge.excused.total()


class EngineMachine(RuleBasedStateMachine):
    """The rules are what a caller, the engine and other drivers may do."""

    tally: Counter[str] = Counter()

    @initialize(
        shape=st.sampled_from(sorted(SHAPES)),
        reports_tags=st.booleans(),
        reports_admission=st.sampled_from([True, True, False]),
        cancellable=st.sampled_from([True, True, False]),
        ranks=st.sampled_from([1, 2]),
        late=st.booleans(),
    )
    def launch(
        self,
        shape: str = "weights and kv",
        reports_tags: bool = False,
        reports_admission: bool = True,
        cancellable: bool = True,
        ranks: int = 1,
        late: bool = True,
    ) -> None:
        journals.another_world()
        self.time, self.judge = VirtualTime(), Judge()
        able: Capabilities = capabilities(*SHAPES[shape], cancellable=cancellable, ranks=ranks)
        self.adapter = ObservedAdapter("e", able, self.judge)
        self.adapter.reports_tags, self.adapter.reports_admission = reports_tags, reports_admission
        self.adapter.late_when_cancelled = late
        self.model = self.adapter.engine
        self.engine = scripted(self.adapter, policy=POLICY)
        self.adapter.wanted = lambda: self.engine.desired.version
        self.adapter.believed = lambda: self.engine.facts
        self.time.run(self.engine.connect())
        self.adapter.ended(self.engine)

    # the caller

    def do(self, work: Coroutine[Any, Any, object], limit_s: float, patience: float | None = None) -> Ended:
        """Runs the verb, checks the invariants of its end, and returns what it raised, if anything."""
        before = (self.engine.state, self.engine.facts, len(self.adapter.journal.calls()))
        began_s = self.time.clock()
        ended = self.time.run(cut_short(work, patience))
        took_s = self.time.clock() - began_s
        self.adapter.ended(self.engine, gave_up=isinstance(ended, asyncio.CancelledError))
        self.judge_served()  # before the next command: what excuses this one may be known by then
        self.judge.hold(Invariant.IN_TIME, took_s <= limit_s + GRACE_S, f"{took_s:.2f} s of {limit_s} s: {ended!r}")
        after = (self.engine.state, self.engine.facts, len(self.adapter.journal.calls()))
        if isinstance(ended, CommandRefused):
            # A release of what is released already verifies the engine, and that may find it elsewhere.
            verified = before[0] is State.RELEASED and ended.command == "release"
            self.judge.hold(Invariant.ONE_AT_A_TIME, before == after or verified, f"refused, and changed: {ended}")
        elif isinstance(ended, OperationFailed):
            self.judge.hold(Invariant.STABLE, ended.settled is self.engine.state, f"{self.engine!r}: {ended}")
        elif isinstance(ended, asyncio.CancelledError):
            as_it_was = self.engine.state in (before[0], State.FAILED, State.GONE)
            self.judge.hold(Invariant.STABLE, as_it_was, f"cancelled in {before[0]}, and now {self.engine!r}")
        elif ended is not None:
            raise ended
        return ended

    @rule(faults=some_faults, limit_s=deadlines_s, patience=patience, home=st.booleans())
    def onwards(
        self, faults: Any = (), limit_s: float = 4.0, patience: float | None = None, home: bool = False
    ) -> None:
        """The planner's next command, towards released or serving."""
        goal = Goal(State.SERVING, weights=self.engine.desired.source) if home else Goal(State.RELEASED, None, V1)
        command = next_command(self.engine.view(), goal)
        if command is not None:
            script(self.adapter, faults)
            self.do(carry_out(self.engine, command, limit_s), limit_s, patience)

    @rule(steps=st.integers(1, 6), home=st.booleans())
    def some_way(self, steps: int = 6, home: bool = False) -> None:
        """Several commands of the planner, without new faults."""
        for _ in range(steps):
            self.onwards(home=home)

    @rule(steps=st.integers(1, 6), home=st.booleans())
    def all_is_well_again(self, steps: int = 6, home: bool = False) -> None:
        """Ends all faults, recovers and moves on; otherwise most examples would stay at their first fault."""
        self.adapter.as_modelled()
        self.model.reachable, self.model.stubborn = True, 0
        self.its_releases()
        self.model.finish()
        if not self.model.alive:
            self.model.restart()
        self.recover()
        self.some_way(steps, home)

    @rule(steps=st.integers(0, 3), act=acts, which=st.integers(0, 2), patience=patience)
    def trouble_on_the_way_home(
        self, steps: int = 2, act: str = "LIE", which: int = 0, patience: float | None = None
    ) -> None:
        """One call of an onload fails, and the engine is commanded to serve at once."""
        self.all_is_well_again()
        self.some_way(steps, home=True)
        self.onwards_with_trouble(act, which, home=True, patience=patience)
        self.command("resume")

    @rule(
        what=st.sampled_from(["release", "release kv", "release weights", "release kept"]),
        update=st.booleans(),
        call=st.sampled_from(["restore", "flush"]),
        act=acts,
    )
    def trouble_after_a_release(
        self, what: str = "release kv", update: bool = False, call: str = "flush", act: str = "LOST"
    ) -> None:
        """Some memory is released; the last call before the engine is told to serve fails."""
        self.all_is_well_again(home=True)
        self.some_way(2)
        for each in (what, "restore_weights", *["update v1"] * update):
            self.command(each)
        self.command("restore_kv", faults=[(call, act)])
        self.command("resume")

    @rule(act=acts, which=st.integers(0, 2), home=st.booleans(), limit_s=deadlines_s, patience=patience)
    def onwards_with_trouble(
        self, act: str, which: int = 0, home: bool = False, limit_s: float = 4.0, patience: float | None = None
    ) -> None:
        """The planner's next command, one call of which fails."""
        goal = Goal(State.SERVING, weights=self.engine.desired.source) if home else Goal(State.RELEASED, None, V1)
        command = next_command(self.engine.view(), goal)
        calls = self.adapter.plan(command, self.engine.facts) if command else ()
        self.onwards([(call.name, act) for call in calls[which : which + 1]], limit_s, patience, home)

    @rule(what=st.sampled_from(sorted(COMMANDS)), faults=some_faults, limit_s=deadlines_s, patience=patience)
    def command(self, what: str, faults: Any = (), limit_s: float = 4.0, patience: float | None = None) -> None:
        """Any command in any state."""
        script(self.adapter, faults)
        self.do(COMMANDS[what](self.engine, limit_s), limit_s, patience)

    @rule(faults=some_faults, patience=patience)
    def recover(self, faults: Any = (), patience: float | None = None) -> None:
        """The engine is recovered."""
        script(self.adapter, faults)
        self.do(self.engine.recover(deadline_s=4.0), 4.0, patience)

    @rule(faults=some_faults, patience=patience)
    def verify(self, faults: Any = (), patience: float | None = None) -> None:
        """The state is verified."""
        script(self.adapter, faults)
        self.do(self.engine.verify(deadline_s=4.0), 4.0, patience)

    @rule(first=st.sampled_from(sorted(COMMANDS)), second=st.sampled_from(sorted(COMMANDS)), turns=st.integers(1, 6))
    def interfere(self, first: str, second: str, turns: int) -> None:
        """A second caller gives a command while the first one's runs, and is refused."""

        async def both() -> Ended:
            task = asyncio.ensure_future(COMMANDS[first](self.engine, 4.0))
            for _ in range(turns):
                await asyncio.sleep(0)
            if not task.done():
                self.refused_at_once(COMMANDS[second](self.engine, 4.0))
            await asyncio.wait([task])
            return task.exception()

        self.do_both(both())

    def do_both(self, both: Coroutine[Any, Any, Ended]) -> None:
        """Runs both callers; the first may fail."""
        ended = self.time.run(both)
        self.adapter.ended(self.engine)
        if ended is not None and not isinstance(ended, CommandRefused | OperationFailed):
            raise ended

    def refused_at_once(self, work: Coroutine[Any, Any, object]) -> None:
        """Checks that the command raises EngineBusy before its first await and changes nothing."""
        before = (self.engine.state, self.engine.facts, len(self.adapter.journal), self.engine.busy)
        try:
            work.send(None)
        except EngineBusy:
            after = (self.engine.state, self.engine.facts, len(self.adapter.journal), self.engine.busy)
            self.judge.hold(Invariant.ONE_AT_A_TIME, before == after, "EngineBusy, and changed")
            return
        except CommandRefused as refused:
            self.judge.hold(Invariant.ONE_AT_A_TIME, False, f"a second caller got {refused!r}")
            return
        self.judge.hold(Invariant.ONE_AT_A_TIME, False, "a second caller was let in")
        work.close()

    @precondition(lambda self: self.engine.state is State.FAILED and not self.adapter.excused(*Fact))
    @rule()
    def declare_the_truth(self) -> None:
        """An operator asserts the true state, where the truth is one."""
        model = self.model
        if not model.idle_and_closed() or model.stubborn or self.engine.facts.boot != model.boot:
            return
        weights = self.engine.capabilities.stage("weights")
        states = {
            frozenset(): State.PAUSED,
            frozenset(model.sizes): State.RELEASED,
            frozenset(model.sizes) - weights: State.WEIGHTS_RESTORED,
        }
        state = states.get(frozenset(model.unmapped))
        still = self.adapter.may_still_come()
        with suppress(InvalidTransition):
            if state is not None:
                self.engine.override_state(state, by="the test", reason="it is so")
                self.judge.hold(Invariant.BARRIER_FIRST, not still, f"declared {state}, and {still} may still come")

    # the engine and other drivers

    @rule(requests=st.integers(1, 3))
    def requests_arrive(self, requests: int = 1) -> None:
        self.model.submit(requests)

    @rule()
    def requests_end(self) -> None:
        self.model.finish()

    @rule(more=st.sampled_from([1, 3, -1]), drains=st.booleans())
    def a_request_will_not_end(self, more: int = 1, drains: bool = False) -> None:
        """The idle proof finds a running request so many more times; -1: always. The engine may be drained at once."""
        if not self.model.running:
            self.requests_arrive()
        if self.model.running:
            self.model.stubborn = more
        if drains:
            self.some_way(2)

    @rule()
    def it_dies(self) -> None:
        self.model.die("killed by a rule")

    @rule()
    def it_restarts(self) -> None:
        self.model.restart()

    @rule(reachable=st.booleans())
    def the_network(self, reachable: bool = False) -> None:
        self.model.reachable = reachable

    @precondition(lambda self: self.adapter.reports_admission)
    @rule(what=st.sampled_from(["resume", "abort", "freeze"]))
    def somebody_else_acts(self, what: str = "resume") -> None:
        """Another driver opens or closes the admission."""
        self.adapter.externally_modified |= {Fact.ADMISSION, Fact.RUNNING, Fact.PAUSED_BY}
        if what == "resume":
            self.model.apply("resume", {})
        else:
            self.model.apply("pause", {"mode": what})

    @precondition(lambda self: self.adapter.reports_admission and not self.model.stubborn)
    @rule(
        released=st.sampled_from(["", "kv", "weights", "all"]),
        restored=st.booleans(),
        loads=st.booleans(),
        opens=st.booleans(),
        closes=st.booleans(),
    )
    def somebody_else_drives(
        self,
        released: str = "all",
        restored: bool = False,
        loads: bool = False,
        opens: bool = False,
        closes: bool = True,
    ) -> None:
        """Another driver goes a part of the ring, or all of it, with weights of the same label."""
        if not self.model.alive or (not closes and not self.model.idle_and_closed()):
            return
        self.adapter.externally_modified |= {Fact.ADMISSION, Fact.RUNNING, Fact.PAUSED_BY}
        self.adapter.externally_modified |= {Fact.MAPPED, Fact.CONTENTS, Fact.CACHE_FRESH}
        with self.adapter.misleading_bytes():
            if closes:
                self.model.apply("pause", {"mode": "abort"})
            tags = set(self.model.sizes) if released == "all" else self.engine.capabilities.stage(released or "kv")
            self.model.apply("release", {"tags": sorted(tags - self.model.unmapped) if released else []})
            if restored:
                self.model.apply("restore", {"tags": sorted(self.model.unmapped)})
        if loads and not self.model.unmapped:
            self.model.apply("load", {"path": "/models/others", "version": self.model.label, "flush": True})
        if opens:
            self.model.apply("resume", {})

    @precondition(lambda self: self.adapter.reports_admission)
    @rule(requests=st.integers(1, 3))
    def somebody_else_lets_requests_in(self, requests: int = 2) -> None:
        """Another driver opens the admission, requests arrive, and the driver pauses by freeze."""
        self.somebody_else_acts("resume")
        self.requests_arrive(requests)
        self.somebody_else_acts("freeze")

    @precondition(lambda self: self.adapter.reports_admission)
    @rule(requests=st.integers(0, 3))
    def somebody_else_acts_before_a_release(self, requests: int = 1) -> None:
        """Another driver acts between a drain and the release that follows: it lets requests in, or releases all."""
        self.some_way(2)
        if self.engine.state is State.DRAINED:
            if requests:
                self.somebody_else_lets_requests_in(requests)
            else:
                self.somebody_else_drives("all", closes=False)
            self.judged()  # what the other driver has served counts as its own, until the engine is observed
            self.onwards()

    @precondition(lambda self: self.adapter.reports_tags and self.model.idle_and_closed())
    @rule(kv=st.booleans())
    def somebody_else_releases(self, kv: bool = False) -> None:
        """Another driver releases mapped memory."""
        stage = self.engine.capabilities.stage("kv" if kv else "weights")
        self.adapter.externally_modified |= {Fact.MAPPED, Fact.CONTENTS, Fact.CACHE_FRESH}
        self.model.apply("release", {"tags": sorted(stage - self.model.unmapped)})

    @rule(frees=st.booleans(), leak_gib=st.sampled_from([0, 1, 6]))
    def its_releases(self, frees: bool = True, leak_gib: int = 0) -> None:
        """Releases free what they acknowledge, or leave bytes behind, or free nothing, from here on."""
        self.model.frees, self.model.leak_bytes = frees, leak_gib << 30

    @rule(reads=st.integers(1, 3))
    def the_probe_is_blind(self, reads: int = 1) -> None:
        self.adapter.probe.script(*[Unmeasurable(reason="no permission")] * reads)

    # the judge

    @invariant()
    def judged(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.tally["rules run"] += 1
        judge_at_rest(self.judge, self.engine, self.adapter)
        self.judge_served()
        self.judge.check()

    def judge_served(self) -> None:
        violations, excuse = self.adapter.served_violations()
        self.judge.hold(Invariant.SERVED_FIT, not violations, f"{self.engine!r}: {violations}", excuse=excuse)

    def teardown(self) -> None:
        if hasattr(self, "time"):
            close(self.time, self.judge, self.tally)
