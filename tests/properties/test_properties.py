"""Property tests: the invariants of `judge.Invariant` hold for engines and for fleets under every drawn fault.

A few examples run by default and many in the slow tests, always the same ones (see conftest.py). To search for others:
LIFECYCLE_EXAMPLES=2500 .venv/bin/pytest -q --timeout 3000 tests/properties -k length.
`test_the_judge_has_teeth.py` shows that each invariant is found broken once the guard or proof behind it is gone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest
from engine_machine import EngineMachine
from fleet_machine import FleetMachine
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

MORE = int(os.environ.get("LIFECYCLE_EXAMPLES") or 0)
Report = Callable[[str], None]


def examples(machine: type[RuleBasedStateMachine], count: int, steps: int, report: Report) -> None:
    """Runs `count` examples of `steps` steps, and reports how often each invariant was checked."""
    tally: Counter[str] = Counter()
    machine.tally = tally
    profile = settings(
        max_examples=MORE or count,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=not MORE,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(machine, settings=profile)
    finally:
        rules = sum(hasattr(each, "hypothesis_stateful_rule") for each in vars(machine).values())
        report(f"{machine.__name__}: {rules} rules, {tally['examples']} examples, {tally['rules run']} rules run")
        for name, times in sorted(tally.items()):
            if name.startswith("asked"):
                report(f"    {machine.__name__} {name}: {times}")


def test_engines_keep_the_invariants(report: Report) -> None:
    examples(EngineMachine, 60, 30, report)


def test_fleets_keep_the_invariants(report: Report) -> None:
    examples(FleetMachine, 40, 15, report)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_engines_keep_the_invariants_at_length(report: Report) -> None:
    examples(EngineMachine, 1200, 50, report)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fleets_keep_the_invariants_at_length(report: Report) -> None:
    examples(FleetMachine, 600, 40, report)
