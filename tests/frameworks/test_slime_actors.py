"""slime's actors over real engines, by the shim in examples/slime_like.py: orders on recorded calls, and faults."""

from __future__ import annotations

import base64
import importlib.util
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from frameworks.slime_actor import ClosedEngine, Notes, ServerGroup, SGLangEngine
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import FleetError, Policy, State
from lifecycle.frameworks.slime import RolloutServer
from lifecycle.sync import Fleet

pytestmark = pytest.mark.slow

SHIM = Path(__file__).parents[2] / "examples" / "slime_like.py"
POLICY = Policy(residual_threshold_gib=0.045, visible_bytes=4 << 20, settle_s=1.0, poll_s=0.02)
SMALL: dict[str, Any] = {"weights_mib": 32, "kv_mib": 24, "arguments": ("--abort-poll-s", "0.02")}


def shim() -> Any:
    """The example, as its user has it."""
    spec = importlib.util.spec_from_file_location("slime_like", SHIM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def processes() -> Iterator[list[LoopbackProcess]]:
    """Three engines for all of these tests; each test leaves them serving."""
    started = [LoopbackProcess.start(**SMALL) for _ in range(3)]
    yield started
    for process in started:
        process.stop()


def actors_of(processes: Sequence[LoopbackProcess], notes: Notes) -> list[ClosedEngine]:
    return [ClosedEngine(name, each.url, notes) for name, each in zip("abc", processes, strict=False)]


def weights_of(process: LoopbackProcess) -> str:
    return base64.b64encode(process.weights.read_bytes()).decode()


def update_weights(actors: Sequence[Any], blob: str, version: str) -> None:
    """slime's update, which continues generation at its end. Source: update_weight_from_tensor.py."""
    for actor in actors:
        actor.update_weights_from_tensor([blob], version)
    for actor in actors:
        actor.continue_generation()


def test_the_shim_has_at_most_30_lines() -> None:
    assert len(SHIM.read_text().splitlines()) <= 30


def test_the_orders_of_a_window_on_recorded_calls(processes: list[LoopbackProcess], report: Any) -> None:
    notes = Notes()
    a, b, c = actors_of(processes, notes)
    a.slow_s["/pause_generation"] = b.slow_s["/flush_cache"] = c.slow_s["/resume_memory_occupation"] = 0.2
    groups = [ServerGroup([b, None, a]), ServerGroup([object()], needs_offload=False), ServerGroup([c])]
    with shim().rollout_server(groups, policy=POLICY, device="cpu") as server:
        assert [each["actor"] for each in server.offload()] == ["b", "a", "c"]
        pauses, flushes, releases = (
            notes.of(f"{name}") for name in ("pause_generation", "flush_cache", "release_memory_occupation")
        )
        assert len(pauses) == len(releases) == 3
        assert notes.all_before_any(pauses, flushes), "a pause that is acknowledged late holds every flush back"
        assert notes.all_before_any(flushes, releases), "and a slow flush every release"
        assert [each["actor"] for each in server.onload_weights()] == ["b", "a", "c"]
        assert len(notes.of("resume_memory_occupation", ("weights",))) == 3
        assert notes.of("continue_generation") == [], "weights alone resume nothing"
        with server.updating_weights("7"):
            update_weights([a, b, c], weights_of(processes[0]), "7")
        early = notes.of("continue_generation")
        assert [each["actor"] for each in server.onload_kv()] == ["b", "a", "c"]
        restores = notes.of("resume_memory_occupation", ("kv_cache",))
        continued = [each for each in notes.of("continue_generation") if each not in early]
        assert (len(restores), len(continued)) == (3, 3)
        assert notes.all_before_any(restores, continued), "all are mapped before any generates"
        assert [engine.state for engine in server.engines] == [State.SERVING] * 3
    asked = [each.method for each in notes.calls if each.actor == "a" and each not in early]
    assert len(asked) - asked.count("update_weights_from_tensor") == 9, asked
    assert {actor.get_weight_version() for actor in (a, b, c)} == {"7"}
    assert all(actor.health_generate() for actor in (a, b, c))
    report(f"slime over this library: {len(SHIM.read_text().splitlines())} lines")


def test_a_release_that_answers_200_and_frees_nothing_fails_the_offload() -> None:
    notes = Notes()
    with LoopbackProcess.start(**SMALL) as good, LoopbackProcess.start(**SMALL, faults=["release=keep"]) as lies:
        a, b = actors_of([good, lies], notes)
        with shim().rollout_server([ServerGroup([a, b])], policy=POLICY, device="cpu") as server:
            with pytest.raises(FleetError, match=r"release failed.*memory_returned"):
                server.offload(deadline_s=3.0)
            assert server.engines[0].state is not State.PAUSED


def test_a_flush_that_hangs_ends_at_the_deadline_and_the_others_serve() -> None:
    notes = Notes()
    with LoopbackProcess.start(**SMALL) as good, LoopbackProcess.start(**SMALL, faults=["flush=hang"]) as hangs:
        a, b = actors_of([good, hangs], notes)
        with shim().rollout_server([ServerGroup([a]), ServerGroup([b])], policy=POLICY, device="cpu") as server:
            begun = time.monotonic()
            with pytest.raises(FleetError, match=r"1 of 2 engines: .*drain failed"):
                server.offload(deadline_s=2.0)
            assert time.monotonic() - begun < 12.0
            assert server.engines[0].state is State.SERVING
            assert a.health_generate()
            assert notes.of("release_memory_occupation") == []
            hangs.kill()


def test_an_engine_that_is_killed_in_the_window_is_replaced_in_its_slot(processes: list[LoopbackProcess]) -> None:
    notes = Notes()
    a = actors_of(processes, notes)[0]
    with LoopbackProcess.start(**SMALL) as killed, LoopbackProcess.start(**SMALL) as fresh:
        group = ServerGroup([a, ClosedEngine("b", killed.url, notes)])
        with shim().rollout_server([group], policy=POLICY, device="cpu") as server:
            server.offload()
            killed.kill()
            with pytest.raises(FleetError, match="restore_weights failed"):
                server.onload_weights(deadline_s=5.0)
            group.all_engines[1] = None
            assert server.onload_weights() == []
            group.all_engines[1] = b = ClosedEngine("b2", fresh.url, notes)
            assert [each["actor"] for each in server.recover()] == ["b2"]
            assert [engine.state for engine in server.engines] == [State.WEIGHTS_RESTORED] * 2
            flushed = [each for each in notes.of("flush_cache") if each.actor == "b2"]
            released = [each for each in notes.of("release_memory_occupation") if each.actor == "b2"]
            assert notes.all_before_any(flushed[:1], released)
            with server.updating_weights("8"):
                update_weights([a, b], weights_of(processes[0]), "8")
            server.onload_kv()
            assert [engine.state for engine in server.engines] == [State.SERVING] * 2
            assert a.health_generate()
            assert b.health_generate()


def left_in_a_window(actor: SGLangEngine, blob: str) -> None:
    """slime alone, in another process, has released an engine, and given it weights."""
    actor.pause_generation()
    actor.release_memory_occupation()
    actor.resume_memory_occupation(tags=["weights"])
    actor.update_weights_from_tensor([blob], "9")


def test_a_process_that_never_saw_an_engine_brings_its_kv_back() -> None:
    notes = Notes()
    with LoopbackProcess.start(**SMALL) as process:
        (actor,) = actors_of([process], notes)
        left_in_a_window(actor, weights_of(process))
        nobody = RolloutServer.of([ServerGroup([actor])], lambda actor: shim().engine_of(actor, POLICY, "cpu"))
        with nobody, pytest.raises(FleetError, match="no command is allowed here"):
            nobody.onload_kv()
        with shim().rollout_server([ServerGroup([actor])], policy=POLICY, device="cpu") as server:
            assert len(server.onload_kv()) == 1
            (engine,) = server.engines
            assert engine.state is State.SERVING
            assert "asserted by slime, which started it" in repr(engine)
        assert actor.health_generate()


def test_an_update_that_opens_the_engine_before_its_kv_is_back_is_said() -> None:
    """Over URLs, where what an engine admits is read. Nothing is served: it is closed again, and the error says why."""
    with LoopbackProcess.start(**SMALL) as process:
        opens = SGLangEngine("e", process.url, Notes())
        with Fleet.connect([f"loopback://127.0.0.1:{process.port}?name=e"], policy=POLICY) as fleet:
            server = RolloutServer(fleet)
            server.offload()
            server.onload_weights()
            said = pytest.raises(FleetError, match="it says that it admits requests: somebody opened it")
            with said, server.updating_weights("10") as (engine,):
                engine.push("tensor", serialized_named_tensors=[weights_of(process)], load_format="safetensors")
                opens.continue_generation()
            assert fleet["e"].facts.admission == "closed"
            with pytest.raises(FleetError, match="push them first"):
                server.onload_kv()
            with server.updating_weights("10") as (engine,):
                engine.push("tensor", serialized_named_tensors=[weights_of(process)], load_format="safetensors")
            server.onload_kv()
            assert fleet["e"].state is State.SERVING
