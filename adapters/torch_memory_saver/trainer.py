"""A trainer as a tenant: its parameters, gradients and optimizer states are released and restored by the same ring."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lifecycle.core.facts import Tag

from .engine import TorchTenant
from .errors import RegionRefused
from .gate import Gate
from .tensors import Leaf, Owners, leaves, place

PARAMETERS, GRADIENTS, OPTIMIZER = "parameters", "gradients", "optimizer"


class Trainer(TorchTenant):
    """An engine without admission. Parameters and optimizer states are kept through a release, gradients are not.

    `trainer.release(["gradients", "optimizer"])` leaves the parameters where they are, for the push.
    """

    def __init__(self, name: str = "trainer", **tenant: Any) -> None:
        super().__init__(name, serves=False, **tenant)
        self._module: Any = None
        self._optimizer: Any = None
        self._tenant.hooks.drop_cache = self._zero_gradients

    def own(self, module: Any, optimizer: Any = None) -> None:
        """The module's parameters and buffers, their gradients and the optimizer's states lie in this tenant's regions.

        What is not there yet is moved; gradients are made, so that backward writes into them. Call it again (or train
        inside `step()`) after the optimizer has made its states.
        """
        self._module, self._optimizer = module, optimizer
        for tag in (PARAMETERS, GRADIENTS) if optimizer is None else (PARAMETERS, GRADIENTS, OPTIMIZER):
            with self.region(tag):
                pass
        self._hold(PARAMETERS, {"module": module})
        if optimizer is not None:
            self._hold(OPTIMIZER, {"optimizer": optimizer})
        self._adopt()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Inside, a training step is in flight; after it, what it allocated for good lies in the regions.

        RegionRefused while anything is released. Clear gradients with zero_grad(set_to_none=False): None makes
        backward allocate them anew, outside.
        """
        if self._tenant.tags.released:
            released = ", ".join(sorted(self._tenant.tags.released))
            raise RegionRefused(f"{self.name}: {released} are released; a step would read garbage. Restore them first")
        assert isinstance(self.gate, Gate)
        with self.gate.request():
            yield
            self._adopt()

    def _adopt(self) -> None:
        self._move(PARAMETERS, {"module": self._module})
        for parameter in self._module.parameters():
            if parameter.grad is None and parameter.requires_grad:
                with self._tenant.tags.region(GRADIENTS):
                    parameter.grad = torch.zeros_like(parameter)
        self._move(GRADIENTS, {"module": _gradients(self._module)})
        if self._optimizer is not None:
            self._move(OPTIMIZER, {"optimizer": self._optimizer})
        self._remeasure()

    def _move(self, tag: Tag, owners: Owners) -> None:
        """The owners' tensors that lie in no region lie in this tag's, tied and shared ones still together."""
        device, tags = self._tenant.tags.backend.device, self._tenant.tags
        groups: dict[Any, list[Leaf]] = {}
        for leaf in leaves(owners):
            if leaf.has_bytes and leaf.tensor.device == device and tags.tag_of(leaf.tensor) is None:
                groups.setdefault(place(leaf.tensor), []).append(leaf)
        for group in groups.values():
            with tags.region(tag, self._backup(tag)):
                room = torch.empty(group[0].tensor.untyped_storage().nbytes(), dtype=torch.uint8, device=device)
            _move_into(room, group)

    def _zero_gradients(self) -> None:
        """Their memory came back as garbage."""
        for gradient in _gradients(self._module).values():
            gradient.zero_()


def _gradients(module: Any) -> dict[str, torch.Tensor]:
    return {name: each.grad for name, each in module.named_parameters() if each.grad is not None}


def _move_into(room: torch.Tensor, group: list[Leaf]) -> None:
    """The tensors of one storage lie in `room`, with their bytes."""
    old = group[0].tensor.untyped_storage()
    room.copy_(torch.empty(0, dtype=torch.uint8, device=room.device).set_(old, 0, (old.nbytes(),), (1,)))
    for leaf in group:
        there = leaf.tensor
        there.set_(room.untyped_storage(), there.storage_offset(), there.size(), there.stride())
        leaf.source.data = there
