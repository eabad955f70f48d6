"""Weights from a checkpoint or from the trainer, into the tensors that are there: first checked, then written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .errors import Refused, listed
from .tensors import Owners


def check_checkpoint(owners: Owners, path: str) -> None:
    """Every tensor of every module stands in the checkpoint, with its shape; Refused names what does not."""
    for name, module in owners.items():
        _check(name, module, {key: tuple(file.get_slice(key).get_shape()) for key, file in _saved(owners, name, path)})


def load(owners: Owners, path: str) -> None:
    """Every tensor holds what the checkpoint has under its name."""
    with torch.no_grad():
        for name, module in owners.items():
            slots = _slots(module)
            for key, file in _saved(owners, name, path):
                if key in slots:
                    slots[key].copy_(file.get_tensor(key))


def write(owner: str, module: Any, tensors: Mapping[str, torch.Tensor]) -> frozenset[int]:
    """The named tensors hold these values; the addresses written. Refused, nothing written, names a misfit."""
    slots = _slots(module)
    unknown = [f"{owner}.{name}" for name in tensors if name not in slots]
    if unknown:
        raise Refused(f"the push names {listed(unknown)}, which the module does not have")
    _fit(owner, slots, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    with torch.no_grad():
        for name, tensor in tensors.items():
            slots[name].copy_(tensor)
    return frozenset(slots[name].data_ptr() for name in tensors)


def unwritten(owners: Owners, written: Iterable[int]) -> list[str]:
    """The parameters that no push wrote to; a tied one is written under any of its names."""
    done = set(written)
    return [
        f"{owner}.{name}"
        for owner, module in owners.items()
        for name, parameter in module.named_parameters()
        if parameter.numel() and parameter.data_ptr() not in done
    ]


def _slots(module: Any) -> dict[str, torch.Tensor]:
    """What a checkpoint may fill, under every name."""
    named = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    return {name: tensor for name, tensor in named.items() if tensor.device.type != "meta"}


def _check(owner: str, module: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    slots = _slots(module)
    have = {slots[name].data_ptr() for name in shapes if name in slots}
    saved = set(module.state_dict())
    missing = [f"{owner}.{name}" for name in saved if name in slots and slots[name].data_ptr() not in have]
    if missing:
        raise Refused(f"the checkpoint has no {listed(sorted(missing))}")
    _fit(owner, slots, shapes)


def _fit(owner: str, slots: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [
        f"{owner}.{name} ({list(shape)} for {list(slots[name].shape)})"
        for name, shape in shapes.items()
        if name in slots and tuple(slots[name].shape) != shape
    ]
    if wrong:
        raise Refused(f"the shapes differ of {listed(wrong)}")


def _saved(owners: Owners, owner: str, path: str) -> Iterator[tuple[str, Any]]:
    """Every tensor's name and the opened file that has it: in the folder of the module's name; of one module, all."""
    folder = Path(path)
    if (folder / owner).is_dir():
        folder = folder / owner
    elif len(owners) > 1:
        raise Refused(f"{path} has no folder {owner!r}; with {len(owners)} modules each needs one of its name")
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise Refused(f"{folder} has no .safetensors file")
    for each in files:
        with safe_open(each, framework="pt", device="cpu") as opened:
            yield from ((key, opened) for key in list(opened.keys()))
