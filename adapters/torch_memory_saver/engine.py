"""The public engine: a torch model in this process, allocated in regions that can be released."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from lifecycle.core.errors import ConfigurationError
from lifecycle.core.facts import Stage, Tag
from lifecycle.core.observation import Probe
from lifecycle.core.ports import ResidualProbe
from lifecycle.engine.engine import Engine

from .adapter import TorchAdapter
from .gate import Gate, InFlight
from .hooks import HookModeSetting
from .host_memory import HostBudget
from .probe import TenantProbe
from .saver import Backend, Backup, Tags
from .staging import HostStaging
from .tenant import Hooks, Tenant
from .tensors import BuffersOf, Modules

#: How weights are kept through a release. `staged`: this library copies them to host memory. `pinned`, `mmap`: the
#: saver's own backup, page-locked or reclaimable. `discarded`: a checkpoint or a trainer's push brings them back.
Contents = Literal["staged", "pinned", "mmap", "discarded"]


class TorchTenant(Engine):
    """An engine or a trainer in this process: it allocates memory in regions and keeps contents through a release.

    - `device`: cuda, or cpu for trials without a GPU.
    - `contents`: how weights are kept through a release.
    - `in_flight`: what runs the requests; a `Gate` unless given.
    - `host_budget`: the host memory that staging may take; may be shared by several engines.
    - `checksum`: restored contents are compared with the staged ones.
    - `hook_mode`: of torch_memory_saver, on CUDA.
    - `stages`: the stage in which each tag is restored, where it is not the default one.
    """

    adapter: TorchAdapter

    def __init__(
        self,
        name: str,
        *,
        device: str | torch.device = "cuda",
        contents: Contents = "staged",
        in_flight: InFlight | None = None,
        hooks: Hooks | None = None,
        host_budget: HostBudget | None = None,
        checksum: bool = False,
        hook_mode: HookModeSetting = "auto",
        stages: Mapping[Tag, Stage] | None = None,
        serves: bool = True,
        **engine: Any,
    ) -> None:
        self._contents: Contents = contents
        self._budget = host_budget or HostBudget()
        self._checksum = checksum
        backend = backend_for(torch.device(device), hook_mode)
        tenant = Tenant(Tags(name, backend, stages=stages), in_flight or Gate(), hooks or Hooks())
        self._tags = tenant.tags
        super().__init__(TorchAdapter(tenant, serves=serves, checksum=checksum), name=name, **engine)
        self._tenant = tenant

    @property
    def gate(self) -> InFlight:
        """What admits requests: `with engine.gate.request(): ...`, unless the user gave `in_flight`."""
        return self._tenant.in_flight

    def adapt_probe(self, probe: ResidualProbe) -> ResidualProbe:
        """Measures the process's memory less what other tenants of the process hold in regions."""
        return TenantProbe(probe, self._tags)

    @contextmanager
    def region(self, tag: Tag) -> Iterator[None]:
        """A context in which what this thread allocates on the device belongs to the tag.

        Raises RegionRefused while the tag is released, ConfigurationError for a tag first opened after connect().
        """
        self._open(tag)
        with self._tenant.tags.region(tag, self._backup(tag)):
            yield
        self._remeasure()

    @contextmanager
    def cuda_graph(self, graph: Any, *, tag: Tag = "cuda_graph", **options: Any) -> Iterator[None]:
        """A context that captures `graph` as torch.cuda.graph does; the graph's memory belongs to the tag.

        `options` are those of torch.cuda.graph: `pool`, `stream`, `capture_error_mode`. Raises ConfigurationError in
        hook mode torch, in which torch_memory_saver cannot release a graph's memory.
        """
        self._open(tag)
        with self._tenant.tags.cuda_graph(graph, tag, options):
            yield
        self._remeasure()

    def _attach(self, tag: Tag, modules: Modules) -> None:
        """Makes the tensors of these modules contents of the tag."""
        tenant = self._tenant
        attached = tenant.modules_by_tag.setdefault(tag, {})
        attached.update(modules)
        if self._contents == "staged":
            tenant.stagings.setdefault(tag, self._staging(attached))
        if self._contents in ("staged", "discarded"):
            buffers = {name: BuffersOf(each) for name, each in attached.items() if isinstance(each, torch.nn.Module)}
            tenant.buffers[tag] = self._staging(buffers)
        self._remeasure()

    def _staging(self, modules: Modules) -> HostStaging:
        return HostStaging(modules, budget=self._budget, checksum=self._checksum, exclude=self._tenant.is_kv)

    def _backup(self, tag: Tag) -> Backup | None:
        if self._tenant.tags.stage(tag) == "kv" or self._contents in ("staged", "discarded"):
            return None
        return "pinned" if self._contents == "pinned" else "mmap"

    def _open(self, tag: Tag) -> None:
        if self.connected and tag not in self._tenant.tags.known:
            raise ConfigurationError(f"{self.name}: the region {tag!r} is new; open every region once before connect()")

    def _remeasure(self) -> None:
        """Once connected, its capabilities have the sizes of its regions now."""
        if self.connected:
            self.capabilities_changed(self.adapter.capabilities())


class TorchEngine(TorchTenant):
    """A torch model in this process that serves requests.

    engine = TorchEngine("policy", device="cuda")
    with engine.region("weights"):
        model = build()
    with engine.region("kv_cache"):
        cache = build_cache()
    engine.attach(model, generate=generate)
    async with Fleet([engine]) as fleet: ...
    """

    def attach(
        self,
        modules: Any,
        *,
        generate: Callable[[Probe], Sequence[int]] | None = None,
        drop_cache: Callable[[], None] | None = None,
        tag: Tag = "weights",
    ) -> None:
        """Makes the tensors of these modules the contents of `tag`. A single module gets the name `target`.

        `generate` returns the token ids for a probe; `drop_cache` empties the prefix cache.
        """
        named = modules if isinstance(modules, Mapping) else {"target": modules}
        if generate is not None:
            self._tenant.hooks.generate = generate
        if drop_cache is not None:
            self._tenant.hooks.drop_cache = drop_cache
        self._attach(tag, named)


def backend_for(device: torch.device, hook_mode: HookModeSetting) -> Backend:
    """The backend that releases memory of this device. Raises ConfigurationError where there is none."""
    if device.type == "cpu":
        from .pages import PagesBackend

        return PagesBackend()
    if device.type == "cuda":
        from .cuda import CudaBackend

        return CudaBackend(device, hook_mode=hook_mode)
    raise ConfigurationError(f"memory of {device} cannot be released here; the devices are cuda and cpu")
