"""The tensors of modules and optimizers by name, down to the bytes of their storages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .errors import CannotStage

#: What has named tensors: a module, an optimizer, the `BuffersOf` a module, or a mapping of tensors.
Module = Any
#: Modules by the name under which they are attached, such as `target` and `draft`.
Modules = Mapping[str, Module]

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


@dataclass(frozen=True, slots=True)
class BuffersOf:
    """The buffers of a module without its parameters. Neither a checkpoint nor a push needs to contain them."""

    module: Any


@dataclass(frozen=True, slots=True)
class Leaf:
    """One strided tensor under its full name (`target.layers.0.weight`).

    `tensor` is detached from autograd; `source` is the tensor object that the module holds.
    """

    name: str
    tensor: torch.Tensor
    source: torch.Tensor

    @property
    def has_bytes(self) -> bool:
        """Whether the tensor has bytes to copy. Meta and empty tensors have none."""
        return bool(self.tensor.device.type != "meta" and self.tensor.numel() > 0)

    @property
    def interval(self) -> tuple[int, int]:
        """The offsets in its storage of the first byte that the tensor covers and of the byte after the last."""
        tensor = self.tensor
        reach = sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
        start = tensor.storage_offset() * tensor.element_size()
        stop = start + (reach + 1) * tensor.element_size()
        return start, min(stop, tensor.untyped_storage().nbytes())


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes `start` to `stop` (excluded) of one storage, and the names of the tensors in them."""

    storage: torch.UntypedStorage
    start: int
    stop: int
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.stop - self.start

    @property
    def device(self) -> torch.device:
        """The device that holds the bytes."""
        return self.storage.device

    def bytes(self, offset: int = 0, size: int | None = None) -> torch.Tensor:
        """`size` bytes from `offset` of the span, as a uint8 view of the storage itself."""
        return storage_bytes(self.storage, self.start + offset, self.size - offset if size is None else size)


def leaves(modules: Modules) -> Iterator[Leaf]:
    """Every tensor of every module, under each of its names; a tied tensor comes more than once.

    Raises CannotStage for a tensor without memory yet (a lazy parameter), or with a layout whose bytes are opaque.
    """
    for module_name, module in modules.items():
        for name, tensor in _named(module):
            yield from _flattened(f"{module_name}.{name}", tensor)


def spans(found: Iterable[Leaf]) -> list[Span]:
    """The bytes that these tensors cover, each byte in exactly one span even if tensors are tied, views or shared."""
    by_storage: dict[tuple[str, int, int], list[Leaf]] = {}
    for leaf in found:
        if leaf.has_bytes:
            by_storage.setdefault(place(leaf.tensor), []).append(leaf)
    return [span for group in by_storage.values() for span in _merged(group)]


def storage_bytes(storage: torch.UntypedStorage, start: int = 0, size: int | None = None) -> torch.Tensor:
    """`size` bytes of the storage from `start`, else all of them, as a uint8 view."""
    count = storage.nbytes() - start if size is None else size
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, start, (count,), (1,))


def place(tensor: torch.Tensor) -> tuple[str, int, int]:
    """Device, address and size in bytes of the tensor's storage."""
    storage = tensor.untyped_storage()
    return str(tensor.device), storage.data_ptr(), storage.nbytes()


def _merged(group: list[Leaf]) -> Iterator[Span]:
    storage = group[0].tensor.untyped_storage()
    start = stop = -1
    names: list[str] = []
    for (first, last), name in sorted((leaf.interval, leaf.name) for leaf in group):
        if first > stop and names:
            yield Span(storage, start, stop, tuple(names))
            names = []
        start = first if not names else start
        stop = last if not names else max(stop, last)
        names.append(name)
    yield Span(storage, start, stop, tuple(names))


def _named(module: Module) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(module, torch.nn.Module):
        yield from module.named_parameters(remove_duplicate=False)
        yield from module.named_buffers(remove_duplicate=False)
    elif isinstance(module, BuffersOf):
        yield from module.module.named_buffers(remove_duplicate=False)
    elif isinstance(module, torch.optim.Optimizer):
        yield from _states(module)
    elif isinstance(module, Mapping):
        yield from ((str(name), each) for name, each in module.items() if isinstance(each, torch.Tensor))
    else:
        raise TypeError(f"expected a module, an optimizer or a mapping of tensors, not {type(module).__name__}")


def _states(optimizer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                yield f"{index}.{name}", value


def _flattened(name: str, tensor: torch.Tensor) -> Iterator[Leaf]:
    """The strided tensors that make up this one: itself, or the parts of a subclass or of a sparse layout."""
    if torch.nn.parameter.is_lazy(tensor):
        raise CannotStage(f"{name} is not initialised yet; run the module once first")
    if hasattr(tensor, "__tensor_flatten__"):
        for part in tensor.__tensor_flatten__()[0]:
            yield from _flattened(f"{name}.{part}", getattr(tensor, part))
    elif tensor.layout is torch.strided:
        yield Leaf(name, tensor.detach(), tensor)
    elif tensor.layout is torch.sparse_coo:
        for part in ("_indices", "_values"):
            inner = getattr(tensor.detach(), part)()
            yield Leaf(f"{name}.{part}", inner, inner)
    elif tensor.layout in _COMPRESSED:
        for part in _COMPRESSED[tensor.layout]:
            inner = getattr(tensor.detach(), part)()
            yield Leaf(f"{name}.{part}", inner, inner)
    else:
        raise CannotStage(f"{name} has the layout {tensor.layout}, whose bytes cannot be reached")
