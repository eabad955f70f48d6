"""A scripted adapter under the eyes of the judge: everything that is sent is judged by the model, when it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from judge import STALE, Invariant, Judge, false_claim, fit_to_serve, still_held, untruths

from lifecycle import Call, Capabilities, Engine, Fact, Facts, Observation, Policy, Reply, State
from lifecycle.core.states import UNCLAIMED
from lifecycle.testing import Act, ScriptedAdapter

#: Answered as done without effect: what no evidence of this adapter could then show to be untrue.
UNSEEN_LIES = {
    "load": {Fact.CONTENTS, Fact.CACHE_FRESH},
    "push_tensor": {Fact.CONTENTS},
    "end_update": {Fact.CONTENTS},
    "flush": {Fact.CACHE_FRESH},
    "release": {Fact.MAPPED, Fact.CONTENTS, Fact.CACHE_FRESH},
}

#: Beside the tags that are mapped, an engine that is well holds no more than this.
THRESHOLD_BYTES = Policy().threshold_bytes

#: What a state claims something about.
CLAIMED = (Fact.ADMISSION, Fact.RUNNING, Fact.MAPPED)


class Watched(ScriptedAdapter):
    """Its `judge` is told when the library breaks an invariant on it."""

    def __init__(self, name: str, capabilities: Capabilities, judge: Judge, **how: Any) -> None:
        super().__init__(name, capabilities, **how)
        self.judge = judge
        #: What the engine should serve, and the process whose launched weights count, as the library was told.
        self.wanted: Callable[[], str | None] = lambda: None
        self.first_boot = self.engine.boot
        #: Others that have to be idle before this one is released, as long as they are in one move.
        self.together: list[Watched] = []
        #: The process that was known when the move began: one that took its place unseen is found out by its own guard.
        self.boot_before: str | None = None
        #: A call that is cancelled before it took effect takes effect later; else never.
        self.late_when_cancelled = True
        self.told_boot: str | None = None
        #: Whether it was resumed with what a live update kept on purpose.
        self.keeps_kv = False
        #: Whether the last barrier returned: what was observed without one may change.
        self.settled = True
        #: Effects of which nobody knows whether they come, with the process they were sent to.
        self.open_effects: list[tuple[Call, str]] = []
        self.lies: set[tuple[str, Fact]] = set()
        self.others: set[Fact] = set()
        #: What it told of since its present command began.
        self.told: set[Fact] = set()
        #: What the present command was lied to about: its proofs find out, unless its caller gives up before.
        self.unseen: set[Fact] = set()
        #: The processes that lived since it was asked last what they served.
        self._boots = {self.engine.boot}
        #: The calls that were sent to a process of which nobody could know yet that it is another one.
        self._astray: list[Call] = []
        self._sending: Call | None = None
        #: What was known when a caller gave up last: as long as nothing was learned since, nothing was found out.
        self._given_up_with: Facts | None = None
        self._reached = True

    # what the judge may excuse

    def excused(self, *facts: Fact) -> bool:
        """Whether the engine lied about one of these, unseen, or others changed it since it last told of it."""
        lied = any((self.engine.boot, fact) in self.lies for fact in facts)
        return lied or bool((self.others - self.told) & set(facts)) or self.replaced

    def may_still_come(self) -> list[str]:
        """The effects of which nobody knows whether they come, to the process that is there."""
        return [str(each) for each, boot in self.open_effects if boot == self.engine.boot]

    def ended(self, engine: Engine, *, gave_up: bool = False) -> None:
        """A command has ended: what it was told of the engine knows, where nobody gave up and it came to a claim."""
        if gave_up:
            self.told_boot = engine.facts.boot
        elif engine.state is not State.FAILED:
            self.others -= self.told
        self.told.clear()
        if gave_up:
            self._given_up_with = engine.facts
        elif engine.facts is not self._given_up_with:
            self.unseen.clear()

    @property
    def replaced(self) -> bool:
        """Whether the process is another one than the one that answered last, or has ended since."""
        return self.engine.boot != self.told_boot or not self.engine.alive

    def crimes(self) -> tuple[list[str], bool]:
        """What it served and should not have, since this was asked last; and whether that is excused."""
        crimes, self.engine.crimes = self.engine.crimes, []
        crimes = [each for each in crimes if not (self.keeps_kv and each == "served from a stale cache")]
        boots, self._boots = self._boots | {self.engine.boot}, {self.engine.boot}
        about = {Fact.ADMISSION, Fact.CONTENTS, Fact.CACHE_FRESH}
        lied = any(boot in boots and fact in about for boot, fact in self.lies)
        return crimes, lied or self.excused(*about)

    # the port

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        self._judge(call)
        if self.replaced:
            self._astray.append(call)
        self._sending, self._reached = call, False
        try:
            reply = await super().send(call, deadline_s=deadline_s)
        except BaseException:
            self._abandoned(call)
            raise
        finally:
            self._sending = None
        if reply.outcome == "lost" and not reply.refused:
            self.open_effects.append((call, self.engine.boot))
        return reply

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        seen = await super().observe(want, deadline_s=deadline_s)
        if seen.boot is not None:
            self.told_boot = seen.boot
        if seen.admission is not None:
            self.told.add(Fact.ADMISSION)
        if seen.running is not None:
            self.told.add(Fact.RUNNING)
        if seen.released_tags is not None:
            self.told |= {Fact.MAPPED, Fact.CONTENTS, Fact.CACHE_FRESH}
        return seen

    async def barrier(self, *, deadline_s: float) -> bool:
        self.settled = await super().barrier(deadline_s=deadline_s)
        if self.settled:
            self.open_effects.clear()
        return self.settled

    # judging

    def _judge(self, call: Call) -> None:
        where = f"{self.name}: {call} in {self.engine.boot}"
        still = self.may_still_come()
        self.judge.hold(Invariant.BARRIER_FIRST, not still, f"{where}, and {still} may still come")
        self.judge.hold(Invariant.ONE_AT_A_TIME, self._sending is None, f"{where} beside {self._sending}")
        checks = {"release": self._judge_release, "restore": self._judge_restore, "resume": self._judge_resume}
        if call.name in checks and not self.replaced and self.engine.reachable:
            checks[call.name](call, where)

    def _judge_release(self, call: Call, where: str) -> None:
        model, twice = self.engine, set(call.args["tags"]) & self.engine.unmapped
        idle = model.admission == "closed" and not model.running and not model.stubborn
        self.judge.hold(Invariant.RELEASED_IDLE, idle, f"{where}: {model.running} run, admission {model.admission}")
        self.judge.hold(Invariant.SENT_ONCE, not twice, f"{where}: twice", excuse=self.excused(Fact.MAPPED))
        for other in self.together:
            ready, replaced = other.engine.idle_and_closed(), other.engine.boot != other.boot_before
            ready |= not other.engine.alive
            self.judge.hold(Invariant.DRAINED_TOGETHER, ready, f"{where}; {other.name} is not drained", excuse=replaced)

    def _judge_restore(self, call: Call, where: str) -> None:
        once = set(call.args["tags"]) <= self.engine.unmapped
        self.judge.hold(Invariant.SENT_ONCE, once, f"{where}: not released", excuse=self.excused(Fact.MAPPED))

    def _judge_resume(self, call: Call, where: str) -> None:
        unseen = Fact.PAUSED_BY in self.others  # no observation tells how others paused it
        self.keeps_kv = self.engine.paused_by == "freeze" or unseen
        wrong = fit_to_serve(self.engine, self.wanted(), self.first_boot)
        excuse = self.excused(Fact.MAPPED, Fact.CONTENTS, Fact.CACHE_FRESH) or (unseen and wrong == STALE)
        self.judge.hold(Invariant.RESUMED_FIT, wrong is None, f"{where}: {wrong}", excuse=excuse)

    # what becomes of the calls

    def _affect(self, act: Act, call: Call) -> Reply | None:
        self._reached = True
        if act.effect == "never" and act.answer == "done":
            self._lied(call)
        if act.answer == "rejected" and act.effect == "now" and call.refusal_is_untouched:
            self.unseen |= set(call.effect)  # it refuses, and did it all the same
        if call.name == "load" and call.args["flush"] and self.engine.running:
            self._hides(Fact.CACHE_FRESH)  # it answers, and could not drop what requests hold that others let in unseen
        if call.name in ("pause", "resume") and act.effect == "now":
            self.others.discard(Fact.PAUSED_BY)
        with self._nobody_dies(call), self._bytes_that_mislead(call):
            return super()._affect(act, call)

    def _take_effect(self, call: Call) -> None:
        astray = any(each is call for each in self._astray)
        with self._nobody_dies(f"a late {call}", excuse=astray), self._bytes_that_mislead(call):
            super()._take_effect(call)

    @contextmanager
    def _bytes_that_mislead(self, call: Call) -> Iterator[None]:
        """What gave back next to nothing, or left more than the threshold behind, cannot be seen to be unmapped."""
        model, unmapped, before = self.engine, set(self.engine.unmapped), min(self.engine.bytes_by_device().values())
        yield
        now, each = min(model.bytes_by_device().values()), max(1, model.capabilities.ranks // len(set(model.devices)))
        gone = each * sum(model.sizes[tag] for tag in model.unmapped - unmapped)
        staying = each * sum(model.sizes[tag] for tag in set(model.sizes) - model.unmapped)
        if gone and model.alive and (abs(before - now) <= 0.1 * gone or now > staying + THRESHOLD_BYTES):
            self._hides(*UNSEEN_LIES["release"])

    def _lied(self, call: Call) -> None:
        self.unseen |= set(call.effect)
        seen = call.name == "load" and self.engine.label != call.args["version"] and self.engine.label_lie is None
        self._hides(*(() if seen else UNSEEN_LIES.get(call.name, ())))

    def _hides(self, *facts: Fact) -> None:
        self.lies |= {(self.engine.boot, fact) for fact in facts}
        self._boots.add(self.engine.boot)

    @contextmanager
    def _nobody_dies(self, what: object, *, excuse: bool = False) -> Iterator[None]:
        deaths, excuse = len(self.engine.deaths), excuse or self.excused(Fact.MAPPED, Fact.ADMISSION)
        yield
        why = self.engine.deaths[deaths:]
        self.judge.hold(Invariant.SENT_ONCE, not why, f"{self.name}: {what} ended it: {why}", excuse=excuse)

    def _abandoned(self, call: Call) -> None:
        """Its caller has gone: the engine may still do it."""
        self.open_effects.append((call, self.engine.boot))
        if not self._reached and self.late_when_cancelled and self.engine.alive and self.engine.reachable:
            self._late.append((1, call, self.engine.boot))


def judge_standing(judge: Judge, engine: Engine, adapter: Watched) -> None:
    """What must be so whenever nothing is under way."""
    judge.hold(Invariant.STABLE, engine.state.stable and engine.busy is None, repr(engine))
    claims = engine.state not in UNCLAIMED
    if claims and not adapter.replaced:
        judge.hold(Invariant.TRUE_FACTS, engine.facts.boot == adapter.engine.boot, f"{engine!r} is {adapter.told_boot}")
        false, excuse = false_claim(engine.state, adapter.engine), adapter.excused(*CLAIMED)
        judge.hold(Invariant.TRUE_FACTS, false is None, f"{engine!r}: {false}", excuse=excuse)
    if engine.facts.boot == adapter.engine.boot and (claims or adapter.settled):
        for fact, wrong in untruths(engine, adapter.engine).items():
            excuse = adapter.excused(fact) or (not claims and fact in adapter.unseen)
            judge.hold(Invariant.TRUE_FACTS, False, f"{engine!r}: {wrong}", excuse=excuse)
    if engine.memory_is_free:
        held = still_held(engine, adapter.engine)
        excuse = adapter.replaced or Fact.MAPPED in adapter.others
        judge.hold(Invariant.HANDED_OVER, held is None, f"{engine!r}: {held}", excuse=excuse)
