"""A scripted adapter that checks the invariants of `judge.Invariant` on every call, against the state of the model.

The checks read the model (`ScriptedEngine`), never what the library believes. Where no evidence could have shown the
truth to the library, the judge counts the broken invariant as excused; `excused` says when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from judge import STALE, Invariant, Judge, false_claim, false_facts, fit_to_serve, still_held

from lifecycle import Call, Capabilities, Engine, Fact, Facts, Grade, Observation, Policy, Reply, State
from lifecycle.core.states import UNCLAIMED
from lifecycle.core.verdicts import REQUESTS_RUN, Verdict
from lifecycle.testing import Act, ScriptedAdapter

#: By call: the facts about which an answer without an effect is false, and no evidence of this adapter shows it.
UNDETECTABLE = {
    "load": {Fact.CONTENTS, Fact.CACHE_FRESH},
    "push_tensor": {Fact.CONTENTS},
    "end_update": {Fact.CONTENTS},
    "flush": {Fact.CACHE_FRESH},
    "release": {Fact.MAPPED, Fact.CONTENTS, Fact.CACHE_FRESH},
}

POLICY = Policy()

#: Bytes that a healthy engine may hold beside its mapped tags.
THRESHOLD_BYTES = POLICY.threshold_bytes

#: What may be something else once somebody else has closed or opened the engine.
MEMORY = {Fact.MAPPED, Fact.CONTENTS, Fact.CACHE_FRESH}

#: The facts that a state claims.
CLAIMED = (Fact.ADMISSION, Fact.RUNNING, Fact.MAPPED)


class ObservedAdapter(ScriptedAdapter):
    """Drives a scripted engine and notes in `judge` every invariant that the library breaks on it."""

    def __init__(self, name: str, capabilities: Capabilities, judge: Judge, **how: Any) -> None:
        super().__init__(name, capabilities, **how)
        self.judge = judge
        #: Returns the version that the engine should serve, as the library has it.
        self.wanted: Callable[[], str | None] = lambda: None
        #: The boot of the first process: only its launched weights count as valid.
        self.first_boot = self.engine.boot
        #: The other participants of the present move: they must be idle before this engine is released.
        self.together: list[ObservedAdapter] = []
        #: The boot that the library knew when the move began; the guards of an engine detect its replacement.
        self.boot_before: str | None = None
        #: Whether a call that is cancelled before its effect takes effect later. False: it never does.
        self.late_when_cancelled = True
        #: The boot that the last answer named.
        self.reported_boot: str | None = None
        #: Whether the engine was resumed with the KV cache that a live update kept on purpose.
        self.keeps_kv = False
        #: Whether the last barrier returned; what was observed without one may still change.
        self.barrier_returned = True
        #: Calls that may still take effect, each with the boot that it was sent to.
        self.open_effects: list[tuple[Call, str]] = []
        #: The facts about which each boot answered falsely without evidence of it.
        self.false_replies: set[tuple[str, Fact]] = set()
        #: The facts that were modified externally since the engine last reported them.
        self.externally_modified: set[Fact] = set()
        #: Returns what the library knows of the engine.
        self.believed: Callable[[], Facts] = Facts
        #: Whether an admission was seen that no call of the library explains, since its present command began.
        self.others_seen = False
        #: Whether no call that opens or closes the engine was sent since it was last observed, or found in a state.
        self._admission_left_alone = True
        #: The facts that the engine reported since its present command began.
        self.reported: set[Fact] = set()
        #: The facts about which the present command got a false reply; its proofs detect it, unless it is cancelled.
        self.not_yet_detected: set[Fact] = set()
        #: The boots that were alive since `served_violations` was called last.
        self._boots = {self.engine.boot}
        #: The calls that were sent to a process before anything showed that it had been replaced.
        self._sent_to_replaced: list[Call] = []
        self._sending: Call | None = None
        #: The facts when a command was cancelled last. While they stand, no proof has run since.
        self._facts_when_cancelled: Facts | None = None
        self._reached = True

    # what the judge may excuse

    def excused(self, *facts: Fact, sending: bool = False) -> bool:
        """Whether no evidence could show one of these facts: a false reply, an external change, a replaced process.

        Where a call is sent, what the library only asserts of the memory must be borne out by what is resident.
        """
        false = any((self.engine.boot, fact) in self.false_replies for fact in facts)
        unseen = self.externally_modified - self.reported
        unseen -= MEMORY if self.others_seen else {Fact.MAPPED} if sending and self._denied_by_bytes() else set()
        return false or bool(unseen & set(facts)) or self.replaced

    def _denied_by_bytes(self) -> bool:
        """Whether less is resident, as can be read, than the tags hold that the library only asserts to be mapped."""
        basis, model = self.believed().basis.get(Fact.MAPPED), self.engine
        if basis is None or basis.grade is not Grade.ASSERTED or self.probe.always or self.probe.blind:
            return False
        mapped = [tag for tag, known in self.believed().mapped.items() if known]
        each = max(1, model.capabilities.ranks // len(set(model.devices)))
        return min(model.bytes_by_device().values()) < 0.9 * each * sum(model.sizes[tag] for tag in mapped)

    def may_still_come(self) -> list[str]:
        """The calls that may still take effect in the present process."""
        return [str(each) for each, boot in self.open_effects if boot == self.engine.boot]

    def ended(self, engine: Engine, *, gave_up: bool = False) -> None:
        """Notes the end of a command. What was reported counts as known unless it was cancelled or has failed."""
        if gave_up:
            self.reported_boot = engine.facts.boot
        elif engine.state is not State.FAILED:
            self.externally_modified -= self.reported
            self._admission_left_alone = True  # its end showed how the calls of the command left it
        if self.others_seen and not gave_up and engine.state is not State.FAILED:
            self.externally_modified -= MEMORY
        self.others_seen = False
        self.reported.clear()
        if gave_up:
            self._facts_when_cancelled = engine.facts
        elif engine.facts is not self._facts_when_cancelled:
            self.not_yet_detected.clear()

    @property
    def replaced(self) -> bool:
        """Whether the process that answered last has ended or was replaced."""
        return self.engine.boot != self.reported_boot or not self.engine.alive

    def served_violations(self) -> tuple[list[str], bool]:
        """What the engine served wrongly since the last call of this method, and whether that is excused."""
        violations, self.engine.violations = self.engine.violations, []
        violations = [each for each in violations if not (self.keeps_kv and each == "served from a stale cache")]
        boots, self._boots = self._boots | {self.engine.boot}, {self.engine.boot}
        about = {Fact.ADMISSION, Fact.CONTENTS, Fact.CACHE_FRESH}
        false = any(boot in boots and fact in about for boot, fact in self.false_replies)
        return violations, false or self.excused(*about)

    # the port

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Checks the invariants of this call, and sends it."""
        self._judge(call)
        if self.replaced:
            self._sent_to_replaced.append(call)
        self._sending, self._reached = call, False
        self._admission_left_alone &= Fact.ADMISSION not in call.effect
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
        """Notes which facts the engine reported."""
        seen = await super().observe(want, deadline_s=deadline_s)
        if seen.boot is not None:
            self.reported_boot = seen.boot
        if seen.admission is not None:
            self.reported.add(Fact.ADMISSION)
            known = self.believed()
            explained = not self._admission_left_alone or known.admission in (None, seen.admission)
            explained &= not (seen.running and known.running == 0 and known.admission == "closed")
            self.others_seen |= not explained and seen.boot == self.believed().boot
            self._admission_left_alone = True
        if seen.running is not None:
            self.reported.add(Fact.RUNNING)
        if seen.released_tags is not None:  # tags that were released and restored in between are as they were
            self.reported |= {Fact.MAPPED} if seen.released_tags == self.believed().unmapped() else MEMORY
        return seen

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """Notes whether requests were seen to run that no call of the library let in."""
        verdict = await super().prove_idle(facts, deadline_s=deadline_s)
        known, run = self.believed(), verdict.figures.get(REQUESTS_RUN, False)
        idle_and_closed = known.running == 0 and known.admission == "closed"
        self.others_seen |= run and idle_and_closed and self.engine.boot == known.boot == self.reported_boot
        return verdict

    async def barrier(self, *, deadline_s: float) -> bool:
        """Notes whether the barrier returned: then no call is open."""
        self.barrier_returned = await super().barrier(deadline_s=deadline_s)
        if self.barrier_returned:
            self.open_effects.clear()
        return self.barrier_returned

    # checks before a call

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
        self.judge.hold(
            Invariant.SENT_ONCE, not twice, f"{where}: twice", excuse=self.excused(Fact.MAPPED, sending=True)
        )
        for other in self.together:
            ready, replaced = other.engine.idle_and_closed(), other.engine.boot != other.boot_before
            ready |= not other.engine.alive
            self.judge.hold(Invariant.DRAINED_TOGETHER, ready, f"{where}; {other.name} is not drained", excuse=replaced)

    def _judge_restore(self, call: Call, where: str) -> None:
        once = set(call.args["tags"]) <= self.engine.unmapped
        self.judge.hold(
            Invariant.SENT_ONCE, once, f"{where}: not released", excuse=self.excused(Fact.MAPPED, sending=True)
        )

    def _judge_resume(self, call: Call, where: str) -> None:
        unseen = Fact.PAUSED_BY in self.externally_modified  # no observation reports the mode of somebody else's pause
        self.keeps_kv = self.engine.paused_by == "freeze" or unseen
        wrong = fit_to_serve(self.engine, self.wanted(), self.first_boot)
        excuse = self.excused(Fact.MAPPED, Fact.CONTENTS, Fact.CACHE_FRESH) or (unseen and wrong == STALE)
        self.judge.hold(Invariant.RESUMED_FIT, wrong is None, f"{where}: {wrong}", excuse=excuse)

    # the effect of a call

    def _affect(self, act: Act, call: Call) -> Reply | None:
        self._reached = True
        if act.effect == "never" and act.answer == "done":
            self._answered_falsely(call)
        if act.answer == "rejected" and act.effect == "now" and call.refusal_is_untouched:
            self.not_yet_detected |= set(call.effect)  # it answers that nothing changed, and the call took effect
        if call.name == "load" and call.args["flush"] and self.engine.running:
            self._undetectable(Fact.CACHE_FRESH)  # requests that others admitted keep their part of the prefix cache
        if act.effect == "now":
            own = {"pause": {Fact.PAUSED_BY}, "resume": {Fact.PAUSED_BY}, "load": {Fact.CONTENTS, Fact.CACHE_FRESH}}
            self.externally_modified -= own.get(call.name, set())
        with self._process_survives(call), self.misleading_bytes():
            return super()._affect(act, call)

    def _take_effect(self, call: Call) -> None:
        replaced = any(each is call for each in self._sent_to_replaced)
        with self._process_survives(f"a late {call}", excuse=replaced), self.misleading_bytes():
            super()._take_effect(call)

    @contextmanager
    def misleading_bytes(self) -> Iterator[None]:
        """Excuses a release whose bytes hide it: less than 10 % came back, or more than the threshold stayed."""
        model, unmapped, before = self.engine, set(self.engine.unmapped), min(self.engine.bytes_by_device().values())
        yield
        now, each = min(model.bytes_by_device().values()), max(1, model.capabilities.ranks // len(set(model.devices)))
        gone = each * sum(model.sizes[tag] for tag in model.unmapped - unmapped)
        staying = each * sum(model.sizes[tag] for tag in set(model.sizes) - model.unmapped)
        if gone and model.alive and (abs(before - now) <= 0.1 * gone or now > staying + THRESHOLD_BYTES):
            self._undetectable(*UNDETECTABLE["release"])

    def _answered_falsely(self, call: Call) -> None:
        self.not_yet_detected |= set(call.effect)
        seen = call.name == "load" and self.engine.label != call.args["version"] and self.engine.false_label is None
        self._undetectable(*(() if seen else UNDETECTABLE.get(call.name, ())))
        if call.name == "restore" and not self.reports_tags and not any(map(self._visible, call.args["tags"])):
            self._undetectable(Fact.MAPPED)

    def _visible(self, tag: str) -> bool:
        """Whether the bytes of this tag are enough to be measured."""
        return self.engine.sizes[tag] >= max(
            POLICY.visible_bytes, POLICY.visible_fraction * sum(self.engine.sizes.values())
        )

    def _undetectable(self, *facts: Fact) -> None:
        self.false_replies |= {(self.engine.boot, fact) for fact in facts}
        self._boots.add(self.engine.boot)

    @contextmanager
    def _process_survives(self, what: object, *, excuse: bool = False) -> Iterator[None]:
        deaths, excuse = len(self.engine.deaths), excuse or self.excused(Fact.MAPPED, Fact.ADMISSION)
        yield
        why = self.engine.deaths[deaths:]
        self.judge.hold(Invariant.SENT_ONCE, not why, f"{self.name}: {what} ended it: {why}", excuse=excuse)

    def _abandoned(self, call: Call) -> None:
        """Notes that the caller was cancelled: the call may still take effect."""
        self.open_effects.append((call, self.engine.boot))
        if not self._reached and self.late_when_cancelled and self.engine.alive and self.engine.reachable:
            self._late.append((1, call, self.engine.boot))


def judge_at_rest(judge: Judge, engine: Engine, adapter: ObservedAdapter) -> None:
    """Checks the invariants that hold whenever no command runs."""
    judge.hold(Invariant.STABLE, engine.state.stable and engine.busy is None, repr(engine))
    claims = engine.state not in UNCLAIMED
    if claims and not adapter.replaced:
        same_boot = engine.facts.boot == adapter.engine.boot
        judge.hold(Invariant.TRUE_FACTS, same_boot, f"{engine!r} is {adapter.reported_boot}")
        false, excuse = false_claim(engine.state, adapter.engine), adapter.excused(*CLAIMED)
        judge.hold(Invariant.TRUE_FACTS, false is None, f"{engine!r}: {false}", excuse=excuse)
    if engine.facts.boot == adapter.engine.boot and (claims or adapter.barrier_returned):
        for fact, wrong in false_facts(engine, adapter.engine).items():
            excuse = adapter.excused(fact) or (not claims and fact in adapter.not_yet_detected)
            judge.hold(Invariant.TRUE_FACTS, False, f"{engine!r}: {wrong}", excuse=excuse)
    if engine.memory_is_free:
        held = still_held(engine, adapter.engine)
        excuse = adapter.replaced or Fact.MAPPED in adapter.externally_modified
        judge.hold(Invariant.HANDED_OVER, held is None, f"{engine!r}: {held}", excuse=excuse)
