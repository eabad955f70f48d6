"""What was observed serves again while it is young, in one move, and where no call since could have changed it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from rig import V1, fleet_of, serving
from virtual_time import virtually

from lifecycle import Fact, Fleet, FleetError, Kept, NotProved, Pushed, Release, RestoreWeights, UpdateWeights
from lifecycle.core.calls import PUSH as PUSHED
from lifecycle.core.calls import Call, Reply
from lifecycle.core.observation import Observation
from lifecycle.core.readings import Reading
from lifecycle.core.verdicts import Unmeasurable
from lifecycle.engine.collective import Collective
from lifecycle.engine.gather import EVERYTHING, gather, observe
from lifecycle.rules.freshness import Observed
from lifecycle.testing import KEPT_WEIGHTS, KV_CACHE, QUICK, Act, Journal

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


# what is resident

HELD = Reading({"gpu-0": 10}, (), "a test")
LATER = Reading({"gpu-0": 10}, (), "a test")


def proved(at_s: float = 10.0) -> Observed:
    return observed().after_proved(HELD, at_s)


def test_what_was_resident_serves_for_as_long_as_it_is_young() -> None:
    assert observed().resident(10.0, 2.0) is None
    assert proved().resident(11.9, 2.0) is HELD
    assert proved().resident(12.0, 2.0) is None
    assert proved().resident(10.0, 0.0) is None, "where nothing serves again"


def test_a_reading_that_served_again_is_no_younger_and_a_later_one_is() -> None:
    assert proved().after_proved(HELD, 11.0).resident(12.0, 2.0) is None
    assert proved().after_proved(LATER, 11.0).resident(12.0, 2.0) is LATER
    assert proved().after_proved(Unmeasurable(reason="a test"), 11.0) == proved()


@pytest.mark.parametrize("call", [PAUSE, FLUSH, RELEASE, RESTORE, LOAD, RESUME, PUSH], ids=lambda each: each.name)
@pytest.mark.parametrize("reply", [DONE, Reply("lost"), None], ids=lambda each: each.outcome if each else "cancelled")
def test_no_reading_serves_after_a_call(call: Call, reply: Reply | None) -> None:
    assert proved().after_call(call, reply).resident(10.1, 2.0) is None


def test_a_reading_is_kept_while_one_process_answers_and_is_let_go_with_it() -> None:
    asked = frozenset({Fact.BOOT})
    assert proved().after(asked, Observation(boot="b", alive=True), 11.0).resident(11.0, 2.0) is HELD
    for now in (Observation(boot="c", alive=True), Observation(detail="no answer"), Observation(alive=False)):
        assert proved().after(asked, now, 11.0).resident(11.0, 2.0) is None


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


# readings of memory in moves


async def kept(**policy: Any) -> tuple[Fleet, Journal]:
    """A fleet of one engine that keeps its weights through a release, released."""
    caps = {"a": {"tags": (KEPT_WEIGHTS, KV_CACHE)}}
    fleet, journal = await fleet_of("a", caps=caps, policy=replace(QUICK, **policy))
    await fleet.offload(weights=Kept())
    journal.clear()
    return fleet, journal


def sent_and_read(journal: Journal) -> list[str]:
    """The calls, the idle proofs and the readings of memory, in order."""
    names = {"call": lambda entry: entry.name, "residual": lambda entry: "read", "idle": lambda entry: "idle"}
    return [names[entry.kind](entry) for entry in journal if entry.kind in names]


READ_ONCE_BETWEEN = ["read", "restore", "read", "restore", "flush", "read", "resume"]
READ_ANEW = ["read", "restore", "read", "read", "restore", "flush", "read", "resume"]


async def test_what_is_resident_after_a_restore_serves_the_next_command_of_the_move() -> None:
    fleet, journal = await kept()
    await fleet.onload()
    assert sent_and_read(journal) == READ_ONCE_BETWEEN


async def test_with_an_age_of_nothing_it_is_read_anew() -> None:
    fleet, journal = await kept(evidence_max_age_s=0)
    await fleet.onload()
    assert sent_and_read(journal) == READ_ANEW


async def test_after_a_step_of_the_caller_it_is_read_anew() -> None:
    fleet, journal = await kept()
    await fleet.onload(between=lambda: None)
    assert sent_and_read(journal) == READ_ANEW


async def test_after_a_load_it_is_read_anew() -> None:
    fleet, journal = await moved()
    await fleet.offload(weights=V1)
    journal.clear()
    await fleet.onload()
    load = ["read", "restore", "read", "load", "read", "restore", "flush", "read", "resume"]
    assert sent_and_read(journal) == load


async def test_outside_of_moves_every_command_reads_for_itself() -> None:
    fleet, journal = await kept()
    await fleet["a"].restore_weights()
    await fleet["a"].restore_kv()
    assert sent_and_read(journal) == READ_ANEW[:-1]


async def test_a_restore_of_another_between_two_commands_is_found_where_nothing_serves_again() -> None:
    """With an age it is found once the engine has ended of being sent it twice: ADR 20 says what that costs."""
    fleet, _ = await kept(evidence_max_age_s=0)
    adapter: Any = fleet["a"].adapter
    read = adapter.probe.read

    async def then_another_restores(*args: Any, **how: Any) -> Any:
        reading = await read(*args, **how)
        if adapter.engine.unmapped == {"kv_cache"}:
            adapter.probe.read = read
            adapter.engine.apply("restore", {"tags": ["kv_cache"]})
        return reading

    adapter.probe.read = then_another_restores
    with pytest.raises(FleetError, match=r"kv_cache holds .*externally modified"):
        await fleet.onload()
    assert adapter.engine.alive


async def test_an_idle_proof_ends_what_was_read_before_it() -> None:
    """It drops the prefix cache: what goes with that must not count as what a release gave back."""
    fleet, journal = await kept()
    engine = fleet["a"]
    with engine.claimed_for("onload"):
        await engine.execute(RestoreWeights(), for_move=True)
        await engine.execute(Release(weights=Kept()), for_move=True)
    assert sent_and_read(journal) == ["read", "restore", "read", "idle", "read", "release", "read"]


async def test_a_push_ends_what_was_read_before_it() -> None:
    """Also where no call of ours begins or ends it."""
    fleet, _ = await moved()
    engine: Any = fleet["a"]
    session, plan, during = engine._session, engine.adapter.plan, list[Any]()

    async def push(engines: Any) -> None:
        during.append(session.observed.reading)

    def only_pushes(command: Any, facts: Any) -> tuple[Call, ...]:
        calls: tuple[Call, ...] = plan(command, facts)
        return (PUSHED,) if PUSHED in calls else calls

    engine.adapter.plan = only_pushes
    pushed = Pushed(push, "v1")
    await fleet.offload(weights=pushed)
    with engine.claimed_for("onload"):
        await engine.execute(RestoreWeights(), for_move=True)
        assert session.observed.reading is not None
        with suppress(NotProved):  # nothing says that the push loaded anything
            collective = Collective(pushed, [engine])
            await engine.execute(UpdateWeights(pushed), for_move=True, collective=collective)
    assert during == [None]


async def test_of_an_engine_that_failed_it_is_read_anew() -> None:
    fleet, _ = await kept()
    engine = fleet["a"]
    with engine.claimed_for("onload"):
        await engine.execute(RestoreWeights(), for_move=True)
        assert engine._session.observed.reading is not None
        engine._session.go("contradicted", reason="a test")
        assert engine._session.observed.reading is None


async def test_a_proof_that_is_asked_again_reads_again() -> None:
    """A reading serves a proof before which nothing was sent; not where that proof did not hold."""
    fleet, journal = await kept()
    engine = fleet["a"]
    with engine.claimed_for("onload"):
        await engine.execute(RestoreWeights(), for_move=True)
        evidence = [await gather_residual(engine, again=again) for again in (False, True)]
    assert evidence[0] is not evidence[1]
    assert sent_and_read(journal) == ["read", "restore", "read", "read"]


async def gather_residual(engine: Any, *, again: bool) -> Any:
    kinds = frozenset({"residual"})
    return (await gather(engine._session, kinds, RestoreWeights(), deadline_s=1, again=again)).residual
