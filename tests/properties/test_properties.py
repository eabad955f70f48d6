"""Whatever happens, the invariants of `judge.Invariant` hold, for engines and for fleets.

The fast lane asks a few examples, the slow lane many; both always the same ones (see conftest.py). To hunt for others:
LIFECYCLE_EXAMPLES=2500 .venv/bin/pytest -q --timeout 3000 tests/properties -k length.
`test_the_judge_has_teeth.py` shows that each invariant is found broken when what keeps it is taken out.
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
Tell = Callable[[str], None]


def examples(machine: type[RuleBasedStateMachine], count: int, steps: int, tell: Tell) -> None:
    """Runs so many examples of so many steps, and tells what they came to."""
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
        tell(f"{machine.__name__}: {rules} rules, {tally['examples']} examples, {tally['rules run']} rules run")
        for name, times in sorted(tally.items()):
            if name.startswith("asked"):
                tell(f"    {machine.__name__} {name}: {times}")


def test_engines_keep_the_invariants(tell: Tell) -> None:
    examples(EngineMachine, 60, 30, tell)


def test_fleets_keep_the_invariants(tell: Tell) -> None:
    examples(FleetMachine, 40, 15, tell)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_engines_keep_the_invariants_at_length(tell: Tell) -> None:
    examples(EngineMachine, 1200, 50, tell)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fleets_keep_the_invariants_at_length(tell: Tell) -> None:
    examples(FleetMachine, 600, 40, tell)
