import os

from engine_machine import EngineMachine
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test


def test_fast():
    run_state_machine_as_test(EngineMachine, settings=settings(max_examples=int(os.environ.get("N","50")), stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)))
