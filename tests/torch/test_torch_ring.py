"""Whole cycles of a torch model in this process: memory is measured by the operating system, tokens are compared."""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import count

import pytest
import torch
from lifecycle.adapters.torch_memory_saver import GateClosed, Hooks, TorchEngine
from torch_rig import MIB, POLICY, built, greedy, seeded

from lifecycle import (
    BaseObserver,
    Fleet,
    FromDisk,
    Grade,
    GuardRefused,
    Kept,
    OperationFailed,
    Policy,
    Pushed,
    State,
)


class Calls(BaseObserver):
    """The names of the calls that were made, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def call(self, engine, call, reply, duration_s) -> None:
        self.names.append(call.name + (f":{call.args['tag']}" if "tag" in call.args else ""))


@pytest.mark.parametrize("contents", ["staged", "pinned", "mmap"])
async def test_memory_comes_back_and_then_the_same_tokens(contents: str) -> None:
    with built(contents=contents, checksum=True) as (engine, model):
        before = greedy(model)
        sums = engine.adapter.tenant.checksum()
        async with Fleet([engine]) as fleet:
            for _ in range(3):
                async with fleet.offloaded(weights=Kept()) as (released,):
                    assert released.expected_bytes == pytest.approx(84 * MIB, rel=0.01)
                    assert released.returned_bytes > 0.9 * released.expected_bytes
                    assert released.verdicts["memory_returned"].grade is Grade.MEASURED
                    assert engine.memory_is_free
                    assert not model.embedding.weight.any(), "released pages read as zeros"
                assert engine.adapter.tenant.checksum() == sums
                assert engine.state is State.SERVING
        assert greedy(model) == before
        assert not model.kv.any(), "a KV cache is never kept"


async def test_tags_too_small_to_see_are_known_by_the_engines_own_books() -> None:
    """20 MiB of weights in a process with far more: their release and restore are reported, not only acknowledged."""
    with built(policy=Policy(residual_threshold_gib=4.0), kv_mib=512) as (engine, model):
        before = greedy(model)
        async with Fleet([engine]) as fleet:
            await fleet.offload(weights=Kept())
            (restored,) = await fleet.restore_weights()
            assert restored.verdicts["weights_mapped"].grade is Grade.REPORTED
            await fleet.onload()
        assert greedy(model) == before


async def test_only_kv_is_released_and_nothing_is_staged() -> None:
    calls = Calls()
    with built(observers=[calls]) as (engine, model):
        before = greedy(model)
        async with Fleet([engine]) as fleet, fleet.offloaded(["kv_cache"]) as (released,):
            assert released.returned_bytes == pytest.approx(64 * MIB, rel=0.1)
            assert greedy(model) == before
    assert calls.names == ["close", "release:kv_cache", "collect", "restore:kv_cache", "drop_cache", "open"]


async def test_the_calls_of_a_whole_round_stand_in_the_order_that_survives() -> None:
    calls, groups = Calls(), []
    with built(observers=[calls]) as (engine, _):
        hooks = engine.adapter.tenant.hooks
        hooks.drop_groups, hooks.rebuild_groups = lambda: groups.append("down"), lambda: groups.append("up")
        async with Fleet([engine]) as fleet, fleet.offloaded(weights=Kept()):
            assert groups == ["down"]
    assert groups == ["down", "up"]
    assert calls.names == [
        "close",
        *("stage:weights", "drop_groups", "release:kv_cache", "release:weights", "collect"),
        *("check_modules", "restore:weights", "unstage:weights", "rebuild_groups"),
        *("restore:kv_cache", "rebuild_groups", "drop_cache", "rebuild_groups", "open"),
    ]


async def test_the_trainers_push_is_not_staged_for_and_replaces_what_was_there() -> None:
    calls = Calls()
    other = seeded(7)
    with built(observers=[calls], checksum=True) as (engine, model):

        async def push(engines) -> None:
            for each in engines:
                await each.push("tensors", tensors=dict(other.named_parameters()))

        async with Fleet([engine]) as fleet:
            async with fleet.offloaded(weights=Pushed(push, "step-1")):
                pass
            assert engine.weights_refusal() is None
            assert engine.facts.contents["weights"].version == "step-1"
        assert "stage:weights" not in calls.names
        assert greedy(model) == greedy(other)
        assert model.scratch.tolist() == [0, 1, 2, 3, 4], "what no push brings came back"
        assert not engine.adapter.tenant.stagings["weights"].holds


async def test_staged_contents_never_overwrite_newer_weights() -> None:
    with built() as (engine, model):
        async with Fleet([engine]) as fleet:
            await fleet.offload(weights=Kept())
            await engine.restore_weights()
            with torch.no_grad():
                model.mix.weight.fill_(0.25)
            staging = engine.adapter.tenant.stagings["weights"]
            assert not staging.holds
            with pytest.raises(RuntimeError, match="nothing is staged"):
                staging.restore()
            await fleet.onload()
            assert torch.equal(model.mix.weight, torch.full_like(model.mix.weight, 0.25))
            await fleet.offload(weights=Kept())
            await fleet.onload()
            assert torch.equal(model.mix.weight, torch.full_like(model.mix.weight, 0.25))


async def test_a_kv_cache_that_a_module_has_as_a_buffer_is_never_staged() -> None:
    with built(checksum=True) as (engine, model):
        del model.kv
        with engine.region("kv_cache"):
            model.register_buffer("kv", torch.full((24 * MIB // 4,), 7.0))
        names = {leaf.name for leaf in engine.adapter.tenant.stagings["weights"].staged_leaves()}
        assert "target.kv" not in names
        assert "target.scale" in names
        before = greedy(model)
        async with Fleet([engine]) as fleet:
            async with fleet.offloaded(weights=Kept()):
                assert engine.adapter.tenant.stagings["weights"].host_bytes < 24 * MIB
            assert not model.kv.any(), "it came back empty"
            assert engine.state is State.SERVING, "and does not count among the weights that were kept"
        assert greedy(model) == before


async def test_kept_weights_that_came_back_otherwise_are_not_served() -> None:
    with built(checksum=True) as (engine, model):
        async with Fleet([engine]) as fleet:
            await fleet.offload(weights=Kept())
            await engine.restore_weights()
            with torch.no_grad():
                model.mix.weight[3, 5] += 1
            with pytest.raises(GuardRefused, match="the weights were to be kept, and its checksum is"):
                await engine.restore_kv()
            with torch.no_grad():
                model.mix.weight[3, 5] -= 1


async def test_groups_of_processes_are_destroyed_and_rebuilt_for_real(tmp_path) -> None:
    """Gloo stands for NCCL, whose buffers no region can hold."""
    from torch import distributed

    numbers = count()

    def rebuild() -> None:
        store = f"file://{tmp_path}/{next(numbers)}"
        distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)

    def total() -> float:
        ones = torch.ones(3)
        distributed.all_reduce(ones)
        return float(ones.sum())

    rebuild()
    groups = Hooks(drop_groups=distributed.destroy_process_group, rebuild_groups=rebuild)
    try:
        with built(hooks=groups) as (engine, _):
            async with Fleet([engine]) as fleet:
                for _ in range(2):
                    assert total() == 3
                    async with fleet.offloaded(weights=Kept()):
                        assert not distributed.is_initialized()
                assert total() == 3
    finally:
        distributed.destroy_process_group()


async def test_what_is_staged_is_given_up_when_a_push_begins() -> None:
    """A staged copy is kept where its restore failed. It must not be restored over what the trainer wrote."""
    other = seeded(7)
    with built() as (engine, model):
        staging = engine.adapter.tenant.stagings["weights"]

        def broken() -> None:
            raise OSError("the bus fell off")

        async def push(engines) -> None:
            assert not staging.holds
            await engines[0].push(
                "in_place", write=lambda modules: modules["target"].load_state_dict(other.state_dict())
            )

        async with Fleet([engine]) as fleet:
            await fleet.offload(weights=Kept())
            staging.restore = broken
            with pytest.raises(OperationFailed, match="the bus fell off"):
                await engine.restore_weights()
            assert staging.holds
            await engine.update_weights(Pushed(push, "step-1"))
            await fleet.onload()
        assert greedy(model) == greedy(other)


async def test_a_checkpoint_is_loaded(tmp_path) -> None:
    from safetensors.torch import save_file

    other = seeded(7)
    state = {name: value for name, value in other.state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "model.safetensors")
    with built(contents="discarded") as (engine, model):
        async with Fleet([engine]) as fleet, fleet.offloaded(weights=FromDisk(str(tmp_path), "step-1")):
            pass
        assert greedy(model) == greedy(other)
        assert model.scratch.tolist() == [0, 1, 2, 3, 4], "what no checkpoint has came back"


async def test_target_and_draft_come_back_together() -> None:
    engine = TorchEngine("spec", device="cpu", policy=POLICY)
    with engine.region("weights"):
        target, draft = seeded(1), seeded(2, width=256)
        draft.embedding.register_buffer("shared", target.scale)
    engine.attach({"target": target, "draft": draft}, generate=lambda probe: greedy(target))
    before = greedy(target), greedy(draft)
    async with Fleet([engine]) as fleet:
        async with fleet.offloaded(weights=Kept()):
            pass
        assert (greedy(target), greedy(draft)) == before
        assert draft.embedding.shared.data_ptr() == target.scale.data_ptr()


@pytest.mark.parametrize("mode", ["abort", "wait"])
async def test_requests_in_flight_are_waited_for(mode: str) -> None:
    with built() as (engine, model):
        steps, entered = [], threading.Event()

        def long_request() -> None:
            with engine.gate.request():
                for _ in range(40):
                    steps.append(float(model.kv.sum()))
                    entered.set()
                    if engine.gate.aborting:
                        return
                    time.sleep(0.02)

        async with Fleet([engine]) as fleet:
            request = asyncio.create_task(asyncio.to_thread(long_request))
            await asyncio.to_thread(entered.wait, 10)
            async with fleet.offloaded(weights=Kept(), mode=mode):
                assert request.done()
                with pytest.raises(GateClosed), engine.gate.request():
                    pass
            assert (len(steps) == 40) is (mode == "wait")
            assert min(steps) > 0, "it never saw memory that was given back"


async def test_what_another_tenant_of_the_process_holds_is_not_the_engines() -> None:
    with built("one") as (one, _), built("two", kv_mib=128) as (two, _):
        async with Fleet([one, two]) as fleet:
            residents = []
            for others in ([], ["two"]):
                async with fleet.offloaded(weights=Kept(), engines=others):
                    (released,) = await fleet.offload(weights=Kept(), engines=["one"])
                    residents.append(released.verdicts["memory_returned"].figures["resident_bytes"])
                    await fleet.onload(engines=["one"])
            assert residents[0] == pytest.approx(residents[1], abs=24 * MIB), "148 MiB of two's are not one's"


async def test_a_release_outside_the_library_is_a_contradiction() -> None:
    with built() as (engine, _):
        async with Fleet([engine]) as fleet:
            await fleet.pause()
            engine.adapter.tenant.tags.release("kv_cache")
            with pytest.raises(OperationFailed, match="externally modified"):
                await engine.drain()
