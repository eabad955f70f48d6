"""Which memory each tensor is: taken at a release, compared before a restore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .tensors import Owners, leaves


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be the same when a released tensor's memory comes back."""

    device: str
    address: int
    storage_bytes: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Identity:
        """The identity of this strided tensor; one without bytes is nowhere."""
        somewhere = tensor.device.type != "meta"
        storage = tensor.untyped_storage()
        return cls(
            str(tensor.device),
            storage.data_ptr() if somewhere else 0,
            storage.nbytes() if somewhere else 0,
            tensor.storage_offset(),
            tuple(tensor.size()),
            tuple(tensor.stride()),
            str(tensor.dtype),
        )


def identities(owners: Owners) -> dict[str, Identity]:
    """Every tensor of the owners, by name."""
    return {leaf.name: Identity.of(leaf.tensor) for leaf in leaves(owners)}


def changes(before: Mapping[str, Identity], now: Mapping[str, Identity]) -> list[str]:
    """What became of each tensor that is not what it was, in words; empty where all are."""
    told = [f"{name} is gone" for name in before if name not in now]
    told += [f"{name} is new" for name in now if name not in before]
    for name, was in before.items():
        change = _change(was, now[name]) if name in now else None
        if change is not None:
            told.append(f"{name} was {change}")
    return told


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
