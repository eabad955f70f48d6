"""Whole cycles on a real SGLang without a weights backup: memory is measured and answers are compared."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import urllib.error
from dataclasses import replace
from pathlib import Path

import pytest
from lane import POLICY, PROMPTS, Lane, Streams, address, ask, kill_tree, output, outputs, source
from server import RealSGLang

from lifecycle import Call, DeadlineExceeded, Fleet, FleetError, GuardRefused, Reply, State, Unreachable

MIB = 1 << 20
WEIGHTS_MIB, KV_MIB = 274, 288


@pytest.fixture
def sglang(lane: Lane) -> RealSGLang:
    """The running server. Each test leaves it serving the first checkpoint."""
    lane.expected(1)
    return lane.serve("plain")


def fleet(server: RealSGLang, **options: object) -> Fleet:
    """A fleet of this one engine."""
    return Fleet.connect([address(server, **options)], policy=POLICY)


async def asked(server: RealSGLang) -> list[list[int]]:
    """The greedy tokens after the prompts, without blocking the event loop."""
    return await asyncio.to_thread(outputs, server)


async def test_the_second_checkpoint_and_back(sglang: RealSGLang, lane: Lane) -> None:
    assert len({str(tokens) for tokens in lane.expected(0) + lane.expected(1)}) == 2 * len(PROMPTS)
    async with fleet(sglang) as engines:
        for seed in (1, 0):
            async with engines.offloaded(weights=source(seed)) as (released,):
                assert released.returned_bytes is not None
                assert released.returned_bytes > 0.95 * (WEIGHTS_MIB + KV_MIB) * MIB
                assert engines["e"].memory_is_free
            assert engines["e"].state is State.SERVING
            assert await asked(sglang) == lane.expected(seed)


def test_what_the_server_calls_its_weights(sglang: RealSGLang) -> None:
    """Its weight size is how far free memory fell during the load, other processes included. Its KV size is exact."""
    usage = ask(sglang, "/server_info")["internal_states"][0]["memory_usage"]
    print(f"memory_usage says weight {usage['weight']} GiB, and the file has {WEIGHTS_MIB / 1024:.3f} GiB")
    assert usage["kvcache"] * 1024 == pytest.approx(KV_MIB, rel=0.01)


@pytest.mark.parametrize(
    ("tags", "returned_mib"),
    [(["kv_cache"], KV_MIB), (["weights"], WEIGHTS_MIB), (None, WEIGHTS_MIB + KV_MIB)],
    ids=["kv only", "weights only", "both"],
)
async def test_tags_apart_and_together_twice_in_a_row(
    sglang: RealSGLang, lane: Lane, tags: list[str] | None, returned_mib: int
) -> None:
    async with fleet(sglang) as engines:
        for turn in range(2):
            where = source(0) if tags != ["kv_cache"] else None
            async with engines.offloaded(tags, weights=where) as (released,):
                assert released.returned_bytes == pytest.approx(returned_mib * MIB, rel=0.06)
                unmapped = {"weights", "kv_cache"} if tags is None else set(tags)
                assert engines["e"].facts.unmapped() == unmapped, turn
    assert await asked(sglang) == lane.expected(0)


@pytest.mark.parametrize("mode", ["abort", "keep"])
async def test_with_four_streams_in_flight(sglang: RealSGLang, mode: str) -> None:
    alone = {prompt: await asyncio.to_thread(output, sglang, prompt, 300) for prompt in PROMPTS}
    streams = await asyncio.to_thread(Streams(sglang, tokens=300).start)
    async with fleet(sglang) as engines, engines.offloaded(weights=source(0), mode=mode):
        assert streams.in_flight == (0 if mode == "abort" else len(PROMPTS))
    ends = await asyncio.to_thread(streams.join)
    for prompt, (ids, reason) in ends.items():
        assert reason is not None
        assert reason["type"] == ("abort" if mode == "abort" else "length")
        assert ids == alone[prompt][: len(ids)], f"{prompt}: not what it answers when left alone"
        assert mode == "abort" or len(ids) == 300


async def test_a_push_that_fails_is_ended_and_the_next_begin_is_taken(lane: Lane) -> None:
    server = lane.serve("plain")
    async with fleet(server) as engines:
        await engines.pause()
        await engines.drain()
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                async with engines.updating_weights("pushed"):
                    raise ZeroDivisionError
            assert engines["e"].state is State.DRAINED
            assert engines["e"].weights_refusal() is not None
        assert ask(server, "/begin_weight_update", {})["success"]
        with pytest.raises(FleetError, match="was never ended"):
            async with engines.updating_weights("pushed"):
                raise AssertionError("its begin was refused")
        with pytest.raises(ZeroDivisionError):  # its begin was taken
            async with engines.updating_weights("pushed"):
                raise ZeroDivisionError
        await engines.update_weights(source(0))
        await engines.resume()
    assert await asked(server) == lane.expected(0)


@pytest.mark.committed_journal("sglang-release-given-up")
async def test_a_release_whose_answer_is_given_up_after_20_ms(sglang: RealSGLang, lane: Lane) -> None:
    async with fleet(sglang) as engines:
        engine = engines["e"]
        send = engine.adapter.send

        async def impatient(call: Call, *, deadline_s: float) -> Reply:
            return await send(call, deadline_s=0.02 if call.name.startswith("release") else deadline_s)

        await engine.pause()
        await engine.drain()
        engine.adapter.send = impatient  # type: ignore[method-assign]
        with pytest.raises(DeadlineExceeded) as given_up:
            await engine.release(["kv_cache"])
        engine.adapter.send = send  # type: ignore[method-assign]
        assert given_up.value.settled is State.WEIGHTS_RESTORED, "a KV-only release has these facts"
        assert engine.facts.mapped == {"weights": True, "kv_cache": False}
        await engines.onload()
        assert engine.state is State.SERVING
    assert await asked(sglang) == lane.expected(0)


@pytest.mark.committed_journal("sglang-ring")
async def test_a_health_check_by_another_client_while_paused(sglang: RealSGLang, lane: Lane) -> None:
    async with fleet(sglang) as engines:
        await engines.offload(weights=source(0))
        with pytest.raises(urllib.error.HTTPError, match="503"):
            await asyncio.to_thread(ask, sglang, "/health")
        with pytest.raises(urllib.error.HTTPError, match="503"):
            ask(sglang, "/ping")  # after that /health, serving and paused cannot be distinguished
        assert await engines["e"].verify() is State.RELEASED
        await engines.onload()
        assert engines["e"].state is State.SERVING
    assert ask(sglang, "/ready") == ""
    assert await asked(sglang) == lane.expected(0)


async def test_a_continue_sent_by_another_client_is_noticed(sglang: RealSGLang, lane: Lane) -> None:
    async with fleet(sglang) as engines:
        engine = engines["e"]
        await engine.pause()
        await engine.drain()
        ask(sglang, "/continue_generation", {})
        with pytest.raises(Unreachable, match="externally modified") as contradicted:
            await engine.release(weights=source(0))
        assert contradicted.value.settled is State.PAUSED, "whoever opened it may have restored it, with other weights"
        await engines.onload(weights=source(0))
        await engine.pause()
        ask(sglang, "/continue_generation", {})
        assert await engine.verify() is State.PAUSED
        await engines.onload(weights=source(0))
        assert engine.state is State.SERVING
    assert await asked(sglang) == lane.expected(0)


async def test_without_a_reload_it_does_not_serve(sglang: RealSGLang, lane: Lane) -> None:
    async with fleet(sglang) as engines:
        engine = engines["e"]
        await engines.offload()  # without a source it falls back to the checkpoint that it was launched with
        await engine.restore_weights()
        with pytest.raises(GuardRefused) as refused:
            await engine.restore_kv()
        assert set(refused.value.reasons) == {"weights_valid"}
        await engines.onload()
    assert await asked(sglang) == lane.expected(0)


async def test_a_checksum_shows_what_was_loaded(sglang: RealSGLang, lane: Lane) -> None:
    async with fleet(sglang, checksum="true") as engines:
        loaded = ask(sglang, "/weights_checker")["per_engine_checksum"]
        right, wrong = (replace(source(0), checksum=checksum) for checksum in (loaded, "0" * 16))
        with pytest.raises(FleetError, match="checksum"):
            async with engines.offloaded(weights=wrong):
                pass
        assert engines["e"].state is State.RELEASED
        await engines["e"].restore_weights()
        await engines["e"].update_weights(right)
        await engines.onload()
    assert await asked(sglang) == lane.expected(0)


def cycle(server: RealSGLang, *arguments: str, state: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `lifecycle cycle` as a user does, with its state in the folder `state` (None: where the fleets keep it)."""
    command = [sys.executable, "-m", "lifecycle", "cycle", address(server), "--threshold-gib", "1.8", *arguments]
    environment = os.environ | ({} if state is None else {"LIFECYCLE_STATE_DIR": str(state)})
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=environment)


def test_the_command_line_cycles_twice_with_streams_in_flight(sglang: RealSGLang, lane: Lane) -> None:
    before = outputs(sglang)
    assert len({str(tokens) for tokens in before}) == len(PROMPTS)
    streams = Streams(sglang, tokens=600).start()
    where = source(0)
    done = cycle(sglang, "--weights", where.path, "--version", "again", "--mode", "keep", "--times", "2")
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("returned") >= 2
    assert all(len(ids) == 600 for ids, _ in streams.join().values())
    assert outputs(sglang) == before == lane.expected(0)
    compared = cycle(sglang, "--weights", where.path, "--version", "again", "--parity")
    assert "parity ok: 4 prompts, 4 different outputs" in compared.stdout, compared.stdout + compared.stderr
    refused = cycle(sglang, "--weights", "kept")
    assert refused.returncode != 0
    assert "weights_recoverable" in refused.stderr + refused.stdout
    assert outputs(sglang) == before


async def test_weights_of_a_driver_that_keeps_its_notes_elsewhere_are_not_taken_for_ours(
    sglang: RealSGLang, lane: Lane, tmp_path: Path
) -> None:
    async with fleet(sglang) as engines, engines.offloaded(weights=source(0)):
        pass
    theirs = ("--weights", source(1).path, "--version", "theirs")
    done = await asyncio.to_thread(cycle, sglang, *theirs, state=tmp_path)
    assert done.returncode == 0, done.stderr
    async with fleet(sglang) as engines:
        with pytest.raises(FleetError, match="weights holds contents unknown"):
            await engines.offload(weights=source(0))
        assert await asked(sglang) == lane.expected(1), "it is left open as it was found"
        found = await engines.recover()
        assert found["e"].state is State.PAUSED
        await engines.onload(weights=source(0))
    assert await asked(sglang) == lane.expected(0)


async def test_killed_while_released_it_is_gone_and_its_memory_free(sglang: RealSGLang) -> None:
    async with fleet(sglang) as engines:
        engine = engines["e"]
        await engines.offload(weights=source(0))
        killer = threading.Thread(target=kill_tree, args=(sglang,))
        killer.start()
        await asyncio.to_thread(killer.join)
        with pytest.raises(Unreachable) as gone:
            await engine.restore_weights()
        assert gone.value.settled is State.GONE
        assert engine.memory_is_free
