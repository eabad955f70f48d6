"""The engine that is a torch model in this process, as its user sees it."""

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
from .hooks import Asked
from .host_memory import HostBudget
from .probe import ProbeOfTenant
from .saver import Backend, Backup, Tags
from .staging import HostStaging
from .tenant import Hooks, Tenant
from .tensors import BuffersOf

#: How the contents of weights come through a release: staged in host memory by this library; by the saver's own
#: backup, page-locked or reclaimable; or not at all (from a checkpoint, or the trainer's push).
Contents = Literal["staged", "pinned", "mmap", "discarded"]


class TorchTenant(Engine):
    """An engine whose memory is this process's: regions to allocate in, and contents that come through a release."""

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
        hook_mode: Asked = "auto",
        stages: Mapping[Tag, Stage] | None = None,
        serves: bool = True,
        **engine: Any,
    ) -> None:
        self._contents: Contents = contents
        self._budget = host_budget or HostBudget()
        self._checksum = checksum
        backend = backend_for(torch.device(device), hook_mode)
        tenant = Tenant(Tags(name, backend, stages=stages), in_flight or Gate(), hooks or Hooks())
        super().__init__(TorchAdapter(tenant, serves=serves, checksum=checksum), name=name, **engine)
        self._tenant = tenant

    @property
    def gate(self) -> InFlight:
        """What admits requests: `with engine.gate.request(): ...` unless a hook of the user's own was given."""
        return self._tenant.in_flight

    @property
    def probe(self) -> ResidualProbe:
        """What measures its memory: this process's, less what other tenants of the process hold in regions."""
        return ProbeOfTenant(super().probe, self._tenant.tags)

    @contextmanager
    def region(self, tag: Tag) -> Iterator[None]:
        """Inside, what this thread allocates on the device can be released by this tag.

        Raises RegionRefused while the tag is released, ConfigurationError for a tag that is new after connect().
        """
        self._open(tag)
        with self._tenant.tags.region(tag, self._backup(tag)):
            yield
        self._remeasure()

    @contextmanager
    def cuda_graph(self, graph: Any, *, tag: Tag = "cuda_graph", **options: Any) -> Iterator[None]:
        """Inside, `graph` is captured as by torch.cuda.graph (`pool`, `stream`, `capture_error_mode`); its memory can
        be released. ConfigurationError in hook mode torch, which cannot.
        """
        self._open(tag)
        with self._tenant.tags.cuda_graph(graph, tag, options):
            yield
        self._remeasure()

    def _hold(self, tag: Tag, owners: Mapping[str, Any]) -> None:
        """The owners' tensors are the tag's contents."""
        tenant = self._tenant
        held = tenant.owners.setdefault(tag, {})
        held.update(owners)
        if self._contents == "staged":
            tenant.stagings.setdefault(tag, self._staging(held))
        if self._contents in ("staged", "discarded"):
            buffers = {name: BuffersOf(owner) for name, owner in held.items() if isinstance(owner, torch.nn.Module)}
            tenant.buffers[tag] = self._staging(buffers)
        self._remeasure()

    def _staging(self, owners: Mapping[str, Any]) -> HostStaging:
        return HostStaging(owners, budget=self._budget, checksum=self._checksum, exclude=self._tenant.is_kv)

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
        """These modules (one, called target; or several by name) are the contents of `tag`.

        `generate` gives the token ids for a probe; `drop_cache` forgets what was computed with other weights.
        """
        owners = modules if isinstance(modules, Mapping) else {"target": modules}
        if generate is not None:
            self._tenant.hooks.generate = generate
        if drop_cache is not None:
            self._tenant.hooks.drop_cache = drop_cache
        self._hold(tag, owners)


def backend_for(device: torch.device, hook_mode: Asked) -> Backend:
    """What releases memory of this device."""
    if device.type == "cpu":
        from .pages import PagesBackend

        return PagesBackend()
    if device.type == "cuda":
        from .cuda import CudaBackend

        return CudaBackend(device, hook_mode=hook_mode)
    raise ConfigurationError(f"memory of {device} cannot be released here; the devices are cuda and cpu")
