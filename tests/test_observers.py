"""Observers: an event for each edge with fixed keys, pausing a health monitor, and observers that raise."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from lifecycle import BaseObserver, Call, Reply, State, Transition
from lifecycle.core.observer import Observers
from lifecycle.observers import EventLog, HealthCheckPause
from lifecycle.observers.logs import CALL_KEYS, TRANSITION_KEYS


def edge(source: State, dest: State, engine: str = "e") -> Transition:
    """A record of one edge."""
    return Transition(engine=engine, group="g", trigger="t", source=source, dest=dest)


def test_the_keys_of_events_are_fixed_and_documented() -> None:
    with capture_logs() as events:
        log = EventLog()
        log.transition(edge(State.SERVING, State.PAUSING))
        log.transition(edge(State.PAUSING, State.FAILED))
        log.call("e", Call("pause_generation"), Reply("done", 200), 0.1)
        log.call("e", Call("pause_generation"), Reply("rejected", 500, "no"), 0.1)
    assert [event["log_level"] for event in events] == ["info", "warning", "debug", "warning"]
    page = Path("docs/observers.md").read_text()
    for event, keys in zip(events, (TRANSITION_KEYS, TRANSITION_KEYS, CALL_KEYS, CALL_KEYS), strict=True):
        assert list(keys) == [key for key in event if key not in ("event", "log_level")]
        assert all(f"`{key}`" in page for key in keys)


def test_the_state_machines_own_logger_is_silent() -> None:
    import lifecycle.rules.machine  # noqa: F401

    assert not logging.getLogger("transitions.core").isEnabledFor(logging.INFO)


def test_a_monitor_looks_away_from_paused_to_serving() -> None:
    heard: list[tuple[str, str]] = []
    monitor = HealthCheckPause(lambda name: heard.append(("away", name)), lambda name: heard.append(("again", name)))
    ring = [
        State.DETACHED,
        State.SERVING,
        State.PAUSING,
        State.PAUSED,
        State.RELEASING,
        State.FAILED,
        State.RELEASED,
        State.RESUMING,
        State.SERVING,
    ]
    for source, dest in pairwise(ring):
        monitor.transition(edge(source, dest))
    assert heard == [("away", "e"), ("again", "e")]
    monitor.transition(edge(State.SERVING, State.PAUSING))
    monitor.transition(edge(State.FAILED, State.GONE))
    assert heard[2:] == [("away", "e"), ("again", "e")], "a process that is gone is what a monitor is for"


def test_an_observer_that_throws_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    class Throws(BaseObserver):
        def transition(self, record: Transition) -> None:
            raise RuntimeError("out of ink")

        def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
            raise RuntimeError("out of ink")

    class Listens(BaseObserver):
        def transition(self, record: Transition) -> None:
            seen.append(record.engine)

    observers = Observers([Throws(), Listens()])
    observers.transition(edge(State.SERVING, State.PAUSING))
    observers.call("e", Call("x"), Reply("done"), 0.0)
    assert seen == ["e"]
    assert "out of ink" in caplog.text
