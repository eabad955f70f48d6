"""A trainer is released and restored: parameters, gradients and optimizer states as tags, without admission."""

from __future__ import annotations

import copy

import pytest
import torch
from lifecycle.adapters.torch_memory_saver import GateClosed, RegionRefused, Trainer
from torch_rig import MIB, POLICY, seeded

from lifecycle import Fleet, Kept, NotApplicable, State


def step(trainer: Trainer, module, optimizer) -> float:
    """One step of training; the loss before it."""
    with trainer.step():
        optimizer.zero_grad(set_to_none=False)
        loss = module(torch.arange(12).view(2, 6)).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def trainer_of(seed: int, **options) -> tuple[Trainer, torch.nn.Module, torch.optim.Optimizer]:
    """A trainer that has made one step, with a module of 20 MiB."""
    module = seeded(seed)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    trainer = Trainer(device="cpu", policy=POLICY, **options)
    trainer.own(module, optimizer)
    step(trainer, module, optimizer)
    return trainer, module, optimizer


async def test_a_released_trainer_goes_on_as_if_nothing_had_been() -> None:
    trainer, module, optimizer = trainer_of(3)
    twin = copy.deepcopy(module)
    other = torch.optim.Adam(twin.parameters(), lr=1e-3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    async with Fleet([trainer]) as fleet:
        assert {spec.name: spec.on_release for spec in trainer.capabilities.tags} == {
            "parameters": "kept",
            "gradients": "discarded",
            "optimizer": "kept",
        }
        for _ in range(2):
            (released,) = await fleet.offload(weights=Kept())
            assert released.returned_bytes > 0.9 * 4 * 20 * MIB
            with pytest.raises(RegionRefused, match="are released; a step would read garbage"):
                step(trainer, module, optimizer)
            (served,) = await fleet.onload()
            assert isinstance(served.verdicts["answers"], NotApplicable)
            here = step(trainer, module, optimizer)
            other.zero_grad()
            loss = twin(torch.arange(12).view(2, 6)).square().mean()
            loss.backward()
            other.step()
            assert here == loss.item()
            assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))


async def test_parameters_stay_for_the_push() -> None:
    trainer, module, optimizer = trainer_of(3)
    before = module.mix.weight.clone()
    async with Fleet([trainer]) as fleet:
        async with fleet.offloaded(["gradients", "optimizer"], weights=Kept()) as (released,):
            assert released.returned_bytes == pytest.approx(60 * MIB, rel=0.1)
            assert torch.equal(module.mix.weight, before)
            assert trainer.facts.mapped == {"parameters": True, "gradients": False, "optimizer": False}
        assert trainer.state is State.SERVING
        step(trainer, module, optimizer)


async def test_admission_does_not_apply_but_a_running_step_is_waited_for() -> None:
    trainer, *_ = trainer_of(3)
    async with Fleet([trainer]):
        with trainer.step():
            record = await trainer.pause()
            assert isinstance(record.verdicts["admission_closed"], NotApplicable)
            with pytest.raises(Exception, match="1 requests are in flight"):
                await trainer.drain(deadline_s=0.5)
            assert trainer.state is State.PAUSED
        await trainer.drain(deadline_s=5)
        with pytest.raises(GateClosed), trainer.step():
            pass


def test_gradients_lie_in_their_region_before_the_first_step() -> None:
    module = seeded(3)
    trainer = Trainer(device="cpu", policy=POLICY)
    trainer.own(module)
    tags = trainer.adapter.tenant.tags
    where = {parameter.grad.data_ptr() for parameter in module.parameters()}
    assert {tags.tag_of(parameter.grad) for parameter in module.parameters()} == {"gradients"}
    module(torch.arange(12).view(2, 6)).square().mean().backward()
    assert {parameter.grad.data_ptr() for parameter in module.parameters()} == where, "backward wrote into them"
    tags.close()


def test_what_backward_and_the_optimizer_allocate_is_adopted() -> None:
    trainer, module, optimizer = trainer_of(3)
    tags = trainer.adapter.tenant.tags
    for parameter in module.parameters():
        assert tags.tag_of(parameter) == "parameters"
        assert tags.tag_of(parameter.grad) == "gradients"
        assert {tags.tag_of(state) for state in optimizer.state[parameter].values()} == {"optimizer"}
    assert module.head.weight.data_ptr() == module.embedding.weight.data_ptr(), "tied weights stay tied"
    held = tags.bytes("gradients")
    optimizer.zero_grad(set_to_none=True)
    step(trainer, module, optimizer)
    assert tags.bytes("gradients") == held, "freed gradients leave the region"
    tags.close()
