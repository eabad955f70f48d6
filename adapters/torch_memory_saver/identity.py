"""Where in memory each tensor lies: recorded at a release, compared before a restore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .tensors import Modules, leaves


@dataclass(frozen=True, slots=True)
class Identity:
    """The properties of a tensor that must not change between a release and the restore."""

    device: str
    address: int
    storage_bytes: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Identity:
        """The identity of this strided tensor. A meta tensor has the address 0 and no bytes."""
        has_storage = tensor.device.type != "meta"
        storage = tensor.untyped_storage()
        return cls(
            str(tensor.device),
            storage.data_ptr() if has_storage else 0,
            storage.nbytes() if has_storage else 0,
            tensor.storage_offset(),
            tuple(tensor.size()),
            tuple(tensor.stride()),
            str(tensor.dtype),
        )


def identities(modules: Modules) -> dict[str, Identity]:
    """The identity of every tensor of the modules, by full name."""
    return {leaf.name: Identity.of(leaf.tensor) for leaf in leaves(modules)}


def changes(before: Mapping[str, Identity], now: Mapping[str, Identity]) -> list[str]:
    """One description for each tensor whose identity differs, was added or was removed; empty where none was."""
    differences = [f"{name} is gone" for name in before if name not in now]
    differences += [f"{name} is new" for name in now if name not in before]
    for name, was in before.items():
        change = _change(was, now[name]) if name in now else None
        if change is not None:
            differences.append(f"{name} was {change}")
    return differences


def _change(was: Identity, now: Identity) -> str | None:
    if was == now:
        return None
    if was.device != now.device:
        return f"moved from {was.device} to {now.device}"
    if was.dtype != now.dtype:
        return f"converted from {was.dtype} to {now.dtype}"
    if was.shape != now.shape:
        return f"resized from {list(was.shape)} to {list(now.shape)}"
    return "replaced (it lies in other memory)"
