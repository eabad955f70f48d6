"""What was observed serves again while it is young, in one move, and where no call since could have changed it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rig import V1, fleet_of, serving
from virtual_time import virtually

from lifecycle import Fact, Fleet, FleetError
from lifecycle.core.calls import Call, Reply
from lifecycle.core.observation import Observation
from lifecycle.engine.gather import EVERYTHING, observe
from lifecycle.rules.freshness import Observed
from lifecycle.testing import QUICK, Act, Journal

DONE = Reply("done")
SEEN = Observation(
    boot="b", alive=True, admission="closed", released_tags=frozenset(), weights_label="v1", sampled_at=10.0
)
WANT = frozenset({Fact.BOOT, Fact.ADMISSION, Fact.CLOSED, Fact.MAPPED, Fact.CONTENTS})

PAUSE = Call("pause", effect={Fact.ADMISSION: "closed", Fact.RUNNING: None}, repeatable=True)
FLUSH = Call("flush", effect={Fact.CACHE_FRESH: True}, repeatable=True)
RELEASE = Call("release", effect={Fact.MAPPED: {"weights": False}, Fact.CONTENTS: {"weights": None}})
RESTORE = Call("restore", effect={Fact.MAPPED: {"weights": True}})
LOAD = Call("load", effect={Fact.CONTENTS: {"weights": None}}, repeatable=True)
RESUME = Call("resume", effect={Fact.ADMISSION: "open"}, repeatable=True)
PUSH = Call("push_tensor")


def observed(report: Observation = SEEN, at_s: float = 10.0) -> Observed:
    return Observed().after(WANT, report, at_s)


@pytest.mark.parametrize(
    ("call", "to_ask"),
    [
        (PAUSE, {Fact.ADMISSION, Fact.CLOSED}),
        (FLUSH, set()),
        (RELEASE, {Fact.MAPPED, Fact.CONTENTS, Fact.BOOT}),
        (RESTORE, {Fact.MAPPED}),
        (LOAD, {Fact.CONTENTS}),
        (RESUME, {Fact.ADMISSION, Fact.CLOSED, Fact.BOOT}),
        (PUSH, WANT),
    ],
    ids=lambda each: each.name if isinstance(each, Call) else "",
)
def test_a_call_ends_what_it_could_have_changed(call: Call, to_ask: set[Fact]) -> None:
    assert observed().after_call(call, DONE).to_ask(WANT, 10.1, 2.0) == to_ask


@pytest.mark.parametrize("reply", [None, Reply("lost"), Reply("rejected", status=500)])
def test_nothing_serves_after_a_call_of_which_it_is_not_known_what_became(reply: Reply | None) -> None:
    assert observed().after_call(FLUSH, reply).to_ask(WANT, 10.1, 2.0) == WANT


def test_it_serves_for_as_long_as_it_is_young() -> None:
    assert observed().to_ask(WANT, 11.9, 2.0) == frozenset()
    assert observed().to_ask(WANT, 12.0, 2.0) == WANT
    assert observed().to_ask(WANT, 10.0, 0.0) == WANT, "where nothing serves again"


def test_what_has_half_of_the_age_is_asked_with_what_must_be_asked() -> None:
    paused = observed().after_call(PAUSE, DONE)
    assert paused.to_ask(WANT, 10.9, 2.0) == {Fact.ADMISSION, Fact.CLOSED}
    assert paused.to_ask(WANT, 11.0, 2.0) == WANT


@pytest.mark.parametrize("fact", [Fact.RUNNING, Fact.CHECKSUM])
def test_what_changes_by_itself_is_always_asked(fact: Fact) -> None:
    everything = Observed().after(EVERYTHING | {fact}, replace(SEEN, running=0), 10.0)
    assert everything.to_ask(frozenset({fact}), 10.0, 2.0) == {fact}


def test_it_is_joined_with_what_served_before() -> None:
    before, asked = observed().after_call(PAUSE, DONE), frozenset({Fact.ADMISSION, Fact.CLOSED})
    now = Observation(alive=True, admission="open", running=3, sampled_at=11.0)
    assert before.serving(WANT, asked, now) == replace(SEEN, admission="open", running=3, sampled_at=11.0)
    after = before.after(asked, now, 11.0)
    assert replace(after.report, sampled_at=10.0) == replace(SEEN, admission="open")
    assert after.to_ask(WANT, 12.5, 2.0) == WANT, "the boot was asked for at 10"


def test_an_answer_says_more_than_what_served_before() -> None:
    now = Observation(boot="b", alive=True, admission="open")
    assert observed().serving(WANT, frozenset({Fact.BOOT}), now).admission == "open"
    assert observed().after(frozenset({Fact.BOOT}), now, 11.0).report.admission == "open"


@pytest.mark.parametrize(
    "now",
    [
        Observation(detail="no answer"),
        Observation(alive=False, detail="pid 7 has ended"),
        Observation(boot="b", alive=True, others=("c",)),
    ],
    ids=["silent", "ended", "two of them"],
)
def test_without_one_process_that_answers_nothing_serves(now: Observation) -> None:
    asked = frozenset({Fact.BOOT})
    assert observed().serving(WANT, asked, now) == now
    assert observed().after(asked, now, 11.0) == Observed()


def test_of_another_process_nothing_serves_that_was_seen_before() -> None:
    asked = frozenset({Fact.BOOT})
    after = observed().after(asked, Observation(boot="c", alive=True), 11.0)
    assert after.to_ask(WANT, 11.0, 2.0) == WANT - {Fact.BOOT}


# in moves


async def moved(**how: Any) -> tuple[Fleet, Journal]:
    fleet, journal = await fleet_of("a", **how)
    journal.clear()
    return fleet, journal


def looks(journal: Journal) -> list[str]:
    """What a cycle asked and sent, in order; an observation is "observe"."""
    names = {"call": lambda entry: entry.name, "observe": lambda entry: "observe", "idle": lambda entry: "idle"}
    names["answers"] = lambda entry: "answers"
    return [names[entry.kind](entry) for entry in journal if entry.kind in names]


OFFLOAD = ["observe", "pause", "observe", "idle", "idle", "release", "release", "observe"]
ONLOAD = [
    *("observe", "restore", "observe", "observe", "load", "observe"),  # checksums before and after the load
    *("restore", "flush", "observe", "resume", "observe", "answers"),
]


async def test_an_engine_that_does_not_say_what_it_holds_is_asked_whether_it_is_there_after_a_load() -> None:
    silent = frozenset(Fact) - {Fact.CONTENTS, Fact.CHECKSUM}
    fleet, journal = await moved(caps={"a": {"observable": silent, "reports_released": False}})
    await fleet.offload(weights=V1)
    journal.clear()
    await fleet.onload()
    seen = looks(journal)
    assert seen[seen.index("load") + 1] == "observe", seen


async def test_after_a_step_of_the_caller_the_engine_is_looked_at_again() -> None:
    """It may have done anything to the engines, a restart among it."""
    fleet, journal = await moved()
    await fleet.offload(weights=V1)
    journal.clear()
    await fleet.onload(between=lambda: None)
    assert looks(journal).count("observe") == ONLOAD.count("observe") + 1


async def test_within_a_move_what_proved_one_command_serves_the_guards_of_the_next() -> None:
    fleet, journal = await moved()
    await fleet.offload(weights=V1)
    assert looks(journal) == OFFLOAD
    journal.clear()
    await fleet.onload()
    assert sorted(looks(journal)) == sorted(ONLOAD)


async def test_with_an_age_of_nothing_every_look_is_made() -> None:
    fleet, journal = await moved(policy=replace(QUICK, evidence_max_age_s=0))
    await fleet.offload(weights=V1)
    assert looks(journal).count("observe") == 6


async def test_nothing_older_than_a_move_lets_anybody_in() -> None:
    fleet, _ = await moved()
    await fleet.offload(weights=V1)
    fleet["a"].adapter.engine.apply("resume", {})
    with pytest.raises(FleetError, match="admission is open"):
        await fleet.onload()


async def test_a_command_outside_of_moves_looks_for_itself() -> None:
    engine = await serving("e")
    await engine.pause()
    engine.adapter.engine.apply("resume", {})
    with pytest.raises(Exception, match="admission is open"):
        await engine.drain()


def test_what_is_old_is_asked_again_within_a_move() -> None:
    async def slow() -> None:
        fleet, journal = await fleet_of("a", "b", policy=replace(QUICK, evidence_max_age_s=0.1))
        fleet["b"].adapter.engine.stubborn = 300  # its drain takes longer than what is known of the other stays young
        opens = Act(then=lambda model: model.apply("resume", {}))
        fleet["a"].adapter.script("prove_idle", opens)
        with pytest.raises(FleetError, match="admission is open"):
            await fleet.offload(weights=V1)
        assert not any(call.startswith("release") for call in journal.calls("a"))
        assert fleet["a"].adapter.engine.alive

    virtually(slow())


async def test_a_proof_that_is_asked_again_looks_again() -> None:
    fleet, journal = await moved()
    fleet["a"].adapter.engine.stubborn = 3
    await fleet.offload(weights=V1)
    assert looks(journal).count("observe") == OFFLOAD.count("observe") + 3


async def test_what_is_forgotten_while_it_is_looked_at_stays_forgotten() -> None:
    engine = await serving("e")
    session = engine._session
    engine.adapter.script("observe", Act(then=lambda model: session.forget_observed()))
    await observe(session, EVERYTHING, deadline_s=1)
    assert session.observed == Observed()
    await observe(session, EVERYTHING, deadline_s=1)
    assert session.observed.report.boot == "e-boot-1"


async def test_what_an_adapter_has_no_read_for_is_not_asked_for() -> None:
    engine = await serving("e", caps={"observable": frozenset({Fact.BOOT, Fact.ADMISSION})})
    asked: list[frozenset[Fact]] = []
    look = engine.adapter.observe

    async def noted(want: frozenset[Fact], *, deadline_s: float) -> Observation:
        asked.append(want)
        return await look(want, deadline_s=deadline_s)

    engine.adapter.observe = noted
    await engine.pause()
    assert asked == [frozenset({Fact.BOOT, Fact.ADMISSION}), frozenset({Fact.ADMISSION})]


async def test_nothing_that_was_observed_is_kept_once_a_move_has_ended() -> None:
    fleet, _ = await moved()
    await fleet.offload(weights=V1)
    assert fleet["a"]._session.observed == Observed()
