"""slime's own parts: health monitors that sleep with their engines, and an actor that stays closed in a window."""

from __future__ import annotations

import inspect
import io
import logging
import urllib.error
from email.message import Message
from typing import Any

import pytest
from frameworks.servers import Actors, Group

from lifecycle import ConfigurationError, Engine, FleetError, State
from lifecycle.frameworks.slime import ClosedUntilRestored, RolloutServer, suspends
from lifecycle.testing import LOST, ScriptedAdapter, capabilities


class Monitor:
    """slime's health monitor. Source: slime, utils/health_monitor.py: pause(), resume()."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def pause(self) -> None:
        self.said.append("pause")

    def resume(self) -> None:
        self.said.append("resume")


async def test_the_monitors_of_a_group_sleep_until_its_last_engine_serves() -> None:
    """There, a monitor kills engines that only sleep, unless somebody thought of pausing it."""
    first, second = Monitor(), Monitor()
    observer = suspends([first, second])
    engines = []
    for name in ("a", "b"):
        adapter = ScriptedAdapter(name, capabilities())
        engine = Engine(adapter, name=name, probe=adapter.probe, lease=None, observers=[observer])
        engines.append(await engine.connect())
    assert first.said == []
    for engine in engines:
        await engine.pause()
    assert first.said == second.said == ["pause"], "once, at the first"
    await engines[0].resume()
    assert first.said == ["pause"], "the other one sleeps"
    await engines[1].resume()
    assert first.said == second.said == ["pause", "resume"]


class SGLangEngine:
    """The signatures of slime's actor."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def release_memory_occupation(self) -> str:
        self.sent.append("release")
        return "released"

    def resume_memory_occupation(self, tags: list[str] | None = None) -> str:
        self.sent.append(f"resume {tags}")
        return "resumed"

    def continue_generation(self) -> str:
        self.sent.append("continue")
        return "continued"


class Closed(ClosedUntilRestored, SGLangEngine):
    """As a user writes it."""


def test_nothing_continues_generation_before_the_kv_cache_is_back(caplog: pytest.LogCaptureFixture) -> None:
    """There, the weight update continues generation while the KV cache is released."""
    actor = Closed()
    assert actor.continue_generation() == "continued"
    actor.release_memory_occupation()
    actor.resume_memory_occupation(tags=["weights"])
    with caplog.at_level(logging.WARNING):
        assert actor.continue_generation() is None
    assert "held back until memory is restored: cuda_graph, kv_cache" in caplog.text
    actor.resume_memory_occupation(["kv_cache"])
    assert actor.continue_generation() == "continued"
    assert actor.sent == ["continue", "release", "resume ['weights']", "resume ['kv_cache']", "continue"]
    actor.release_memory_occupation()
    actor.resume_memory_occupation()
    assert actor.continue_generation() == "continued", "without tags all of them are restored"


def refused() -> Exception:
    return urllib.error.HTTPError(
        "http://127.0.0.1:9/release_memory_occupation", 400, "not now", Message(), io.BytesIO()
    )


class Failing(SGLangEngine):
    """Whose release raises."""

    error: Exception

    def release_memory_occupation(self) -> str:
        raise self.error


class ClosedFailing(ClosedUntilRestored, Failing):
    """As a user writes it."""


def test_a_release_that_was_refused_holds_nothing_back() -> None:
    actor = ClosedFailing()
    actor.error = refused()
    with pytest.raises(urllib.error.HTTPError, match="not now"):
        actor.release_memory_occupation()
    assert actor.continue_generation() == "continued"


def test_a_release_that_was_refused_holds_back_what_was_released_before() -> None:
    actor = Closed()
    actor.release_memory_occupation()
    failing = ClosedFailing()
    failing._released, failing.error = actor._released, refused()
    with pytest.raises(urllib.error.HTTPError):
        failing.release_memory_occupation()
    assert failing.continue_generation() is None


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), TimeoutError("30 s"), RuntimeError("no")], ids=repr)
def test_a_release_that_got_no_answer_holds_generation_back(error: Exception) -> None:
    """The connection was reset after the request was sent: the memory may be released."""
    actor = ClosedFailing()
    actor.error = error
    with pytest.raises(type(error)):
        actor.release_memory_occupation()
    assert actor.continue_generation() is None
    actor.resume_memory_occupation()
    assert actor.continue_generation() == "continued"


def test_a_class_below_keeps_what_its_parent_overrides() -> None:
    class Parent(ClosedUntilRestored, SGLangEngine):
        def release_memory_occupation(self) -> str:
            return f"by the parent {super().release_memory_occupation()}"

        def continue_generation(self) -> str:
            return f"by the parent {super().continue_generation()}"

    class Below(Parent):
        def resume_memory_occupation(self, tags: Any = None) -> str:
            return f"below {super().resume_memory_occupation(tags)}"

    actor = Below()
    assert actor.continue_generation() == "by the parent continued"
    assert actor.release_memory_occupation() == "by the parent released"
    assert actor.continue_generation() is None
    assert actor.resume_memory_occupation() == "below resumed"
    assert actor.continue_generation() == "by the parent continued"
    assert Below.continue_generation is Parent.continue_generation
    assert actor.sent == ["continue", "release", "resume None", "continue"]


def test_what_a_mixin_puts_before_it_is_held_back_too() -> None:
    class Mixin:
        def continue_generation(self) -> str:
            return "mixed in"

    class Mixed(Mixin, Closed):  # type: ignore[misc]
        """Its continue_generation is the mixin's."""

    actor = Mixed()
    assert actor.continue_generation() == "mixed in"
    actor.release_memory_occupation()
    assert actor.continue_generation() is None


def test_what_a_method_takes_can_be_read_as_before() -> None:
    """A declared verb is offered what its signature takes: slime's release takes no tags, and releases all."""
    assert list(inspect.signature(Closed().release_memory_occupation).parameters) == []
    assert list(inspect.signature(Closed().resume_memory_occupation).parameters) == ["tags"]


def test_miles_release_by_tags_holds_back_for_the_tags_that_it_names() -> None:
    class Miles(SGLangEngine):
        def release_memory_occupation(self, tags: Any = None) -> str:  # type: ignore[override]
            return "released"

    class ClosedMiles(ClosedUntilRestored, Miles):
        def continue_generation(self) -> str:
            return f"mine {super().continue_generation()}"

    actor = ClosedMiles()
    actor.release_memory_occupation(tags=["cuda_graph"])
    assert actor.continue_generation() == "mine continued"
    actor.release_memory_occupation(tags=["kv_cache"])
    assert actor.continue_generation() is None


def test_a_class_without_the_methods_is_refused_by_their_name() -> None:
    with pytest.raises(TypeError, match=r"Wrong has no release_memory_occupation\(\); inherit from ClosedUntilRestore"):
        type("Wrong", (ClosedUntilRestored,), {})


def test_the_verbs_block_in_a_thread_of_their_own_loop() -> None:
    actors = Actors()
    with RolloutServer.of([Group(["a", None]), Group(["t"], needs_offload=False)], actors.engine_of) as server:
        assert server.offload() == [[None, None]], "an answer a call"
        assert [engine.state for engine in server.engines] == [State.RELEASED]
        assert server.onload_weights() == [None]
        with server.updating_weights("v1") as engines:
            for engine in engines:
                engine.push("tensor")
        server.onload_kv()
        assert actors.states == {"a": "serving"}
        assert server.release("a") == [[None, None]]
    assert "a: aclose" in map(str, actors.journal)


def test_the_fleet_of_the_slots_does_what_no_verb_does() -> None:
    """An error names `fleet.recover()`: here it is."""
    actors, group = Actors(), Group(["a"])
    with RolloutServer.of([group], actors.engine_of) as server:
        server.offload()
        actors.made["a"].adapter.script("restore", LOST)
        with pytest.raises(FleetError):
            server.onload_weights()
        found = server.fleet.recover(engines=["a"])
        assert found["a"].state is State.RELEASED
        assert server.onload_weights() == [None]
        group.engines[0] = None
        with pytest.raises(ConfigurationError, match="no engine is there: every slot is empty"):
            _ = server.fleet
