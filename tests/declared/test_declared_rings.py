"""Whole rings of engines with real memory, driven by the verbs that frameworks have: slime's actor, SkyRL's RPCs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from kept_engine import TAGS_MIB, Rpc, undisturbed
from lifecycle.adapters.declared import About, DeclaredAdapter, Verb, Verbs
from lifecycle.adapters.loopback import LoopbackProcess
from loopback_verbs import Http, adapter_of

from lifecycle import (
    ConfigurationError,
    DeadlineExceeded,
    Engine,
    Fleet,
    FromDisk,
    Grade,
    GuardRefused,
    Kept,
    NotProved,
    Policy,
    Proved,
    Refuted,
    State,
    Unreachable,
)

pytestmark = pytest.mark.slow

POLICY = Policy(residual_threshold_gib=0.2, settle_s=1.0, poll_s=0.02)

#: Tokens of a request that does not end before its test does.
LONG = 1_000_000

SIZES = dict.fromkeys(("weights", "kv_cache"), TAGS_MIB << 20)


class SlimeActor:
    """An engine's actor with the five signatures of slime's SGLangEngine; ranks other than node 0 answer None.

    Source: slime, backends/sglang_utils/sglang_engine.py: pause_generation() posts an empty body, which is an abort,
    release_memory_occupation() takes no tags and flushes first, and resume_memory_occupation() takes tags.
    """

    def __init__(self, url: str, node_rank: int) -> None:
        self._http, self.node_rank = Http(url), node_rank

    def pause_generation(self) -> Any:
        return self._http.ask("/pause_generation", {}) if self.node_rank == 0 else None

    def flush_cache(self) -> Any:
        return self._http.flush() if self.node_rank == 0 else None

    def release_memory_occupation(self) -> Any:
        return self._http.ask("/release_memory_occupation", {}) if self.node_rank == 0 else None

    def resume_memory_occupation(self, tags: list[str] | None = None) -> Any:
        return self._http.ask("/resume_memory_occupation", {"tags": tags}) if self.node_rank == 0 else None

    def continue_generation(self) -> Any:
        return self._http.ask("/continue_generation", {}) if self.node_rank == 0 else None


def of_all(actors: Sequence[SlimeActor], name: str, **args: Any) -> list[Any]:
    """What every rank answered, in order, as `ray.get` of a list gives it."""
    return [getattr(actor, name)(**args) for actor in actors]


def slime_verbs(actors: Sequence[SlimeActor], http: Http) -> Verbs:
    """Its five verbs, with a load and a token over HTTP (`get_url()`)."""

    def resume_memory_occupation(tags: Sequence[str]) -> list[Any]:
        return of_all(actors, "resume_memory_occupation", tags=list(tags))

    both = ("weights", "kv_cache")
    flush = Verb(call=partial(of_all, actors, "flush_cache"), repeatable=True, drops_cache=True, name="flush_cache")
    return Verbs(
        pause={"abort": Verb(call=partial(of_all, actors, "pause_generation"), repeatable=True)},
        resume=Verb(call=partial(of_all, actors, "continue_generation"), repeatable=True),
        release=Verb(
            call=partial(of_all, actors, "release_memory_occupation"), effects=dict.fromkeys(both, "discarded")
        ),
        restore=Verb(call=resume_memory_occupation, effects=dict.fromkeys(both, "resident")),
        drop_cache=flush,
        idle=flush,
        load=Verb(call=http.load, repeatable=True),
        answer=http.answer,
    )


@pytest.fixture(scope="module")
def loopback() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(weights_mib=72, kv_mib=72, arguments=("--abort-poll-s", "0.02")) as process:
        yield process


@pytest.fixture
def rpc() -> Iterator[Rpc]:
    with Rpc() as started:
        yield started


def skyrl_verbs(rpc: Rpc, **changes: Any) -> Verbs:
    """What SkyRL has: requests are held, and their KV is kept on the host through a release, below the scheduler."""

    def sleep(tags: Sequence[str]) -> Any:
        return rpc.call("sleep", tags=list(tags))

    def wake(tags: Sequence[str]) -> Any:
        return rpc.call("wake", tags=list(tags))

    whole = Verbs(
        pause={mode: Verb(call=partial(rpc.call, "pause", mode=mode), repeatable=True) for mode in ("abort", "freeze")},
        resume=Verb(call=partial(rpc.call, "resume"), repeatable=True),
        release=Verb(call=sleep, effects=dict.fromkeys(("weights", "kv_cache"), "kept_on_host")),
        restore=Verb(call=wake, effects=dict.fromkeys(("weights", "kv_cache"), "resident")),
        load=lambda path, version: rpc.call("load", path=path, version=version),
        drop_cache=partial(rpc.call, "reset_cache"),
        admission=lambda: rpc.call("admission"),
        running=lambda: rpc.call("steps_run"),
        answer=lambda tokens: rpc.call("generate", tokens=tokens),
        barrier=lambda: rpc.call("admission"),
    )
    return replace(whole, **changes)


def skyrl_engine(rpc: Rpc, *, policy: Policy = POLICY, live_update: bool = True, **changes: Any) -> Engine:
    about = About(engine="kept", device="cpu", sizes=SIZES, live_update=live_update)
    adapter = DeclaredAdapter(f"rpc:{rpc.pid}", skyrl_verbs(rpc, **changes), processes=rpc.pid, about=about)
    return Engine(adapter, policy=policy, lease=None)


async def test_a_ring_by_slimes_five_verbs(loopback: LoopbackProcess) -> None:
    """Nothing there reads what it admits: who started it says where it is, and the first ring proves it."""
    http = Http(loopback.url)
    verbs = slime_verbs([SlimeActor(loopback.url, 0), SlimeActor(loopback.url, 1)], http)
    about = About(engine="slime", device="cpu", sizes=SIZES)
    adapter = DeclaredAdapter(f"slime:{loopback.port}", verbs, processes=[loopback.pid], about=about)
    home = FromDisk(str(loopback.weights), "v0")
    before = await asyncio.to_thread(http.answer, "hello", 8)
    async with Fleet([Engine(adapter, name="e", policy=POLICY, lease=None)], policy=POLICY) as fleet:
        engine = fleet["e"]
        assert engine.state is State.FAILED, "nothing says whether it admits requests"
        assert any("nothing reads whether it admits requests" in note for note in engine.capabilities.notes)
        engine.override_state(State.SERVING, by="the one who started it", reason="it was launched just now")
        for _ in range(2):
            released = await fleet.offload(weights=home)
            assert [each.value for each in released[0].replies] == [(None, None)], "of each rank, as ray.get gives it"
            assert isinstance(released[0].verdicts["memory_returned"], Proved)
            assert engine.memory_is_free
            await fleet.onload()
            assert engine.state is State.SERVING
        with pytest.raises(
            GuardRefused, match="it cannot release kv_cache together; it can release: kv_cache, weights"
        ):
            await engine.pause()
            await engine.drain()
            await engine.release(["kv_cache"])
        await engine.resume()
    assert await asyncio.to_thread(http.answer, "hello", 8) == before


async def test_requests_and_their_kv_survive_a_release_that_keeps_it_on_the_host(rpc: Rpc) -> None:
    slot = rpc.call("submit", tokens=LONG)
    engine = skyrl_engine(rpc)
    async with Fleet([engine], policy=POLICY) as fleet:
        await left(rpc, slot, LONG - 50)
        await fleet.offload(mode="freeze", weights=Kept())
        assert engine.memory_is_free
        waits = rpc.call("left_of", slot=slot)
        assert rpc.call("left_of", slot=slot) == waits > 0, "it waits in the engine"
        await fleet.onload()
        assert engine.facts.cache_fresh is True
        assert "reset_cache" not in rpc.called, "it would take the KV of the requests that wait"
    await left(rpc, slot, waits - 50)
    rpc.call("pause", mode="freeze")
    got = rpc.call("tokens_of", slot=slot)
    assert got == undisturbed(len(got))


async def left(rpc: Rpc, slot: int, at_most: int) -> None:
    """Returns once a request has at most so many tokens left."""
    end = time.monotonic() + 60
    while rpc.call("left_of", slot=slot) > at_most:
        assert time.monotonic() < end, "the request stands still"
        await asyncio.sleep(0.01)


async def test_a_live_update_in_a_window_goes_on_with_older_kv_only_where_that_is_declared(rpc: Rpc) -> None:
    engine = skyrl_engine(rpc)
    async with Fleet([engine], policy=POLICY) as fleet:
        slot = rpc.call("submit", tokens=LONG)
        await left(rpc, slot, LONG - 10)
        await fleet.offload(mode="freeze", weights=FromDisk("9", "v2"))
        await fleet.onload()
        assert engine.state is State.SERVING
        assert engine.desired.version == "v2"
        await left(rpc, slot, rpc.call("left_of", slot=slot) - 10)
        assert "reset_cache" not in rpc.called


async def test_without_it_other_weights_are_refused_before_anything_is_released(rpc: Rpc) -> None:
    engine = skyrl_engine(rpc, live_update=False)
    await engine.connect()
    await engine.pause("freeze")
    await engine.drain()
    with pytest.raises(Exception, match="declare live_update=True"):
        await engine.update_weights(FromDisk("9", "v2"))
    assert engine.state is State.DRAINED
    assert "load" not in rpc.called
    await engine.resume()
    await engine.aclose()


async def test_after_an_update_an_aborting_window_empties_the_cache(rpc: Rpc) -> None:
    async with Fleet([skyrl_engine(rpc)], policy=POLICY) as fleet:
        await fleet.offload(mode="abort", weights=FromDisk("9", "v2"))
        await fleet.onload()
        assert rpc.called.count("reset_cache") == 1


async def test_a_release_that_answers_and_frees_nothing_is_found(rpc: Rpc) -> None:
    rpc.call("lie")
    engine = skyrl_engine(rpc)
    await engine.connect()
    await engine.pause("abort")
    await engine.drain()
    with pytest.raises(NotProved) as failed:
        await engine.release(weights=Kept(), deadline_s=2.0)
    assert isinstance(failed.value.verdicts["memory_returned"], Refuted)
    assert not engine.memory_is_free
    await engine.aclose()


async def test_a_release_that_hangs_leaves_it_failed_until_its_process_has_ended(rpc: Rpc) -> None:
    def hang(tags: Sequence[str]) -> Any:
        return rpc.call("hang")

    engine = skyrl_engine(rpc, release=Verb(call=hang, effects=dict.fromkeys(SIZES, "kept_on_host"), name="sleep"))
    await engine.connect()
    await engine.pause("abort")
    await engine.drain()
    with pytest.raises(DeadlineExceeded) as failed:
        await engine.release(weights=Kept(), deadline_s=2.0)
    assert failed.value.settled is State.FAILED
    assert "still runs" in str(failed.value)
    with pytest.raises(Exception, match="failed"):
        await engine.resume()
    assert (await engine.recover(deadline_s=1.0)).state is State.FAILED
    assert "resume" not in rpc.called, "nothing is called behind a call that hangs"
    await asyncio.to_thread(rpc.kill)
    assert (await engine.recover()).state is State.GONE
    assert engine.memory_is_free
    await engine.aclose()


async def test_a_refusal_that_leaves_all_as_it_was_is_one(rpc: Rpc) -> None:
    """The engine names what it refuses, and its user declares that nothing has changed then."""
    refusing = Verb(
        call=lambda tags: {"success": False, "message": "a drain is pending"},
        effects=dict.fromkeys(SIZES, "kept_on_host"),
        refusal_is_untouched=True,
        name="sleep",
    )
    engine = skyrl_engine(rpc, release=refusing)
    await engine.connect()
    await engine.pause("abort")
    await engine.drain()
    with pytest.raises(Exception, match="a drain is pending") as failed:
        await engine.release(weights=Kept())
    assert failed.value.settled is State.DRAINED  # type: ignore[attr-defined]
    await engine.resume()
    assert engine.state is State.SERVING
    await engine.aclose()


async def test_ranks_that_disagree_leave_it_unknown_what_is_mapped(loopback: LoopbackProcess) -> None:
    adapter = adapter_of(
        loopback,
        size_mib=72,
        release=Verb(
            call=lambda tags: [True, False],
            effects=dict.fromkeys(SIZES, "discarded"),
            refusal_is_untouched=True,
            name="release",
        ),
    )
    engine = Engine(adapter, name="e", policy=POLICY, lease=None)
    await engine.connect()
    await engine.pause("abort")
    await engine.drain()
    with pytest.raises(Unreachable, match="none that is clear, and of all ranks: rank 1: it answered False") as failed:
        await engine.release(weights=FromDisk(str(loopback.weights), "v0"))
    assert failed.value.settled is State.DRAINED, "bytes decided: nothing was released"
    await engine.aclose()
    await asyncio.to_thread(Http(loopback.url).resume)


async def test_what_nobody_reads_is_refused_at_connect_or_warned_of(rpc: Rpc) -> None:
    silent: dict[str, Any] = {"running": None, "answer": None}
    with pytest.raises(ConfigurationError) as refused:
        await skyrl_engine(rpc, **silent).connect()
    assert "idle can only be acknowledged" in str(refused.value)
    assert "answers can only be acknowledged" in str(refused.value)
    warned = skyrl_engine(rpc, policy=replace(POLICY, unprovable="warn"), **silent)
    await warned.connect()
    assert {"idle", "answers"} <= set(warned.conditions)
    accepting = replace(POLICY, accept={"idle": Grade.ACKNOWLEDGED, "answers": Grade.ACKNOWLEDGED})
    engine = skyrl_engine(rpc, policy=accepting, **silent)
    async with Fleet([engine], policy=accepting) as fleet:
        await fleet.offload(weights=Kept(), mode="abort")
        assert engine.memory_is_free
        await fleet.onload()
        assert engine.state is State.SERVING
    await warned.aclose()
