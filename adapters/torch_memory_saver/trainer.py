"""A trainer in this process, whose parameters, gradients and optimizer states are released and restored as tags."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lifecycle.core.facts import Tag

from .engine import TorchTenant
from .errors import RegionRefused
from .gate import Gate
from .tensors import Leaf, Modules, leaves, place, storage_bytes

PARAMETERS, GRADIENTS, OPTIMIZER = "parameters", "gradients", "optimizer"


class Trainer(TorchTenant):
    """An engine that serves no requests. A release keeps parameters and optimizer states, and discards gradients.

    `trainer.release(["gradients", "optimizer"])` leaves the parameters mapped, so that they can be pushed.
    """

    def __init__(self, name: str = "trainer", **tenant: Any) -> None:
        super().__init__(name, serves=False, **tenant)
        self._module: Any = None
        self._optimizer: Any = None
        self._tenant.hooks.drop_cache = self._zero_gradients

    def own(self, module: Any, optimizer: Any = None) -> None:
        """Moves the module's tensors, their gradients and the optimizer's states into this trainer's regions.

        Gradients are allocated where there are none, so that backward writes into them. Call this again, or train
        inside `step()`, after the optimizer has allocated its states.
        """
        self._module, self._optimizer = module, optimizer
        for tag in (PARAMETERS, GRADIENTS) if optimizer is None else (PARAMETERS, GRADIENTS, OPTIMIZER):
            with self.region(tag):
                pass
        self._attach(PARAMETERS, {"module": module})
        if optimizer is not None:
            self._attach(OPTIMIZER, {"optimizer": optimizer})
        self._move_all()

    @contextmanager
    def step(self) -> Iterator[None]:
        """A context for one training step. After it, new gradients and optimizer states are moved into the regions.

        Raises RegionRefused while a tag is released. Clear gradients with zero_grad(set_to_none=False): after None,
        backward allocates new ones outside the regions.
        """
        if self._tenant.tags.released:
            released = ", ".join(sorted(self._tenant.tags.released))
            raise RegionRefused(f"{self.name}: {released} are released; a step would read garbage. Restore them first")
        assert isinstance(self.gate, Gate)
        with self.gate.request():
            yield
            self._move_all()

    def _move_all(self) -> None:
        self._move(PARAMETERS, {"module": self._module})
        for parameter in self._module.parameters():
            if parameter.grad is None and parameter.requires_grad:
                with self._tenant.tags.region(GRADIENTS):
                    parameter.grad = torch.zeros_like(parameter)
        self._move(GRADIENTS, {"module": _gradients(self._module)})
        if self._optimizer is not None:
            self._move(OPTIMIZER, {"optimizer": self._optimizer})
        self._remeasure()

    def _move(self, tag: Tag, modules: Modules) -> None:
        """Moves the tensors that lie in no region into the tag's. Tensors that share a storage still share one."""
        device, tags = self._tenant.tags.backend.device, self._tenant.tags
        groups: dict[Any, list[Leaf]] = {}
        for leaf in leaves(modules):
            if leaf.has_bytes and leaf.tensor.device == device and tags.tag_of(leaf.tensor) is None:
                groups.setdefault(place(leaf.tensor), []).append(leaf)
        for group in groups.values():
            with tags.region(tag, self._backup(tag)):
                new = torch.empty(group[0].tensor.untyped_storage().nbytes(), dtype=torch.uint8, device=device)
            _move_into(new, group)

    def _zero_gradients(self) -> None:
        """Zeroes the gradients, whose restored memory holds garbage."""
        for gradient in _gradients(self._module).values():
            gradient.zero_()


def _gradients(module: Any) -> dict[str, torch.Tensor]:
    return {name: each.grad for name, each in module.named_parameters() if each.grad is not None}


def _move_into(new: torch.Tensor, group: list[Leaf]) -> None:
    """Moves tensors that share one storage, with their bytes, into the storage of `new`."""
    old = group[0].tensor.untyped_storage()
    new.copy_(storage_bytes(old))
    for leaf in group:
        tensor = leaf.tensor
        tensor.set_(new.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
        leaf.source.data = tensor
