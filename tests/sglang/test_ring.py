"""The ring on real processes: memory measured, outputs compared."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from engines import Recorder, generate, generating, names, post, url
from lifecycle.adapters.loopback import make_weights

from lifecycle import Fleet, FleetError, FromDisk, Grade, GuardRefused, Kept, Policy, Proved, State
from lifecycle.core.observer import Observers

MIB = 1 << 20
PROMPTS = ("once upon a time", "the capital of", "def main():", "zebra")


async def test_offloaded_gives_memory_back_and_serves_the_new_weights(start, checkpoint: Path, policy: Policy) -> None:
    first, second = start(), start(weights=checkpoint)
    before = [generate(first, prompt) for prompt in PROMPTS]
    wanted = [generate(second, prompt) for prompt in PROMPTS]
    assert before != wanted
    async with Fleet.connect([url(first, name="a", group="x"), url(second, name="b")], policy=policy) as fleet:
        async with fleet.offloaded(weights=FromDisk(str(checkpoint), "step-2")) as released:
            assert names(released) == ["a", "b"]
            for record in released:
                assert record.expected_bytes is not None
                assert record.returned_bytes is not None
                assert record.returned_bytes > 0.95 * record.expected_bytes > 180 * MIB
            assert all(engine.memory_is_free for engine in fleet)
        assert [engine.state for engine in fleet] == [State.SERVING, State.SERVING]
        assert not any(engine.memory_is_free for engine in fleet)
    assert [generate(first, prompt) for prompt in PROMPTS] == wanted


async def test_kept_weights_come_back_by_the_backup(start, policy: Policy) -> None:
    engine = start(weights_backup=True)
    before = [generate(engine, prompt) for prompt in PROMPTS]
    async with Fleet.connect([url(engine)], policy=policy) as fleet:
        for _ in range(2):
            async with fleet.offloaded(weights=Kept()):
                pass
    assert [generate(engine, prompt) for prompt in PROMPTS] == before


async def test_a_restore_without_reload_is_refused_until_reloaded(start, checkpoint: Path, policy: Policy) -> None:
    process = start()
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        engine = fleet["e"]
        await fleet.offload(weights=FromDisk(str(checkpoint), "step-2"))
        await engine.restore_weights()
        with pytest.raises(GuardRefused) as refused:
            await engine.restore_kv()
        assert set(refused.value.reasons) == {"weights_valid"}
        assert engine.state is State.WEIGHTS_RESTORED
        await fleet.onload()
        assert engine.state is State.SERVING


@pytest.mark.parametrize("ranks", [1, 2])
async def test_only_kv_is_released(start, policy: Policy, ranks: int) -> None:
    process = start(ranks=ranks)
    before = generate(process, PROMPTS[0])
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        recorder = Recorder()
        fleet["e"]._session.observers = Observers([recorder])
        async with fleet.offloaded(["kv_cache"]) as (released,):
            assert released.returned_bytes == pytest.approx(96 * MIB, rel=0.1)
            assert fleet["e"].facts.mapped == {"weights": True, "kv_cache": False}
    assert generate(process, PROMPTS[0]) == before
    assert [name for _, name in recorder.sent("release_memory_occupation", "update_weights_from_disk")] == [
        "release_memory_occupation"
    ]


async def test_the_weights_of_two_ranks_come_back_together(start, checkpoint: Path, policy: Policy) -> None:
    process = start(ranks=2)
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        assert fleet["e"].capabilities.ranks == 2
        async with fleet.offloaded(weights=FromDisk(str(checkpoint), "step-2")) as (released,):
            assert released.returned_bytes == pytest.approx(192 * MIB, rel=0.1)


@pytest.mark.parametrize("mode", ["abort", "keep"])
async def test_requests_in_flight(start, policy: Policy, mode: str) -> None:
    process = start(weights_backup=True)
    alone = await generating(process, "a long story about", 300)
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        request = asyncio.create_task(generating(process, "a long story about", 300))
        await asyncio.to_thread(_until_running, process)
        async with fleet.offloaded(weights=Kept(), mode=mode):
            assert request.done() == (mode == "abort")
        answer = await asyncio.wait_for(request, 20)
    if mode == "keep":
        assert answer == alone, "a parked request goes on where it was, with the same greedy output"
    else:
        assert answer == alone[: len(answer)]
        assert len(answer) < 300


@pytest.mark.slow
async def test_kept_requests_are_checked_until_they_get_tokens(
    start, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(arguments=("--max-running-requests", "1", "--step-delay-s", "0.02"))
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        request = asyncio.create_task(generating(process, "a long story about", 200))
        await asyncio.to_thread(_until_running, process)
        monkeypatch.setattr("lifecycle.adapters.sglang.adapter.QUEUED_S", 0.1)
        checks = _fails_once(fleet["e"].adapter, monkeypatch)
        async with fleet.offloaded(["kv_cache"], mode="keep"):
            pass
        assert not request.done()
        assert len(checks) == 2
        assert len(await asyncio.wait_for(request, 20)) == 200


def _fails_once(adapter, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The first check for tokens finds none, as on a server so busy that it does not update its counts in time."""
    check, checks = adapter._others_get_tokens, []

    async def others_get_tokens(clock) -> bool:
        checks.append(bool(checks) and await check(clock))
        return checks[-1]

    monkeypatch.setattr(adapter, "_others_get_tokens", others_get_tokens)
    return checks


def _until_running(process) -> None:
    """Returns once a request runs in the engine."""
    import time
    import urllib.request

    end = time.monotonic() + 10
    while time.monotonic() < end:
        with urllib.request.urlopen(process.url + "/v1/loads", timeout=5) as response:
            if b'"num_running_reqs":1' in response.read().replace(b" ", b""):
                return
    raise AssertionError("the request never ran")


@pytest.mark.slow
async def test_a_push_is_one_collective(start, tmp_path: Path, policy: Policy) -> None:
    checkpoint = make_weights(tmp_path / "step-2.safetensors", seed=7, weights_mib=24)
    processes = [start(weights_mib=24), start(weights_mib=24)]
    blob = _as_push(checkpoint)
    slow = {**policy.deadlines_s, "update_weights": 60.0}  # 32 MB of JSON for each engine
    policy = replace(policy, deadlines_s=slow, accept={"weights_mapped": Grade.ACKNOWLEDGED})  # 24 MiB: too few to see
    urls = [url(process, name=f"e{index}") for index, process in enumerate(processes)]
    async with Fleet.connect(urls, policy=policy) as fleet:
        await fleet.offload(weights=FromDisk("/nonexistent", "never"))
        await fleet.restore_weights()
        async with fleet.updating_weights("step-2") as parties:
            assert [engine.name for engine in parties] == ["e0", "e1"]
            for engine in parties:
                await engine.push("tensor", serialized_named_tensors=[blob], load_format="safetensors")
        await fleet.onload()
    first, second = (generate(process, PROMPTS[0]) for process in processes)
    assert first == second == generate(start(weights_mib=24, weights=checkpoint), PROMPTS[0])


async def test_a_push_that_fails_fails_for_all(start, policy: Policy) -> None:
    processes = [start(), start()]
    urls = [url(process, name=f"e{index}") for index, process in enumerate(processes)]
    async with Fleet.connect(urls, policy=policy) as fleet:
        await fleet.offload(weights=FromDisk("/nonexistent", "never"))
        await fleet.restore_weights()
        with pytest.raises(RuntimeError, match="the trainer died"):
            async with fleet.updating_weights("step-2"):
                raise RuntimeError("the trainer died")
        assert {engine.state for engine in fleet} == {State.WEIGHTS_RESTORED}
        with pytest.raises(FleetError, match="weights_valid"):
            await fleet.restore_kv()


def _as_push(checkpoint: Path) -> str:
    import base64

    return base64.b64encode(checkpoint.read_bytes()).decode()


@pytest.mark.slow
async def test_checksums_are_compared_where_asked(start, checkpoint: Path, policy: Policy) -> None:
    right = post(start(weights=checkpoint), "/weights_checker", {"action": "checksum"})["per_engine_checksum"]
    process = start()
    async with Fleet.connect([url(process, name="e", checksum="true")], policy=policy) as fleet:
        engine = fleet["e"]
        await fleet.offload(weights=FromDisk(str(checkpoint), "step-2", checksum="0" * 64))
        with pytest.raises(FleetError, match="checksum"):
            await fleet.onload()
        assert engine.state is State.RELEASED, "what could not be shown to be right was released again"
        await engine.restore_weights()
        record = await engine.update_weights(FromDisk(str(checkpoint), "step-2", checksum=str(right)))
        assert isinstance(record.verdicts["weights_match"], Proved)
        await fleet.onload()


async def test_weights_are_updated_in_place(start, checkpoint: Path, policy: Policy) -> None:
    process = start()
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        engine = fleet["e"]
        await engine.pause()
        await engine.drain()
        await engine.update_weights(FromDisk(str(checkpoint), "step-2"))
        assert engine.state is State.DRAINED
        with pytest.raises(GuardRefused, match="force"):
            await engine.update_weights(FromDisk(str(checkpoint), "step-2"))
        await engine.update_weights(FromDisk(str(checkpoint), "step-2"), force=True)
        await engine.resume()
    assert generate(process, PROMPTS[1]) == generate(start(weights=checkpoint), PROMPTS[1])


async def test_a_poisoned_health_is_healed_on_resume(start, policy: Policy) -> None:
    process = start(arguments=["--health-timeout-s", "0.3", "--health-poll-s", "0.1"])
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        await fleet.pause()
        with pytest.raises(Exception, match="503"):
            await asyncio.to_thread(_get, process, "/health")
        await fleet.drain()
        await fleet.resume()
        assert _get(process, "/ready") == 200


def _get(process, path: str) -> int:
    import urllib.request

    with urllib.request.urlopen(process.url + path, timeout=10) as response:
        return response.status


async def test_small_regions_are_not_called_returned(start, policy: Policy) -> None:
    process = start(weights_mib=24, kv_mib=16)
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        with pytest.raises(FleetError, match="too little to see"):
            await fleet.offload(weights=FromDisk("/x", "v"))
    async with Fleet.connect([url(process, name="e")], policy=replace(policy, on_failure="hold")) as fleet:
        assert fleet["e"].state in (State.SERVING, State.FAILED)
