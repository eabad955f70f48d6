"""What SPIN says of the protocol, and that it would say so: every fault that is put in has its trail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from spin_model import CALLS, FAULTS, Bounds, promela
from spin_run import CLAIMS, LIVENESS, lacking, searched

from lifecycle.core.commands import BY_NAME
from lifecycle.rules.table import OPERATIONS

SPIN = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(bool(lacking()), reason=f"not installed: {', '.join(lacking())} (.ci/run installs them)"),
]


def spins(test: Callable[..., None]) -> Callable[..., None]:
    """The test needs SPIN and a C compiler, and belongs to `make slow`."""
    for mark in SPIN:
        test = mark(test)
    return test


def test_every_row_of_the_table_is_in_the_model() -> None:
    """But a live update, which the modelled engine does not support."""
    model = promela(Bounds())
    for each in OPERATIONS:
        row = f":: state == {each.source.name} &&"
        live = any(guard.name == "live_update_supported" for guard in each.guards)
        assert live or any(row in line and f"/* {each.command} */" in line for line in model.splitlines()), each


def test_every_command_says_what_it_sends() -> None:
    assert set(CALLS) == set(BY_NAME)


def test_a_guard_without_a_meaning_is_told() -> None:
    (first, *others) = OPERATIONS
    named = replace(first.guards[0], name="never_heard_of")
    with pytest.raises(KeyError, match="never_heard_of"):
        promela(Bounds(), operations=[replace(first, guards=(named,)), *others])


def test_a_fault_without_a_name_is_told() -> None:
    with pytest.raises(ValueError, match="'no idea': one of no barrier"):
        promela(Bounds(), "no idea")


@spins
@pytest.mark.parametrize("tell", [True, False], ids=["sizes tell", "one size"])
@pytest.mark.parametrize("claim", CLAIMS)
def test_no_state_denies_a_claim(claim: str, tell: bool, report: Callable[[str], None]) -> None:
    found = searched(claim, Bounds(bytes_tell=tell))
    report(f"{found} ({'sizes tell the tags apart' if tell else 'tags of one size'})")
    assert not found.error, found.trail
    assert found.complete
    assert found.states > 100_000  # two drivers, two faults and a kill


@spins
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_is_put_in_has_its_trail(fault: str, report: Callable[[str], None]) -> None:
    found = searched("serving", Bounds(), fault)
    report(f"put in, {fault}: {found}")
    assert found.error
    assert "Driver" in found.trail


@spins
def test_an_engine_of_one_size_that_has_to_serve_without_dead_ends_does_not(report: Callable[[str], None]) -> None:
    """The claim of liveness can fail: where sizes do not tell and a dead end is not allowed, it does."""
    found = searched(LIVENESS, Bounds(bytes_tell=False, dead_ends=False))
    report(f"without dead ends: {found}")
    assert found.error


@spins
def test_an_engine_that_may_die_is_never_claimed_to_serve(report: Callable[[str], None]) -> None:
    found = searched("serving", Bounds(faults=1, death=True))
    report(f"the process may die: {found}")
    assert not found.error, found.trail
    assert found.complete
