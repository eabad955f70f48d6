"""A real blocking `LLM` of vLLM in this process: its core runs requests that were enqueued, and their outputs wait."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from engine_thread import PROMPTS, Alone, StopsBeforeACall, until
from vllm_object import TOKENS, arguments, end, engine_of, greedy, kill_core, source

from lifecycle import DeadlineExceeded, Fleet, FleetError, Kept, State
from lifecycle.core.facts import PauseMode
from lifecycle.core.verdicts import Refuted
from lifecycle.sync import Fleet as BlockingFleet
from lifecycle.sync import Loop

BOTH = frozenset({"weights", "kv_cache"})


@pytest.fixture(scope="module")
def llm() -> Iterator[Any]:
    """An LLM that every test leaves serving the first checkpoint."""
    from vllm import LLM

    made = LLM(**arguments())
    yield made
    made.llm_engine.engine_core.shutdown()


def core_of(llm: Any) -> int:
    """The pid of its engine core."""
    [core] = llm.llm_engine.engine_core.resources.engine_manager.processes
    return int(core.pid)


@pytest.fixture(scope="module")
def alone(llm: Any) -> Alone:
    """What each prompt is answered with while nothing disturbs it."""
    return asked(llm, TOKENS)


def asked(llm: Any, tokens: int) -> Alone:
    """What each prompt is answered with now."""
    outputs = llm.generate(list(PROMPTS), greedy(tokens), use_tqdm=False)
    return {prompt: tuple(each.outputs[0].token_ids) for prompt, each in zip(PROMPTS, outputs, strict=True)}


def fates(llm: Any, alone: Alone) -> set[tuple[str | None, bool]]:
    """Why each enqueued request ended, and whether it got all its tokens, which must be those that it gets alone."""
    ended = llm.wait_for_completion(use_tqdm=False)
    for prompt, each in zip(PROMPTS, ended, strict=True):
        ids = tuple(each.outputs[0].token_ids)
        print(f"{prompt}: {len(ids)} of {TOKENS} tokens, {each.outputs[0].finish_reason}")
        assert ids == alone[prompt][: len(ids)], f"{prompt}: not what it gets when alone"
    return {(each.outputs[0].finish_reason, len(each.outputs[0].token_ids) == TOKENS) for each in ended}


def blocking(llm: Any, *observers: Any, seen: bool = False) -> BlockingFleet:
    """A fleet whose calls block, of this one engine."""
    return BlockingFleet(Fleet([engine_of(llm, *observers, seen=seen)]), Loop())


def test_what_it_can_do(llm: Any) -> None:
    with blocking(llm) as fleet:
        engine = fleet["e"]
        assert set(engine.capabilities.pause) == {"abort", "wait", "keep", "freeze"}
        assert engine.capabilities.releasable == {BOTH}
        assert engine.state is State.SERVING
        assert f":{core_of(llm)}:" in engine.facts.boot


@pytest.mark.parametrize(("mode", "fate"), [("keep", ("length", True)), ("wait", ("length", True))])
def test_the_whole_ring_with_requests_enqueued(llm: Any, alone: Alone, mode: PauseMode, fate: tuple[str, bool]) -> None:
    llm.enqueue(list(PROMPTS), greedy(TOKENS), use_tqdm=False)
    with blocking(llm) as fleet:
        with fleet.offloaded(weights=Kept(), mode=mode):
            assert fleet["e"].state is State.RELEASED
            assert llm.llm_engine.get_num_unfinished_requests() == len(PROMPTS), "their outputs wait"
        assert fleet["e"].state is State.SERVING
    assert fates(llm, alone) == {fate}


def test_a_pause_by_abort(llm: Any, alone: Alone) -> None:
    llm.enqueue(list(PROMPTS), greedy(TOKENS), use_tqdm=False)
    with blocking(llm) as fleet:
        fleet.pause("abort")
        fleet.drain()
        fleet.resume()
    [(reason, whole)] = fates(llm, alone)
    assert (reason, whole) == ("abort", False)


def test_a_sleep_that_frees_nothing_is_no_release(llm: Any, alone: Alone) -> None:
    with blocking(llm, seen=True) as fleet:
        with pytest.raises(FleetError, match="memory_returned"):
            fleet.offload(weights=Kept())
        assert fleet["e"].state is State.RELEASED
        assert isinstance(fleet["e"].conditions["memory_returned"].verdict, Refuted)
        fleet.onload()
        assert fleet["e"].state is State.SERVING
    assert asked(llm, TOKENS) == alone


def test_other_weights_and_back(llm: Any, alone: Alone) -> None:
    with blocking(llm) as fleet:
        for seed in (1, 0):
            with fleet.offloaded(weights=source(seed)):
                assert str(fleet["e"].facts.contents["weights"]) == "garbage"
            assert llm.get_weight_version() == f"seed-{seed}"
            assert (asked(llm, TOKENS) == alone) is (seed == 0)


def test_a_deadline_shorter_than_a_call(llm: Any, alone: Alone) -> None:
    """The call runs on in its thread, and nothing is asked of the engine before it has ended."""
    stops = StopsBeforeACall(core_of(llm), State.PAUSING)
    with blocking(llm, stops) as fleet:
        try:
            with pytest.raises(DeadlineExceeded):
                fleet["e"].pause("keep", deadline_s=10.0)
            assert fleet["e"].state is State.FAILED
        finally:
            stops.go_on()
        found = fleet["e"].recover()
        assert found.state in (State.PAUSED, State.DRAINED)
        fleet.resume()
        assert fleet["e"].state is State.SERVING
    assert asked(llm, TOKENS) == alone


def test_an_engine_core_that_is_killed_is_gone_once_its_worker_has_ended_too(llm: Any) -> None:
    with blocking(llm) as fleet:
        fleet.pause("keep")
        workers = kill_core(core_of(llm))
        until(lambda: llm.llm_engine.engine_core.resources.engine_dead)
        end(workers)
        assert fleet["e"].verify() is State.GONE
