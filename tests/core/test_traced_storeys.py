"""A traced `Engine.release` and `Fleet.offload`: no call goes from a lower storey to a higher one, except to a port.

The storeys and the ports stand in `traced.py`. Each test reports how many files and functions its command crosses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rig import V1, engine_in, fleet_of
from structlog.testing import capture_logs
from traced import STOREYS, Trace, Tracer, storey_of

from lifecycle import Engine, State
from lifecycle.observers import EventLog
from lifecycle.testing import QUICK, ScriptedAdapter

Report = Callable[[str], None]


def no_call_goes_up(trace: Trace, title: str, before: tuple[int, int], report: Report) -> None:
    """Reports the files and functions crossed beside those before issue 9, and asserts that no call went up."""
    files, functions = trace.crossed()
    report(f"{title} crosses {files} files and {functions} functions; before: {before[0]} and {before[1]}")
    report(f"{title} makes {trace.back_into('engine/engine.py')} calls from the parts of an engine back into engine.py")
    calls = [f"{count:4} x {call}" for call, count in trace.upward.items()]
    if calls:
        report(f"{title} makes {sum(trace.upward.values())} calls to a higher storey, of {len(calls)} kinds")
    assert not calls, "\n".join(["calls from a lower storey to a higher one:", *calls])


async def test_a_release_calls_no_higher_storey(report: Report) -> None:
    engine = await engine_in(State.DRAINED)
    with Tracer().tracing() as trace:
        await engine.release(weights=V1)
    assert engine.memory_is_free
    no_call_goes_up(trace, "Engine.release", (20, 88), report)


async def test_an_offload_calls_no_higher_storey(report: Report) -> None:
    fleet, _ = await fleet_of("a", "b", router=True)
    with Tracer().tracing() as trace:
        await fleet.offload(weights=V1)
    assert {engine.state for engine in fleet} == {State.RELEASED}
    no_call_goes_up(trace, "Fleet.offload", (26, 126), report)


# the tracer


async def test_the_tracer_sees_calls_of_tasks_and_through_the_standard_library() -> None:
    fleet, _ = await fleet_of("a", "b")
    with Tracer().tracing() as trace:
        await fleet.pause()
    pairs = {(caller.partition("/")[0], callee.partition("/")[0]) for caller, callee, _ in trace.calls}
    assert {("fleet", "engine"), ("engine", "rules"), ("engine", "testing"), ("engine", "core")} <= pairs
    assert ("", "engine") not in pairs, "the task of an engine has a caller: the fleet's move"


async def test_a_call_to_a_higher_storey_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from lifecycle.engine import engine as module

    source = "def up(engine):\n    return engine.memory_is_free\n"
    names: dict[str, Callable[..., object]] = {}
    exec(compile(source, str(Path(module.__file__).parents[1] / "rules" / "made_up.py"), "exec"), names)
    engine = await engine_in(State.DRAINED)
    with Tracer().tracing() as trace:
        names["up"](engine)
    (call,) = trace.upward
    assert str(call) == "rules/made_up.py -> engine/view.py: EngineView.memory_is_free"


async def test_an_observer_is_called_from_below_through_its_port() -> None:
    adapter = ScriptedAdapter("e")
    observers = [EventLog()]
    engine = await Engine(adapter, policy=QUICK, probe=adapter.probe, observers=observers).connect()
    with Tracer().tracing() as trace, capture_logs():
        await engine.pause()
    assert any(callee.startswith("observers/") for _, callee, _ in trace.calls)
    assert trace.upward == {}


def test_every_package_has_a_storey(request: pytest.FixtureRequest) -> None:
    files = (request.config.rootpath / "lifecycle").rglob("*.py")
    packages = {path.relative_to(request.config.rootpath / "lifecycle").as_posix() for path in files}
    assert {file for file in packages if storey_of(file) == len(STOREYS)} == {"__init__.py", "__main__.py"}
