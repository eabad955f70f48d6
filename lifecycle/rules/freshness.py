"""Freshness: what was observed serves again while it is young and nothing that was sent since could have changed it.

The observation that proved one command is the one that the guards of the next would make. Each fact of it has an age of
its own, since each call changes facts of its own: after a pause the admission is asked for again, and the boot is not.
What may serve, and for how long:

- within one move, or one command outside of moves (`Session.forget_observed`): what is older than a move lets nobody
  in;
- for `Policy.evidence_max_age_s` from when it was asked for. Where something has to be asked anyway, whatever has half
  of that age is asked with it: it costs no time then;
- a fact until a call is sent whose effect names it, and all of them until a call of which it is not known what became;
- the boot also until a call after which an engine may end although it answered: a release, after which requests would
  run in memory that is gone, and a resume, after which they run. A call that was answered did not end the process.

What changes without any call of ours is never used twice: how many requests run, and what an idle proof or a generated
token said. Nor is a checksum: it is asked for where weights were moved. All of this is pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..core.calls import Call, Reply
from ..core.facts import Fact
from ..core.frozen import EMPTY, FrozenMap, replace
from ..core.observation import Observation

#: The parts of an observation that tell a fact, for the facts that serve again.
_REPORTED_BY: Mapping[Fact, tuple[str, ...]] = {
    Fact.BOOT: ("boot", "alive"),
    Fact.ADMISSION: ("admission",),
    Fact.CLOSED: ("admission",),
    Fact.MAPPED: ("released_tags",),
    Fact.CONTENTS: ("weights_label",),
}


@dataclass(frozen=True, slots=True)
class Observed:
    """What was observed of an engine last, and when each fact of it was asked for (seconds, monotonic)."""

    report: Observation = field(default_factory=Observation)
    asked_at_s: Mapping[Fact, float] = EMPTY

    def to_ask(self, want: frozenset[Fact], now_s: float, max_age_s: float) -> frozenset[Fact]:
        """The facts that have to be asked for, with those that have half of the age; empty where all serve."""
        if not self.asked_at_s:
            return want
        asked_at_s = [self.asked_at_s.get(fact, -math.inf) for fact in want]
        if now_s - min(asked_at_s, default=math.inf) < max_age_s:
            return frozenset()
        return frozenset([fact for fact, at_s in zip(want, asked_at_s, strict=True) if now_s - at_s >= max_age_s / 2])

    def serving(self, want: frozenset[Fact], asked: frozenset[Fact], report: Observation) -> Observation:
        """What is known of the wanted facts: what `report` says of those `asked` for, and of the others what served.

        Where nothing answered, or not one process alone, nothing that was known before is about it.
        """
        unasked = want - asked
        if not unasked or (asked and not _answered(report)):
            return report
        parts = [part for fact in unasked for part in _REPORTED_BY[fact]]
        return replace(report, **{part: getattr(self.report, part) for part in parts if getattr(report, part) is None})

    def after(self, asked: frozenset[Fact], report: Observation, asked_at_s: float) -> Observed:
        """What serves once this was observed. Of a process that is another one than before nothing does but that."""
        if not _answered(report):
            return NOTHING_OBSERVED
        facts = [
            fact
            for fact, (part, *_) in _REPORTED_BY.items()
            if fact in asked or (fact is not Fact.CLOSED and getattr(report, part) is not None)
        ]
        now = dict.fromkeys(facts, asked_at_s)
        if not self.asked_at_s or report.boot not in (None, self.report.boot):
            return Observed(report, FrozenMap(now))
        parts = {part: getattr(report, part) for fact in facts for part in _REPORTED_BY[fact]}
        return Observed(replace(self.report, **parts), FrozenMap({**self.asked_at_s, **now}))

    def after_call(self, call: Call, reply: Reply | None) -> Observed:
        """What serves still once this call was answered so; None: it is not known what became of it."""
        if reply is None or reply.outcome != "done" or not (call.effect or call.repeatable):
            return NOTHING_OBSERVED
        changed = set(call.effect)
        if Fact.ADMISSION in changed:
            changed.add(Fact.CLOSED)
        if call.effect.get(Fact.ADMISSION) == "open" or False in call.effect.get(Fact.MAPPED, {}).values():
            changed.add(Fact.BOOT)
        if changed.isdisjoint(self.asked_at_s):
            return self
        ages_s = {fact: at_s for fact, at_s in self.asked_at_s.items() if fact not in changed}
        return replace(self, asked_at_s=FrozenMap(ages_s))


#: Of an engine that was not looked at since its command or move began.
NOTHING_OBSERVED = Observed()


def _answered(report: Observation) -> bool:
    """Whether one process answered, and no other."""
    return (report.alive is True or report.boot is not None) and not report.others
