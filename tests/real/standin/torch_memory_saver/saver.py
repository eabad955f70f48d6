"""Which tensors belong to a region, and the API of torch_memory_saver 0.0.10 over them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from .allocation import Allocation, touch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TAG_DEFAULT = "default"


class _Watch(TorchDispatchMode):
    """Remembers the storages that operations of this thread allocate, by their identity.

    A storage that one of the inputs already has is a view's or was changed in place, and is nobody's new memory.
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
    """What was allocated inside a region can be given back to the operating system, and taken again, by its tag."""

    def __init__(self) -> None:
        self._allocations: dict[StorageWeakRef, Allocation] = {}

    @property
    def enabled(self) -> bool:
        """Always true, as in the real one."""
        return True

    @property
    def hook_mode(self) -> str:
        """Can only be set, as in the real one."""
        raise AttributeError("hook_mode can only be set")

    @hook_mode.setter
    def hook_mode(self, hook_mode: str) -> None:
        """Nothing changes: there is nothing to hook on a CPU."""

    @contextlib.contextmanager
    def region(self, tag: str = TAG_DEFAULT, enable_cpu_backup: bool = False, **_: object) -> Iterator[None]:
        """What the body allocated and kept belongs to `tag` afterwards, and is resident."""
        if torch.cuda.is_available():
            raise RuntimeError("this stand-in for torch_memory_saver only knows memory of the CPU")
        with _Watch() as watch:
            yield
        for reference in watch.seen.values():
            self._adopt(reference, Allocation(tag, backup=enable_cpu_backup))

    @contextlib.contextmanager
    def cuda_graph(self, cuda_graph: object, *_: object, **__: object) -> Iterator[None]:
        """There are no graphs on a CPU; the body runs."""
        yield

    @contextlib.contextmanager
    def disable(self, dispose_mem_pool_after_use: bool = True) -> Iterator[None]:
        """What the body allocates belongs to no region."""
        with _disable_current_modes():
            yield

    def pause(self, tag: str | None = None) -> None:
        """The memory of `tag`, or of every tag, is the system's. Ends the process if some of it already is."""
        for storage, allocation in self._living(tag):
            allocation.pause(storage)

    def resume(self, tag: str | None = None) -> None:
        """The memory of `tag`, or of every tag, is resident. Ends the process if some of it already is."""
        for storage, allocation in self._living(tag):
            allocation.resume(storage)

    def _adopt(self, reference: StorageWeakRef, allocation: Allocation) -> None:
        storage = _living(reference)
        if storage is not None and storage.nbytes():
            self._allocations[reference] = allocation
            touch(storage)

    def _living(self, tag: str | None) -> list[tuple[torch.UntypedStorage, Allocation]]:
        """The allocations of this tag that somebody still holds; the others are forgotten."""
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
    """The storage if somebody still holds it."""
    return torch.UntypedStorage._new_with_weak_ptr(reference.cdata)


@contextlib.contextmanager
def configure_subprocess() -> Iterator[None]:
    """Children need nothing preloaded: they find this module on the same path."""
    yield
