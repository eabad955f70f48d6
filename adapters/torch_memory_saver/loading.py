"""Copies weights from a checkpoint or a trainer into the existing tensors. All are checked before any is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .errors import Refused, listed
from .tensors import Modules


def check_checkpoint(modules: Modules, path: str) -> None:
    """Checks that the checkpoint has every tensor of every module, with its shape. Refused names those that differ."""
    for name, module in modules.items():
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key, file in _saved(modules, name, path)}
        _check(name, module, shapes)


def load(modules: Modules, path: str) -> None:
    """Copies the checkpoint's tensors into the tensors of the same names."""
    with torch.no_grad():
        for name, module in modules.items():
            targets = _writable(module)
            for key, file in _saved(modules, name, path):
                if key in targets:
                    targets[key].copy_(file.get_tensor(key))


def write(name: str, module: Any, tensors: Mapping[str, torch.Tensor]) -> frozenset[int]:
    """Copies these tensors into those of the same names in the module; returns the addresses written.

    Raises Refused where the module has no tensor of a name, or one of another shape. Nothing is written then.
    """
    targets = _writable(module)
    unknown = [f"{name}.{key}" for key in tensors if key not in targets]
    if unknown:
        raise Refused(f"the push names {listed(unknown)}, which the module does not have")
    _check_shapes(name, targets, {key: tuple(tensor.shape) for key, tensor in tensors.items()})
    with torch.no_grad():
        for key, tensor in tensors.items():
            targets[key].copy_(tensor)
    return frozenset(targets[key].data_ptr() for key in tensors)


def unwritten(modules: Modules, written: Iterable[int]) -> list[str]:
    """The parameters to whose addresses no push wrote. A tied parameter counts as written under any of its names."""
    done = set(written)
    return [
        f"{name}.{key}"
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
        if parameter.numel() and parameter.data_ptr() not in done
    ]


def _writable(module: Any) -> dict[str, torch.Tensor]:
    """The module's tensors that have memory, under each of their names."""
    named = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    return {name: tensor for name, tensor in named.items() if tensor.device.type != "meta"}


def _check(name: str, module: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    targets = _writable(module)
    filled = {targets[key].data_ptr() for key in shapes if key in targets}
    needed = [key for key in module.state_dict() if key in targets]
    missing = [f"{name}.{key}" for key in needed if targets[key].data_ptr() not in filled]
    if missing:
        raise Refused(f"the checkpoint has no {listed(sorted(missing))}")
    _check_shapes(name, targets, shapes)


def _check_shapes(name: str, targets: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [
        f"{name}.{key} ({list(shape)} for {list(targets[key].shape)})"
        for key, shape in shapes.items()
        if key in targets and tuple(targets[key].shape) != shape
    ]
    if wrong:
        raise Refused(f"the shapes differ of {listed(wrong)}")


def _saved(modules: Modules, name: str, path: str) -> Iterator[tuple[str, Any]]:
    """The name of each tensor saved for this module, and the opened file that has it.

    The files are in the folder of the module's name. Where only one module is attached, they may be in `path` itself.
    """
    folder = Path(path)
    if (folder / name).is_dir():
        folder = folder / name
    elif len(modules) > 1:
        raise Refused(f"{path} has no folder {name!r}; with {len(modules)} modules each needs one of its name")
    files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise Refused(f"{folder} has no .safetensors file")
    for each in files:
        with safe_open(each, framework="pt", device="cpu") as opened:
            yield from ((key, opened) for key in list(opened.keys()))
