"""Mistakes of a user of an engine in this process: each is refused or reported by name, with a remedy."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import torch
from lifecycle.adapters.torch_memory_saver import HostBudget, RegionRefused, TorchEngine
from torch_rig import MIB, POLICY, built, greedy, seeded

from lifecycle import (
    ConfigurationError,
    Fleet,
    FleetError,
    FromDisk,
    GuardRefused,
    Kept,
    NotProved,
    Pushed,
    Rejected,
    State,
)
from lifecycle.nodes import this_host as nodes

GIB = 1 << 30


def only(error: FleetError) -> Exception:
    """The only error in a FleetError."""
    (first,) = error.exceptions
    return first


async def resident_after_release(**options) -> int:
    """Bytes that stay resident where everything is in regions."""
    with built("measured", **options) as (engine, _):
        async with Fleet([engine]) as fleet, fleet.offloaded(weights=Kept()) as (released,):
            return released.verdicts["memory_returned"].figures["resident_bytes"]


# allocation outside a region


async def test_a_cache_outside_every_region_shows_in_the_residual() -> None:
    clean = await resident_after_release()
    tight = replace(POLICY, residual_threshold_gib=(clean + 32 * MIB) / GIB)
    stray = torch.ones(96 * MIB // 4)
    with built(policy=tight) as (engine, _):
        async with Fleet([engine]) as fleet:
            with pytest.raises(FleetError, match=r"MiB resident exceeds \d+ MiB allowed"):
                await fleet.offload(weights=Kept(), deadline_s=6)
    assert stray.all()


async def test_a_module_outside_every_region_is_named_and_shows_in_the_residual() -> None:
    engine = TorchEngine("policy", device="cpu", policy=POLICY)
    with engine.region("weights"):
        model = seeded(0)
    model.outside = torch.nn.Linear(4096, 4096, bias=False)
    engine.attach(model, generate=lambda probe: greedy(model))
    async with Fleet([engine]) as fleet:
        (note,) = engine.capabilities.notes
        assert "64 MiB of weights lie outside every region" in note
        assert "target.outside.weight" in note
        with pytest.raises(FleetError, match=r"returned [12]\d MiB of 84 MiB expected") as caught:
            await fleet.offload(weights=Kept(), deadline_s=6)
        assert isinstance(only(caught.value), NotProved)
        assert engine.state is State.RELEASED
        assert not engine.memory_is_free


# regions


async def test_a_region_is_not_opened_while_released() -> None:
    with built() as (engine, _):
        async with Fleet([engine]) as fleet:
            async with fleet.offloaded(weights=Kept()):
                with pytest.raises(RegionRefused, match="'kv_cache' is released"), engine.region("kv_cache"):
                    torch.ones(1)
            with engine.region("kv_cache"):
                more = torch.ones(8 * MIB // 4)
            assert engine.capabilities.spec("kv_cache").expected_bytes == 72 * MIB
            async with fleet.offloaded(weights=Kept()) as (released,):
                assert released.returned_bytes > 0.9 * 92 * MIB
            assert not more.any()


async def test_a_region_that_is_new_after_connect_is_refused() -> None:
    with built() as (engine, _):
        async with Fleet([engine]):
            with pytest.raises(ConfigurationError, match="'workspace' is new"), engine.region("workspace"):
                pass


def test_kv_is_never_backed_up() -> None:
    with (
        built(contents="pinned") as (engine, _),
        pytest.raises(ConfigurationError, match="never backed up"),
        engine.adapter.tenant.tags.region("kv", "mmap"),
    ):
        pass


def test_a_tag_is_paused_and_resumed_once() -> None:
    with built() as (engine, _):
        tags = engine.adapter.tenant.tags
        with pytest.raises(RegionRefused, match="is mapped and cannot be restored"):
            tags.restore("weights")
        tags.release("weights")
        with pytest.raises(RegionRefused, match="is released and cannot be released again"):
            tags.release("weights")
        tags.restore("weights")
        with pytest.raises(RegionRefused, match="no region 'graphs'; it has weights, kv_cache"):
            tags.release("graphs")


def test_two_engines_of_one_name_are_refused() -> None:
    with built("twin"), pytest.raises(ConfigurationError, match="an engine 'twin' in this process already"):
        TorchEngine("twin", device="cpu")


async def test_an_engine_without_regions_or_modules_is_refused() -> None:
    bare = TorchEngine("bare", device="cpu")
    with pytest.raises(ConfigurationError, match="no region was opened"):
        await bare.connect()
    with bare.region("weights"):
        torch.ones(4)
    with pytest.raises(ConfigurationError, match="attach"):
        await bare.connect()
    await bare.aclose()


# host memory


async def test_too_little_host_memory_is_refused_before_anything_is_given_back() -> None:
    with built(host_budget=HostBudget(8 * MIB)) as (engine, model):
        before = greedy(model)
        async with Fleet([engine]) as fleet:
            with pytest.raises(FleetError, match="21 MiB more of host memory and 8 MiB is left of its budget of 8"):
                await fleet.offload(weights=Kept())
            assert engine.state is State.SERVING, "the fleet brought it back"
            assert engine.adapter.tenant.stagings["weights"].host_bytes == 0
            assert greedy(model) == before
            await fleet.pause()
            await fleet.drain()
            with pytest.raises(Rejected) as refused:
                await engine.release(weights=Kept())
            assert refused.value.settled is State.DRAINED
            assert all(engine.facts.mapped.values())


def untied(model) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint of the model; a tied tensor comes once."""
    return {name: value for name, value in model.state_dict().items() if name != "head.weight"}


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Awaitable[str]]:
    """Releases with this much free host memory, then restores with plenty; returns the guard's refusal, if any."""

    async def release(fleet: Fleet, source, *tags: str, free_mib: int) -> str:
        refusal = ""
        monkeypatch.setattr(nodes, "available_bytes", lambda: free_mib * MIB)
        try:
            await fleet.offload(tags or None, weights=source)
        except FleetError as error:
            refused = only(error)
            assert isinstance(refused, GuardRefused), refused
            refusal = refused.reasons["host_has_room"]
        monkeypatch.setattr(nodes, "available_bytes", lambda: 1 << 40)
        await fleet.onload()
        return refusal

    return release


@pytest.mark.parametrize("contents", ["staged", "pinned", "mmap"])
async def test_room_on_the_host_is_asked_for_once_and_not_for_what_is_there(contents: str, release) -> None:
    with built(contents=contents) as (engine, model):
        async with Fleet([engine]) as fleet:
            assert "8 MiB free, and the backup of weights need 2" in await release(fleet, Kept(), free_mib=8)
            assert await release(fleet, Kept(), free_mib=64) == ""
            assert await release(fleet, Kept(), free_mib=0) == "", "its buffers are used again"
            with engine.region("weights"):
                model.register_buffer("more", torch.ones(16 * MIB // 4))
            assert "need 16 MiB" in await release(fleet, Kept(), free_mib=8)
            assert await release(fleet, Kept(), free_mib=17) == ""


async def test_what_a_push_or_a_checkpoint_brings_takes_no_room_on_the_host(release, tmp_path) -> None:
    from safetensors.torch import save_file

    save_file(untied(seeded(7)), tmp_path / "a.safetensors")

    async def push(engines) -> None:
        await engines[0].push("tensors", tensors=dict(seeded(8).named_parameters()))

    with built() as (engine, _):
        async with Fleet([engine]) as fleet:
            assert await release(fleet, FromDisk(str(tmp_path), "v1"), free_mib=1) == ""
            assert await release(fleet, Pushed(push, "v2"), free_mib=1) == ""
            assert await release(fleet, FromDisk(str(tmp_path), "v3"), free_mib=0) == "", "its own buffers are there"
            assert "the backup of weights" in await release(fleet, Kept(), free_mib=0)


async def test_kv_takes_no_room_on_the_host(release) -> None:
    with built() as (engine, _):
        async with Fleet([engine]) as fleet:
            assert await release(fleet, None, "kv_cache", free_mib=0) == ""


async def test_a_backup_that_cannot_be_written_leaves_the_memory_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with built(contents="pinned") as (engine, model):
        before = greedy(model)
        async with Fleet([engine]):
            await engine.pause()
            await engine.drain()

            def full(*args: object) -> int:
                raise OSError("no space left")

            monkeypatch.setattr(os, "pwrite", full)
            with pytest.raises(Rejected, match="OSError: no space left") as failed:
                await engine.release(["weights"], weights=Kept())
            assert failed.value.settled is State.DRAINED
            assert engine.adapter.tenant.tags.released == frozenset()
            assert greedy(model) == before


# modules that change between release and restore


def moved(model) -> None:
    model.mix.to("meta")


def resized(model) -> None:
    model.mix.weight.data = torch.empty(8, 1024)


def converted(model) -> None:
    model.mix.weight.data = model.mix.weight.data.to(torch.float16)


def replaced(model) -> None:
    model.mix.weight = torch.nn.Parameter(torch.zeros(1024, 1024))


def dropped(model) -> None:
    del model.scale


def added(model) -> None:
    model.register_buffer("late", torch.zeros(4))


@pytest.mark.parametrize("contents", ["staged", "discarded"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved, "target.mix.weight was moved from cpu to meta"),
        (resized, r"target.mix.weight was resized from \[1024, 1024\] to \[8, 1024\]"),
        (converted, "target.mix.weight was converted from torch.float32 to torch.float16"),
        (replaced, r"target.mix.weight was replaced \(it lies in other memory\)"),
        (dropped, "target.scale is gone"),
        (added, "target.late is new"),
    ],
)
async def test_a_module_that_changed_while_released_is_refused_by_name(contents: str, change, message: str) -> None:
    with built(contents=contents) as (engine, model):
        async with Fleet([engine]) as fleet:
            source = Kept() if contents == "staged" else FromDisk("/nowhere", "v1")
            await fleet.offload(weights=source)
            change(model)
            with pytest.raises(Rejected, match=message) as refused:
                await engine.restore_weights()
            assert refused.value.settled is State.RELEASED
            assert engine.adapter.tenant.tags.released == {"weights", "kv_cache"}


async def test_modules_attached_anew_are_restored_after_all() -> None:
    with built() as (engine, model):
        before = greedy(model)
        async with Fleet([engine]) as fleet:
            await fleet.offload(weights=Kept())
            weight = model.mix.weight
            replaced(model)
            with pytest.raises(Rejected):
                await engine.restore_weights()
            model.mix.weight = weight
            await fleet.onload()
        assert greedy(model) == before


# weights that do not fit


async def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path) -> None:
    from safetensors.torch import save_file

    state = seeded(7).state_dict()
    del state["head.weight"], state["mix.bias"]
    save_file(state, tmp_path / "a.safetensors")
    with built() as (engine, model):
        before = greedy(model)
        async with Fleet([engine]) as fleet:
            await fleet.pause()
            await fleet.drain()
            for path, message in (
                (tmp_path, "the checkpoint has no target.mix.bias"),
                (tmp_path / "none", "safetensors"),
            ):
                with pytest.raises(Rejected, match=message):
                    await engine.update_weights(FromDisk(str(path), "v1"))
                assert engine.state is State.DRAINED
            save_file({**state, "mix.bias": torch.zeros(3)}, tmp_path / "a.safetensors")
            with pytest.raises(Rejected, match=r"the shapes differ of target.mix.bias \(\[3\] for \[1024\]\)"):
                await engine.update_weights(FromDisk(str(tmp_path), "v1"))
            await fleet.resume()
            assert engine.state is State.SERVING, "what it had is as good as before"
        assert greedy(model) == before


@pytest.mark.parametrize(
    ("pushed", "message"),
    [
        ({}, "nothing was pushed to target.embedding.weight, target.mix.weight, target.mix.bias"),
        ({"mix.bias": torch.zeros(1024)}, "nothing was pushed to target.embedding.weight, target.mix.weight"),
        ({"mix.bias": torch.zeros(3)}, "the shapes differ of target.mix.bias"),
        ({"mix.nose": torch.zeros(3)}, "target.mix.nose, which the module does not have"),
    ],
)
async def test_a_push_that_is_not_whole_is_no_update(pushed, message: str) -> None:
    with built() as (engine, _):

        async def push(engines) -> None:
            await engines[0].push("tensors", tensors=pushed)

        async with Fleet([engine]) as fleet:
            with pytest.raises(FleetError, match=message):
                async with fleet.offloaded(weights=Pushed(push, "v1")):
                    pass
            assert engine.state is not State.SERVING
            assert engine.weights_refusal() is not None


async def test_an_unknown_way_to_push_names_those_there_are() -> None:
    with built() as (engine, _), pytest.raises(ValueError, match="'tensors' or 'in_place', not 'nccl'"):
        engine.adapter.push_call("nccl", {}, "v1")


async def test_a_push_names_its_module_and_still_takes_the_old_name() -> None:
    engine = TorchEngine("spec", device="cpu", policy=POLICY)
    with engine.region("weights"):
        target, draft = seeded(1), seeded(2, width=256)
    engine.attach({"target": target, "draft": draft}, generate=lambda probe: greedy(target))
    await engine.connect()
    bias = {"mix.bias": torch.full((256,), 0.5)}
    with pytest.warns(DeprecationWarning, match="push\\(module=...\\)"):
        old = engine.adapter.push_call("tensors", {"tensors": bias, "owner": "draft"}, "v1")
    assert old == engine.adapter.push_call("tensors", {"tensors": bias, "module": "draft"}, "v1")
    assert (await engine.adapter.send(old, deadline_s=5)).outcome == "done"
    assert torch.equal(draft.mix.bias, bias["mix.bias"])
    await engine.aclose()
