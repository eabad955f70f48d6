"""The tensors of modules and optimizers by name, down to the bytes of their storages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .errors import CannotStage

#: A module, an optimizer, `BuffersOf` a module, or tensors by name.
Owner = Any
Owners = Mapping[str, Owner]

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


@dataclass(frozen=True, slots=True)
class BuffersOf:
    """The buffers of a module without its parameters: what neither a checkpoint nor a push need bring."""

    module: Any


@dataclass(frozen=True, slots=True)
class Leaf:
    """One strided tensor under its full name (`target.layers.0.weight`).

    `tensor` is detached; `source` is the object that the owner has.
    """

    name: str
    tensor: torch.Tensor
    source: torch.Tensor

    @property
    def has_bytes(self) -> bool:
        """Whether there is anything to copy: meta and empty tensors have no bytes."""
        return bool(self.tensor.device.type != "meta" and self.tensor.numel() > 0)

    @property
    def interval(self) -> tuple[int, int]:
        """The first byte of its storage that the tensor covers, and the one after the last."""
        tensor = self.tensor
        reach = sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
        start = tensor.storage_offset() * tensor.element_size()
        stop = start + (reach + 1) * tensor.element_size()
        return start, min(stop, tensor.untyped_storage().nbytes())


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes `start` to `stop` of one storage, and the names of the tensors that lie there."""

    storage: torch.UntypedStorage
    start: int
    stop: int
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many bytes it is."""
        return self.stop - self.start

    @property
    def device(self) -> torch.device:
        """Where the bytes are."""
        return self.storage.device

    def bytes(self, offset: int = 0, size: int | None = None) -> torch.Tensor:
        """`size` bytes from `offset` of the span, as a uint8 view of the storage itself."""
        count = self.size - offset if size is None else size
        empty = torch.empty(0, dtype=torch.uint8, device=self.device)
        return empty.set_(self.storage, self.start + offset, (count,), (1,))


def leaves(owners: Owners) -> Iterator[Leaf]:
    """Every tensor of every owner, each under every name that it has: tied ones come more than once.

    Raises CannotStage for a tensor that has no memory of its own yet (a lazy parameter) or an opaque layout.
    """
    for owner_name, owner in owners.items():
        for name, tensor in _named(owner):
            yield from _flattened(f"{owner_name}.{name}", tensor)


def spans(found: Iterable[Leaf]) -> list[Span]:
    """The bytes that these tensors cover: each byte in one span, whatever is tied, viewed or shared."""
    by_storage: dict[tuple[str, int, int], list[Leaf]] = {}
    for leaf in found:
        if leaf.has_bytes:
            by_storage.setdefault(place(leaf.tensor), []).append(leaf)
    return [span for group in by_storage.values() for span in _united(group)]


def place(tensor: torch.Tensor) -> tuple[str, int, int]:
    """Device, address and size in bytes of the tensor's storage."""
    storage = tensor.untyped_storage()
    return str(tensor.device), storage.data_ptr(), storage.nbytes()


def _united(group: list[Leaf]) -> Iterator[Span]:
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


def _named(owner: Owner) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(owner, torch.nn.Module):
        yield from owner.named_parameters(remove_duplicate=False)
        yield from owner.named_buffers(remove_duplicate=False)
    elif isinstance(owner, BuffersOf):
        yield from owner.module.named_buffers(remove_duplicate=False)
    elif isinstance(owner, torch.optim.Optimizer):
        yield from _states(owner)
    elif isinstance(owner, Mapping):
        yield from ((str(name), each) for name, each in owner.items() if isinstance(each, torch.Tensor))
    else:
        raise TypeError(f"a module, an optimizer or tensors by name are wanted, not {type(owner).__name__}")


def _states(optimizer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter in enumerate(parameters):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                yield f"{index}.{name}", value


def _flattened(name: str, tensor: torch.Tensor) -> Iterator[Leaf]:
    """The strided tensors that this one is made of: itself, or the parts of a subclass or a sparse layout."""
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
