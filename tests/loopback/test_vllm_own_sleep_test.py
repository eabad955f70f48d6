"""vLLM's own test of sleep, by its requests, written anew.

Source: vLLM, tests/entrypoints/serve/dev/test_sleep.py test_sleep_mode: what it asks, in that order, and what it
expects of each answer. It takes a server with a model on a GPU there.
"""

from __future__ import annotations

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from vllm_client import fresh, get, is_sleeping, post, sleep_gauge


def asked(engine: LoopbackProcess, *steps: tuple[str, bool]) -> None:
    """Each path is posted with 200, and whether the engine is asleep then is what is expected."""
    for path, asleep in steps:
        assert post(engine, path).status == 200
        assert get(engine, "/is_sleeping").status == 200
        assert is_sleeping(engine) is asleep


@pytest.mark.parametrize("release", ["0.24", "0.25", "0.30", "0.32", "0.33"])
def test_sleep_mode(release: str) -> None:
    with fresh(dialect=f"vllm:{release}") as engine:
        asked(engine, ("/sleep?level=1", True))
        assert sleep_gauge(engine) == (0, 1, 0)
        asked(engine, ("/wake_up", False))
        assert sleep_gauge(engine) == (1, 0, 0)
        asked(engine, ("/sleep?level=1", True), ("/wake_up?tags=weights", True), ("/wake_up?tags=kv_cache", False))
        assert sleep_gauge(engine) == (1, 0, 0)
