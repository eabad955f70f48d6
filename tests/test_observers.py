"""Observers: an event for each edge with fixed keys, pausing a health monitor, and observers that raise."""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from lifecycle import (
    Call,
    ConfigurationError,
    Engine,
    Fleet,
    FleetError,
    FromDisk,
    GuardRefused,
    InvalidTransition,
    Observer,
    Pause,
    Rejected,
    Reply,
    State,
    Transition,
)
from lifecycle.core.observer import Observers
from lifecycle.core.requests import FATES, NOT_KNOWN, RequestFates
from lifecycle.observers import EventLog, HealthCheckPause, RequestMetrics
from lifecycle.observers.logs import CALL_KEYS, TRANSITION_KEYS
from lifecycle.observers.metrics import LABELS
from lifecycle.testing import DIE, HANG, QUICK, REJECTED, ScriptedAdapter, capabilities


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


HOOKS = [name for name in vars(Observer) if not name.startswith("_")]


class Throws:
    """Every method of an observer raises."""

    def __getattr__(self, name: str) -> Any:
        if name not in HOOKS:
            raise AttributeError(name)

        def throw(*about: object) -> None:
            raise RuntimeError(f"out of ink in {name}")

        return throw


class Hears:
    """Notes which of its methods were called, and with what."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        if name not in HOOKS:
            raise AttributeError(name)
        return lambda *about: self.heard.append((name, about))

    def names(self) -> list[str]:
        """The methods that were called, in order."""
        return [name for name, _ in self.heard]


async def watched_fleet(*observers: Any) -> Fleet:
    """Two engines in memory, of which these observers hear."""
    adapters = [ScriptedAdapter(name, capabilities()) for name in ("a", "b")]
    hearing = Observers(observers)
    engines = [Engine(each, name=each.name, policy=QUICK, probe=each.probe, observers=hearing) for each in adapters]
    fleet = Fleet(engines, policy=QUICK)
    await fleet.__aenter__()
    return fleet


async def test_an_observer_whose_every_method_throws_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    hears = Hears()
    fleet = await watched_fleet(Throws(), hears)
    async with fleet.offloaded(weights=FromDisk("/models/step-1", "v1")):
        assert {engine.state for engine in fleet} == {State.RELEASED}
    with pytest.raises(InvalidTransition):
        await fleet["a"].drain()
    assert {engine.state for engine in fleet} == {State.SERVING}
    fleet.policy = replace(fleet.policy, on_failure="quarantine")
    fleet["a"].adapter.script("pause", DIE)
    assert len(await fleet.offload(weights=FromDisk("/models/step-1", "v1"))) == len(fleet) - 1
    assert set(hears.names()) == set(HOOKS)
    assert all(f"out of ink in {name}" in caplog.text for name in HOOKS)


async def test_a_command_is_heard_from_its_beginning_to_its_end() -> None:
    hears = Hears()
    fleet = await watched_fleet(hears)
    engine = fleet["a"]
    hears.heard.clear()
    done = await engine.pause()
    assert hears.names() == ["command_started", "transition", "call", "transition", "command_ended"]
    assert hears.heard[0][1] == ("a", Pause("abort"), State.SERVING)
    name, command, result, duration_s = hears.heard[-1][1]
    assert (name, command, result) == ("a", Pause("abort"), done)
    assert 0 < duration_s < 10


async def test_a_refusal_is_heard_as_one_and_sends_nothing() -> None:
    hears = Hears()
    fleet = await watched_fleet(hears)
    hears.heard.clear()
    with pytest.raises(InvalidTransition):
        await fleet["a"].restore_kv()
    await fleet["a"].pause()
    hears.heard.clear()
    with pytest.raises(GuardRefused) as refused:
        await fleet["a"].pause("nap")  # type: ignore[arg-type]
    assert hears.names() == ["command_started", "refused"]
    assert hears.heard[-1][1][2] is refused.value


async def test_a_failure_is_heard_with_what_it_raised() -> None:
    hears = Hears()
    fleet = await watched_fleet(hears)
    fleet["a"].adapter.script("pause", REJECTED)
    with pytest.raises(Rejected) as failed:
        await fleet["a"].pause()
    assert hears.heard[-1][0] == "command_ended"
    assert hears.heard[-1][1][2] is failed.value


async def test_a_move_is_heard_with_its_phases_and_who_failed() -> None:
    hears = Hears()
    fleet = await watched_fleet(hears)
    fleet["b"].adapter.script("pause", REJECTED)
    hears.heard.clear()
    with pytest.raises(FleetError):
        await fleet.offload(weights=FromDisk("/models/step-1", "v1"))
    events = [about[0] for name, about in hears.heard if name in ("move", "phase") and about[0].move == "offload"]
    assert [(event.phase, event.ended) for event in events] == [
        ("", False),
        ("pause", False),
        ("pause", True),
        ("", True),
    ]
    assert list(events[2].failed) == ["b"]
    assert isinstance(events[2].failed["b"], Rejected)
    assert events[0].engines == ("a", "b")
    assert list(events[3].failed) == ["b"], "a monitor that hears of moves alone knows too"


async def test_an_observer_of_two_methods_is_enough() -> None:
    seen: list[str] = []

    class Listens:
        def transition(self, record: Transition) -> None:
            seen.append(record.trigger)

    fleet = await watched_fleet(Listens())
    await fleet["a"].pause()
    assert "succeeded" in seen


async def test_an_observer_that_cannot_even_be_asked_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Unready:
        @property
        def transition(self) -> Any:
            raise RuntimeError("not set up yet")

    hears = Hears()
    fleet = await watched_fleet(Unready(), hears)
    await fleet["a"].pause()
    assert fleet["a"].state is State.PAUSED
    assert "observer Unready failed" in caplog.text
    assert "transition" in hears.names()


async def test_a_phase_that_was_given_up_is_heard_to_its_end() -> None:
    hears = Hears()
    fleet = await watched_fleet(hears)
    fleet["a"].adapter.script("pause", HANG)
    offload = asyncio.create_task(fleet.offload(weights=FromDisk("/models/step-1", "v1")))
    await asyncio.sleep(0.02)
    offload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await offload
    events = [about[0] for name, about in hears.heard if name in ("move", "phase")]
    assert [(event.phase, event.ended) for event in events] == [
        ("", False),
        ("pause", False),
        ("pause", True),
        ("", True),
    ]


async def test_who_failed_an_onload_is_heard_at_its_end() -> None:
    hears = Hears()
    fleet = await watched_fleet(hears)
    await fleet.offload(weights=FromDisk("/models/step-1", "v1"))
    fleet["b"].adapter.script("load", REJECTED)
    hears.heard.clear()
    with pytest.raises(FleetError):
        await fleet.onload()
    ends = [about[0] for name, about in hears.heard if name == "move" and about[0].ended]
    assert [list(event.failed) for event in ends] == [["b"]]


async def test_an_observer_given_to_several_engines_hears_of_a_move_once() -> None:
    hears = Hears()
    adapters = [ScriptedAdapter(name, capabilities()) for name in ("a", "b")]
    engines = [Engine(each, name=each.name, policy=QUICK, probe=each.probe, observers=[hears]) for each in adapters]
    fleet = Fleet(engines, policy=QUICK)
    await fleet.__aenter__()
    await fleet.offload(weights=FromDisk("/models/step-1", "v1"))
    assert hears.names().count("move") == 2, "its beginning and its end"


# counters of requests


def counters(registry: CollectorRegistry) -> dict[str, float]:
    """The value of each counter, by fate, of engine e; `unknown` before those of pauses."""
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name.endswith("_total") and sample.labels["engine"] == "e":
                assert sample.labels["group"] == "g"
                kind = "unknown " if "unknown" in sample.name else ""
                found[kind + sample.labels["fate"]] = sample.value
    return found


def told(dest: State, requests: RequestFates | None) -> Transition:
    return replace(edge(State.RESUMING, dest), requests=requests)


ZEROS = {prefix + fate: 0.0 for prefix in ("", "unknown ") for fate in FATES}


def test_counters_of_requests_begin_with_zeros() -> None:
    registry = CollectorRegistry()
    metrics = RequestMetrics({"e": "g"}, registry=registry)
    assert counters(registry) == ZEROS
    other = CollectorRegistry()
    metrics = RequestMetrics(registry=other)
    assert counters(other) == {}
    metrics.transition(edge(State.SERVING, State.PAUSING))
    assert counters(other) == ZEROS


def test_requests_are_counted_once_for_each_pause() -> None:
    """What is told once it is drained is told again once it serves."""
    registry = CollectorRegistry()
    metrics = RequestMetrics({"e": "g"}, registry=registry)
    metrics.transition(told(State.DRAINED, RequestFates(4, 1, 3, 0, 0, "engine")))
    assert counters(registry) == ZEROS
    metrics.transition(told(State.SERVING, RequestFates(4, 1, 3, 2, 5, "engine")))
    metrics.transition(told(State.SERVING, RequestFates(ended=3, kept=0, source="router")))
    metrics.transition(told(State.SERVING, None))
    known = {"ended": 7.0, "finished": 1.0, "aborted": 3.0, "kept": 2.0, "refused": 5.0}
    unknown = {"unknown finished": 1.0, "unknown aborted": 1.0, "unknown refused": 1.0}
    assert counters(registry) == ZEROS | known | unknown


def test_of_an_engine_that_has_ended_every_fate_is_unknown() -> None:
    registry = CollectorRegistry()
    RequestMetrics({"e": "g"}, registry=registry).transition(told(State.GONE, NOT_KNOWN))
    assert counters(registry) == ZEROS | {f"unknown {fate}": 1.0 for fate in FATES}


def test_the_counters_are_documented() -> None:
    registry = CollectorRegistry()
    RequestMetrics({"e": "g"}, registry=registry)
    page = Path("docs/observers.md").read_text()
    for family in registry.collect():
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{family.name}_total` |"))
        assert all(f"`{label}`" in row for label in LABELS)
    assert all(f"`{fate}`" in page for fate in FATES)


def test_without_prometheus_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigurationError, match=r"engine-lifecycle\[metrics\]"):
        RequestMetrics()
