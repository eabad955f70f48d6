"""The API of torch_memory_saver 0.0.10, and which tensors belong to a region."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from .allocation import Allocation, touch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TAG_DEFAULT = "default"

#: The MiB that are allocated beside the weights while they are loaded, as another tenant of a device may do.
BALLAST = "STANDIN_BALLAST_MIB"


class _Watch(TorchDispatchMode):
    """Records the storages that torch operations of this thread allocate.

    A storage that one of the inputs has too belongs to a view or was changed in place. It is not new.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {storage._cdata for storage in _storages((args, kwargs))}
        made = func(*args, **kwargs)
        for storage in _storages(made):
            if storage._cdata not in given:
                self.seen.setdefault(storage._cdata, StorageWeakRef(storage))
        return made


def _storages(tree: object) -> Iterator[torch.UntypedStorage]:
    for leaf in tree_leaves(tree):
        if type(leaf) in (torch.Tensor, torch.nn.Parameter) and leaf.device.type == "cpu":
            yield leaf.untyped_storage()


class TorchMemorySaver:
    """Returns the memory of everything allocated in regions to the operating system, and restores it, by tag."""

    def __init__(self) -> None:
        self._allocations: dict[StorageWeakRef, Allocation] = {}
        self._ballast = bytearray()

    @property
    def enabled(self) -> bool:
        """Always true, as in the real package."""
        return True

    @property
    def hook_mode(self) -> str:
        """Can only be set, as in the real package."""
        raise AttributeError("hook_mode can only be set")

    @hook_mode.setter
    def hook_mode(self, hook_mode: str) -> None:
        """Does nothing: there is nothing to hook on a CPU."""

    @contextlib.contextmanager
    def region(self, tag: str = TAG_DEFAULT, enable_cpu_backup: bool = False, **_: object) -> Iterator[None]:
        """A context; what is allocated in it and still referenced after it belongs to `tag`, and is resident."""
        if torch.cuda.is_available():
            raise RuntimeError("this stand-in for torch_memory_saver only knows memory of the CPU")
        if tag == "weights" and not self._ballast:
            self._ballast = bytearray(b"\1") * (int(os.environ.get(BALLAST, "0")) << 20)
        with _Watch() as watch:
            yield
        for reference in watch.seen.values():
            self._adopt(reference, Allocation(tag, backup=enable_cpu_backup))

    @contextlib.contextmanager
    def cuda_graph(self, cuda_graph: object, *_: object, **__: object) -> Iterator[None]:
        """A context that does nothing, since a CPU has no graphs."""
        yield

    @contextlib.contextmanager
    def disable(self, dispose_mem_pool_after_use: bool = True) -> Iterator[None]:
        """A context in which allocations belong to no region."""
        with _disable_current_modes():
            yield

    def pause(self, tag: str | None = None) -> None:
        """Releases the memory of `tag`, or of every tag. Exits the process where some of it is released already."""
        for storage, allocation in self._living(tag):
            allocation.pause(storage)

    def resume(self, tag: str | None = None) -> None:
        """Makes the memory of `tag`, or of every tag, resident. Exits the process where some of it is already."""
        for storage, allocation in self._living(tag):
            allocation.resume(storage)

    def _adopt(self, reference: StorageWeakRef, allocation: Allocation) -> None:
        storage = _living(reference)
        if storage is not None and storage.nbytes():
            self._allocations[reference] = allocation
            touch(storage)

    def _living(self, tag: str | None) -> list[tuple[torch.UntypedStorage, Allocation]]:
        """The allocations of this tag that are still referenced; the others are dropped."""
        found = []
        for reference, allocation in list(self._allocations.items()):
            storage = _living(reference)
            if storage is None:
                allocation.close()
                del self._allocations[reference]
            elif tag is None or allocation.tag == tag:
                found.append((storage, allocation))
        return found


def _living(reference: StorageWeakRef) -> torch.UntypedStorage | None:
    """The storage if it is still referenced, else None."""
    return torch.UntypedStorage._new_with_weak_ptr(reference.cdata)


@contextlib.contextmanager
def configure_subprocess() -> Iterator[None]:
    """A context that does nothing: child processes need no preloaded library, and find this module on the same path."""
    yield
