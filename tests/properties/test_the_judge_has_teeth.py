"""Mutation tests: each invariant is found broken once a guard, proof or barrier is taken out, and holds with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mutants
import pytest
from engine_machine import EngineMachine
from fleet_machine import FleetMachine
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from judge import Invariant
from mutants import Patch, without

pytestmark = pytest.mark.changes_the_table

Steps = Callable[[Any], None]


def a_cycle(machine: Any) -> None:
    """After it the mapping was measured."""
    machine.some_way(steps=3)
    machine.some_way(steps=5, home=True)


def drained(machine: Any) -> None:
    machine.some_way(steps=2)


def somebody_let_requests_in(machine: Any) -> None:
    drained(machine)
    machine.somebody_else_lets_requests_in()
    machine.command("release")


def drained_while_requests_run(machine: Any) -> None:
    machine.requests_arrive(2)
    machine.a_request_will_not_end(-1)
    machine.command("pause")
    machine.command("drain", limit_s=0.4)


def resumed_with_garbage(machine: Any) -> None:
    machine.some_way(steps=3)
    for what in ("restore_weights", "restore_kv", "resume"):
        machine.command(what)


def resumed_from_a_stale_cache(machine: Any) -> None:
    drained(machine)
    machine.command("release kv")
    machine.command("restore_weights")
    machine.command("restore_kv", faults=[("flush", "LOST")])
    machine.command("resume")


def resumed_without_its_memory(machine: Any) -> None:
    machine.some_way(steps=3)
    machine.command("restore_weights")
    machine.command("update v1")
    machine.command("restore_kv", faults=[("restore", "LIE")])
    machine.command("resume")


def somebody_released_it(machine: Any) -> None:
    a_cycle(machine)
    machine.somebody_else_drives("all")
    machine.verify()


def somebody_released_it_while_it_was_drained(machine: Any) -> None:
    drained(machine)
    machine.somebody_else_drives("all", closes=False)
    machine.command("release")


def a_release_is_lost(machine: Any) -> None:
    a_cycle(machine)
    drained(machine)
    machine.command("release", faults=[("release", "LOST_AFTER")])
    machine.command("release")


def a_load_is_lost(machine: Any) -> None:
    drained(machine)
    machine.command("update v2", faults=[("load", "LOST_AFTER")])


def a_pause_is_late(machine: Any) -> None:
    machine.command("pause", faults=[("pause", "LATE")])
    machine.recover()
    machine.command("pause")


def a_release_is_given_up(machine: Any) -> None:
    drained(machine)
    machine.command("release", faults=[("release", "HANG_LATE")], patience=1.0)
    machine.recover()
    machine.command("restore_weights")
    machine.command("release")


def nothing_comes_back(machine: Any) -> None:
    drained(machine)
    machine.its_releases(frees=False)
    machine.command("release", limit_s=0.4)


def a_call_hangs(machine: Any) -> None:
    machine.command("pause", faults=[("pause", "HANG")])


def two_callers(machine: Any) -> None:
    machine.command("pause")
    machine.interfere("drain", "pause keep", 2)


def the_fleet_moves(machine: Any) -> None:
    machine.requests_arrive(1, 2)
    machine.move("offloaded")


ENGINES: dict[str, tuple[Invariant, Callable[[Patch], None], Steps]] = {
    "still_idle": (Invariant.RELEASED_IDLE, without("still_idle"), somebody_let_requests_in),
    "still_idle, and it dies": (Invariant.SENT_ONCE, without("still_idle"), somebody_let_requests_in),
    "idle": (Invariant.TRUE_FACTS, without("idle"), drained_while_requests_run),
    "weights_valid": (Invariant.RESUMED_FIT, without("weights_valid"), resumed_with_garbage),
    "weights_valid, and it serves": (Invariant.SERVED_FIT, without("weights_valid"), resumed_with_garbage),
    "cache_fresh": (Invariant.RESUMED_FIT, without("cache_fresh"), resumed_from_a_stale_cache),
    "all_mapped, kv_mapped": (Invariant.RESUMED_FIT, without("all_mapped", "kv_mapped"), resumed_without_its_memory),
    "doubt of a lost release": (Invariant.SENT_ONCE, mutants.no_doubt_and_no_bytes, a_release_is_lost),
    "doubt of a lost load": (Invariant.TRUE_FACTS, mutants.no_doubt, a_load_is_lost),
    "the barrier after a lost call": (Invariant.BARRIER_FIRST, mutants.no_barrier, a_pause_is_late),
    "the barrier after a cancelled call": (Invariant.BARRIER_FIRST, mutants.no_barrier, a_release_is_given_up),
    "memory_returned": (Invariant.HANDED_OVER, mutants.memory_always_returned, nothing_comes_back),
    "the deadline": (Invariant.IN_TIME, mutants.no_deadline, a_call_hangs),
    "others' acts": (Invariant.TRUE_FACTS, mutants.others_change_nothing, somebody_released_it),
    "bytes": (Invariant.TRUE_FACTS, mutants.all_is_mapped, somebody_released_it),
    "bytes that deny": (Invariant.SENT_ONCE, mutants.bytes_deny_nothing, somebody_released_it_while_it_was_drained),
    "settling": (Invariant.STABLE, mutants.no_settling, a_call_hangs),
    "the claim": (Invariant.ONE_AT_A_TIME, mutants.never_busy, two_callers),
}


def one_is_restored_by_others(machine: Any) -> None:
    machine.move("offload")
    machine.somebody_else_restores(0)
    machine.move("offload")


FLEETS: dict[str, tuple[Invariant, Callable[[Patch], None], Steps]] = {
    "the phases": (Invariant.DRAINED_TOGETHER, mutants.no_phases, the_fleet_moves),
    "verifying what is released": (
        Invariant.HANDED_OVER,
        mutants.nothing_is_verified,
        one_is_restored_by_others,
    ),
    "the update on the way home": (Invariant.SERVES_AGAIN, mutants.no_update_on_the_way_home, the_fleet_moves),
}
ALL = [(EngineMachine, *case) for case in ENGINES.values()] + [(FleetMachine, *case) for case in FLEETS.values()]
EACH = pytest.mark.parametrize(("machine", "invariant", "mutate", "steps"), ALL, ids=[*ENGINES, *FLEETS])


def broken(machine: Any, steps: Steps) -> set[Invariant]:
    """Returns the invariants that these steps break."""
    state = machine()
    state.launch()
    steps(state)
    try:
        state.judged()
    except AssertionError:
        return {invariant for invariant, _ in state.judge.broken}
    finally:
        state.teardown()
    return set()


@EACH
def test_the_invariant_holds(machine: Any, invariant: Invariant, mutate: Any, steps: Steps) -> None:
    assert broken(machine, steps) == set()


@EACH
def test_the_invariant_is_broken_without_what_keeps_it(
    machine: Any, invariant: Invariant, mutate: Any, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch.setattr)
    assert invariant in broken(machine, steps)


def test_every_invariant_has_a_mutant() -> None:
    assert {case[1] for case in ALL} == set(Invariant)


@pytest.mark.slow
@pytest.mark.timeout(600)
@EACH
def test_the_machine_finds_the_mutant_by_itself(
    machine: Any, invariant: Invariant, mutate: Any, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch.setattr)
    profile = settings(
        max_examples=1500,
        stateful_step_count=50,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=profile)
