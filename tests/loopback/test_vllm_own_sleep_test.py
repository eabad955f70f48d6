"""vLLM's own tests of sleep, by their requests, written anew.

Source: vLLM, tests/entrypoints/serve/dev/test_sleep.py test_sleep_mode, and what it became later,
tests/entrypoints/serve/dev/rlhf/state_transitions/test_sleep_wake.py: what they ask, in that order, and what they
expect of each answer. They take a server with a model on a GPU there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from loopback_client import background, until
from vllm_client import fresh, get, is_sleeping, ok, post, prompt, sleep_gauge, text_of

AWAKE = (1, 0, 0)


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
        assert sleep_gauge(engine) == AWAKE
        asked(engine, ("/sleep?level=1", True), ("/wake_up?tags=weights", True), ("/wake_up?tags=kv_cache", False))
        assert sleep_gauge(engine) == AWAKE


@pytest.fixture(scope="module")
def counting() -> Iterator[LoopbackProcess]:
    """An engine that counts its requests. Each test leaves it awake."""
    with fresh("--enable-server-load-tracking") as engine:
        yield engine


@pytest.mark.parametrize(("level", "gauge"), [(0, (0, 0, 0)), (1, (0, 1, 0))])
def test_what_is_asked_twice_is_as_asked_once(counting: LoopbackProcess, level: int, gauge: tuple[float, ...]) -> None:
    assert sleep_gauge(counting) == AWAKE
    for _ in range(2):
        asked(counting, (f"/sleep?level={level}", True))
        assert sleep_gauge(counting) == gauge
    for _ in range(2):
        asked(counting, ("/wake_up", False))
        assert sleep_gauge(counting) == AWAKE
    assert text_of(counting, "hello", 4)


@pytest.mark.parametrize(
    ("asleep", "wakes"),
    [
        (("/sleep", "/wake_up?tags=weights"), "/wake_up?tags=kv_cache"),
        (("/sleep", "/wake_up?tags=kv_cache"), "/wake_up?tags=weights"),
        (("/sleep?level=0",), "/wake_up"),
        (("/sleep?level=1",), "/wake_up"),
    ],
    ids=["weights first", "kv first", "level 0", "level 1"],
)
def test_a_request_that_comes_meanwhile_is_held_until_all_is_awake(
    counting: LoopbackProcess, asleep: tuple[str, ...], wakes: str
) -> None:
    before = text_of(counting, "hello", 4)
    asked(counting, *((path, True) for path in asleep))
    held = background(lambda: post(counting, "/v1/completions", prompt("hello", 4)))
    until(lambda: ok(get(counting, "/load"))["server_load"] == 1)
    assert not held.done()
    assert get(counting, "/health").status == 200
    asked(counting, (wakes, False))
    [choice] = ok(held.result(10))["choices"]
    assert (choice["text"], choice["finish_reason"]) == (before, "length")


def test_level_2_needs_the_checkpoint_before_it_generates(counting: LoopbackProcess) -> None:
    before = text_of(counting, "hello", 4)
    asked(counting, ("/sleep?level=2", True))
    assert sleep_gauge(counting) == (0, 0, 1)
    asked(counting, ("/wake_up?tags=weights", True))
    ok(post(counting, "/collective_rpc", {"method": "reload_weights"}))
    asked(counting, ("/wake_up?tags=kv_cache", False))
    assert text_of(counting, "hello", 4) == before
