"""The rules of journals: what the library writes breaks none, and each kind of damage is found by the rule it breaks.

The journals are of real commands; a damage changes, removes, repeats or moves entries of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import journals
import pytest
from rig import V1, fleet_of

from lifecycle import FleetError, Grade, State
from lifecycle.core.journal import (
    Attached,
    BarrierReturned,
    CallEnded,
    CallSent,
    Entry,
    HandedOver,
    MovePhase,
    Quarantined,
    StateEntered,
)
from lifecycle.core.requests import RequestFates
from lifecycle.core.verdicts import Pending, Proved, Refuted, Unmeasurable
from lifecycle.rules.violations import RULES, violations
from lifecycle.testing import LOST_AFTER, REJECTED

Entries = list[Entry]


async def cycle() -> Entries:
    """An offload and an onload of two engines."""
    with journals.kept() as entries:
        fleet, _ = await fleet_of("a", "b")
        await fleet.offload(weights=V1)
        await fleet.onload()
    return list(entries)


def at(entries: Entries, which: Callable[[Any], bool], skip: int = 0) -> int:
    """Where the first entry is whose event is one of these; `skip`: the one after so many."""
    return [index for index, entry in enumerate(entries) if which(entry.event)][skip]


def changed(entries: Entries, index: int, **parts: Any) -> Entries:
    entry = entries[index]
    return [*entries[:index], replace(entry, event=replace(entry.event, **parts)), *entries[index + 1 :]]


def without(entries: Entries, index: int) -> Entries:
    return [*entries[:index], *entries[index + 1 :]]


def again(entries: Entries, index: int, *events: Any) -> Entries:
    """These events stand behind the entry too, by the same driver."""
    return [*entries[: index + 1], *(replace(entries[index], event=event) for event in events), *entries[index + 1 :]]


def is_release(event: Any) -> bool:
    return isinstance(event, CallSent) and event.command == "release"


def is_released(event: Any) -> bool:
    return isinstance(event, StateEntered) and event.dest is State.RELEASED


def is_drained(event: Any) -> bool:
    return isinstance(event, StateEntered) and event.dest is State.DRAINED


def is_answer(event: Any) -> bool:
    return isinstance(event, CallEnded)


# each damage, and the rule that it breaks


def an_edge_that_is_none(entries: Entries) -> Entries:
    return changed(entries, at(entries, is_released), dest=State.SERVING)


def an_edge_left_out(entries: Entries) -> Entries:
    return without(entries, at(entries, is_drained))


def a_proof_left_out(entries: Entries) -> Entries:
    index = at(entries, is_released)
    proofs = {name: each for name, each in entries[index].event.verdicts.items() if name != "memory_returned"}
    return changed(entries, index, verdicts=proofs)


def a_proof_that_does_not_hold(entries: Entries) -> Entries:
    index = at(entries, is_released)
    return changed(entries, index, verdicts={**entries[index].event.verdicts, "memory_returned": Refuted(reason="no")})


def a_proof_of_too_low_a_grade(entries: Entries) -> Entries:
    index = at(entries, is_released)
    reported = Proved(reason="it says so", grade=Grade.REPORTED)
    return changed(entries, index, verdicts={**entries[index].event.verdicts, "memory_returned": reported})


def an_answer_without_an_intent(entries: Entries) -> Entries:
    return without(entries, at(entries, is_release))


def a_call_of_no_command(entries: Entries) -> Entries:
    return changed(entries, at(entries, is_release), command="resume")


def a_call_sent_again_without_an_answer(entries: Entries) -> Entries:
    index = at(entries, is_release)
    return again(entries, index, entries[index].event)


def a_call_sent_again_after_a_lost_answer(entries: Entries) -> Entries:
    index = at(entries, is_release)
    sent = entries[index].event
    lost = CallEnded(sent.call, "lost")
    return again(entries, index, lost, sent)


def a_call_after_one_that_was_given_up(entries: Entries) -> Entries:
    return changed(entries, at(entries, is_answer), outcome="unknown")


def a_driver_that_lost_its_lease(entries: Entries) -> Entries:
    index = at(entries, is_release)
    entries = changed(entries, index, fence=4)
    other = replace(
        entries[index], driver="other", event=replace(entries[index].event, fence=5, call="x", repeatable=True)
    )
    answered = replace(other, event=CallEnded("x", "done"))
    late = replace(entries[index], event=replace(other.event, fence=4))
    return [*entries[: index + 2], other, answered, late, *entries[index + 2 :]]


def a_release_beside_one_that_is_not_idle(entries: Entries) -> Entries:
    """One of the two is drained only once the other's release has begun."""
    releases = [entry for entry in entries if _is_releasing(entry.event)]
    last = releases[-1].driver
    (index,) = (place for place, entry in enumerate(entries) if is_drained(entry.event) and entry.driver == last)
    late, rest = entries[index], without(entries, index)
    begins = at(rest, _is_releasing)
    return [*rest[: begins + 1], late, *rest[begins + 1 :]]


def _is_releasing(event: Any) -> bool:
    return isinstance(event, StateEntered) and event.dest is State.RELEASING


def one_left_behind_beside_the_others(entries: Entries) -> Entries:
    """The offload goes on without one that lives on a device of the other."""
    index = at(entries, is_drained, skip=1)
    begun = next(entry.event for entry in entries if isinstance(entry.event, MovePhase))
    behind = Quarantined("offload", begun.move_id, begun.drivers[0], "a", "no", False, True, ("gpu-0",), ("gpu-0",))
    move = replace(entries[index], driver=begun.move_id, engine="", key="", event=behind)
    return [*entries[: index + 1], move, *entries[index + 1 :]]


def a_hand_over_without_a_proof(entries: Entries) -> Entries:
    index = at(entries, lambda event: isinstance(event, HandedOver))
    token = next(iter(entries[index].event.returned))
    return changed(entries, index, returned={**entries[index].event.returned, token: Pending(reason="restored since")})


def a_hand_over_that_leaves_one_out(entries: Entries) -> Entries:
    index = at(entries, lambda event: isinstance(event, HandedOver))
    token = next(iter(entries[index].event.returned))
    rest = {name: each for name, each in entries[index].event.returned.items() if name != token}
    return changed(entries, index, returned=rest)


def a_hand_over_of_a_process_that_runs(entries: Entries) -> Entries:
    index = at(entries, lambda event: isinstance(event, HandedOver))
    return changed(entries, index, returned={}, gone=tuple(entries[index].event.returned))


def requests_that_were_taken_back(entries: Entries) -> Entries:
    entries = changed(entries, at(entries, is_drained), requests=RequestFates(ended=4, source="router"))
    return changed(entries, at(entries, _serves_again), requests=RequestFates(ended=3, source="router"))


def _serves_again(event: Any) -> bool:
    return isinstance(event, StateEntered) and event.dest is State.SERVING and event.trigger == "succeeded"


DAMAGES: dict[Callable[[Entries], Entries], str] = {
    an_edge_that_is_none: "edge",
    an_edge_left_out: "order",
    a_proof_left_out: "proofs",
    a_proof_that_does_not_hold: "proofs",
    a_proof_of_too_low_a_grade: "proofs",
    an_answer_without_an_intent: "intent",
    a_call_of_no_command: "intent",
    a_call_sent_again_without_an_answer: "repeated",
    a_call_sent_again_after_a_lost_answer: "repeated",
    a_call_after_one_that_was_given_up: "barrier",
    a_driver_that_lost_its_lease: "fence",
    a_release_beside_one_that_is_not_idle: "drained",
    one_left_behind_beside_the_others: "quarantine",
    requests_that_were_taken_back: "requests",
    a_hand_over_without_a_proof: "handover",
    a_hand_over_that_leaves_one_out: "handover",
    a_hand_over_of_a_process_that_runs: "handover",
}


async def test_a_cycle_breaks_no_rule() -> None:
    entries = await cycle()
    assert len(entries) > 60
    assert list(violations(entries)) == []


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_each_damage_is_found_by_its_rule(damage: Callable[[Entries], Entries]) -> None:
    damaged = damage(await cycle())
    found = list(violations(damaged))
    assert DAMAGES[damage] in {each.rule for each in found}, found
    first = next(each for each in found if each.rule == DAMAGES[damage])
    assert any(first.entry is entry for entry in damaged)
    assert first.why


def test_every_rule_has_a_damage() -> None:
    assert set(DAMAGES.values()) == set(RULES)


async def steps() -> Entries:
    """The steps of a cycle of two engines."""
    with journals.kept() as entries:
        fleet, _ = await fleet_of("a", "b")
        for step in (fleet.pause(), fleet.drain(), fleet.release(weights=V1), fleet.restore_weights()):
            await step
        for step in (fleet.update_weights(V1), fleet.restore_kv(), fleet.resume()):
            await step
    return list(entries)


async def test_the_steps_of_a_fleet_are_moves_of_one_phase_and_break_no_rule() -> None:
    entries = await steps()
    moves = [entry.event for entry in entries if isinstance(entry.event, MovePhase)]
    names = ("pause", "drain", "release", "restore_weights", "update_weights", "restore_kv", "resume")
    assert [(move.move, move.phase, move.duration_s is None) for move in moves] == [
        (name, "", begins) for name in names for begins in (True, False)
    ]
    assert all(len(move.drivers) == 2 for move in moves)
    assert list(violations(entries)) == []


async def test_a_step_that_releases_one_beside_another_that_is_not_idle_is_found() -> None:
    damaged = a_release_beside_one_that_is_not_idle(await steps())
    found = {each.rule: each.why for each in violations(damaged)}
    assert found["drained"] == "a release began, and a participant of the release is draining"


async def test_a_step_that_failed_says_for_whom() -> None:
    with journals.kept() as entries:
        fleet, _ = await fleet_of("a", "b")
        fleet["a"].adapter.script("pause", REJECTED)
        with pytest.raises(FleetError):
            await fleet.pause()
    ended = next(entry.event for entry in reversed(entries) if isinstance(entry.event, MovePhase))
    assert (ended.move, ended.failed) == ("pause", ("a",))


# what is no violation


async def test_what_stands_before_the_first_entry_is_unknown() -> None:
    entries = await cycle()
    for begin in range(0, len(entries), 7):
        assert list(violations(entries[begin:])) == [], begin


async def test_one_that_is_found_dead_by_its_release_was_idle() -> None:
    entries = await cycle()
    begins = at(entries, lambda event: isinstance(event, StateEntered) and event.dest is State.RELEASING)
    asked = next(
        entry
        for entry in entries[:begins]
        if entry.driver != entries[begins].driver and getattr(entry.event, "command", "") == "release"
    )
    died = replace(asked, event=StateEntered("contradicted", State.DRAINED, State.FAILED, command="release"))
    assert list(violations([*entries[:begins], died, entries[begins]])) == []
    phase = at(entries, lambda event: isinstance(event, MovePhase) and event.phase == "release")
    later = [entry for entry in entries[phase:begins] if entry is not asked]
    broken = violations([*entries[:phase], died, *later, entries[begins]])
    assert [each.rule for each in broken] == ["drained"], "it failed before the releases were to begin"


async def test_what_the_policy_accepts_unseen_is_accepted_here() -> None:
    entries = await cycle()
    index = at(entries, is_released)
    unseen = {**entries[index].event.verdicts, "memory_returned": Unmeasurable(reason="no probe")}
    entries = changed(entries, index, verdicts=unseen)
    assert [each.rule for each in violations(entries)] == ["proofs"]
    token = entries[index].driver
    begin = next(place for place, entry in enumerate(entries) if entry.driver == token)
    assert isinstance(entries[begin].event, Attached)
    accepted = changed(entries, begin, accept={"memory_returned": Grade.ACKNOWLEDGED})
    assert list(violations(accepted)) == []


async def test_a_call_goes_to_the_process_that_took_the_place_of_the_one_in_doubt() -> None:
    entries = await cycle()
    index = at(entries, is_release)
    sent = entries[index].event
    other = replace(sent, boot="another-boot")
    assert [each.rule for each in violations(again(entries, index, CallEnded(sent.call, "lost"), sent))][:1] == [
        "repeated"
    ]
    found = list(violations(again(entries, index, CallEnded(sent.call, "lost"), other)))
    assert "repeated" not in {each.rule for each in found}


async def test_a_barrier_ends_the_doubt() -> None:
    entries = await cycle()
    index = at(entries, is_release)
    sent = entries[index].event
    found = list(violations(again(entries, index, CallEnded(sent.call, "lost"), BarrierReturned(), sent)))
    assert "repeated" not in {each.rule for each in found}
    assert "barrier" not in {each.rule for each in found}


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"gone": True}, "said to be gone, and it is drained"),
        ({"closed": False}, "its router was not closed"),
        ({"devices": ()}, "it is not known whether it is on a device of the others"),
        ({"others": ()}, "it is not known whether it is on a device of the others"),
        ({}, "lives on gpu-0"),
        ({"devices": ("gpu-1",)}, ""),
    ],
)
async def test_an_engine_is_left_behind_only_where_that_is_safe(parts: dict[str, Any], why: str) -> None:
    entries = one_left_behind_beside_the_others(await cycle())
    index = at(entries, lambda event: isinstance(event, Quarantined))
    found = [each for each in violations(changed(entries, index, **parts)) if each.rule == "quarantine"]
    assert len(found) == bool(why)
    assert all(why in each.why for each in found)


async def test_one_that_dies_as_its_release_begins_keeps_no_other_from_its_own() -> None:
    """It was idle when the phase began, and the barrier is of that."""
    entries = await cycle()
    index = at(entries, lambda event: isinstance(event, StateEntered) and event.dest is State.RELEASING)
    died = StateEntered("contradicted", State.DRAINED, State.FAILED, "release", "its process is gone")
    gone = replace(died, trigger="observed_gone", source=State.FAILED, dest=State.GONE)
    driver, rest = entries[index].driver, entries[index + 1 :]
    said = [replace(entries[index], event=event) for event in (died, gone)]
    entries = [*entries[:index], *said, *(entry for entry in rest if entry.driver != driver)]
    end = at(entries, lambda event: isinstance(event, HandedOver))
    assert list(violations(entries[:end])) == []


async def test_an_engine_that_is_released_again_on_its_way_back_waits_for_no_other() -> None:
    """It was released before an offload that failed, and the restore on the way back from that fails."""
    with journals.kept() as entries:
        fleet, _ = await fleet_of("a", "b")
        await fleet.offload(weights=V1, engines=["a"])
        fleet["a"].adapter.script("restore", LOST_AFTER)
        fleet["b"].adapter.engine.stubborn = -1
        with pytest.raises(FleetError):
            await fleet.offload(weights=V1, deadline_s=0.3)
    assert fleet["a"].state is State.RELEASED
    assert sum(is_release(entry.event) for entry in entries) == 3
    assert list(violations(entries)) == []


async def test_a_move_of_an_offload_is_known_by_its_participants() -> None:
    entries = await cycle()
    moves = [entry.event for entry in entries if isinstance(entry.event, MovePhase) and not entry.event.phase]
    assert [(move.move, move.duration_s is None) for move in moves] == [
        ("offload", True),
        ("offload", False),
        ("onload", True),
        ("onload", False),
    ]


@pytest.mark.parametrize(("since", "found"), [("release", False), ("drain", True)])
async def test_one_that_fails_once_the_releases_are_to_begin_was_drained(since: str, found: bool) -> None:
    with journals.kept() as kept:
        fleet, _ = await fleet_of("a", "b", "c")
        await fleet.offload(weights=V1)
    entries = list(kept)
    begins = at(entries, lambda event: isinstance(event, MovePhase) and event.phase == "release")
    one = next(entry for entry in entries if entry.engine == "c" and is_drained(entry.event))
    fails = replace(one, event=replace(one.event, trigger="contradicted", source=State.DRAINED, dest=State.FAILED))
    phase, after = entries[begins], [entry for entry in entries[begins + 1 :] if entry.engine != "c"]
    now = [phase, fails] if since == "release" else [fails, phase]
    broken = {each.rule for each in violations([*entries[:begins], *now, *after])}
    assert ("drained" in broken) is found
