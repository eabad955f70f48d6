"""A manager of four scripted engines behind a router, for the tests of rlix' resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lifecycle import (
    Engine,
    FromDisk,
)
from lifecycle import Fleet as AsyncFleet
from lifecycle.core.readings import Holder, Reading
from lifecycle.frameworks.rlix import RolloutManager
from lifecycle.testing import (
    KV_CACHE,
    QUICK,
    WEIGHTS,
    Journal,
    ScriptedAdapter,
    ScriptedRouter,
    capabilities,
)

V1, V2 = FromDisk("/models/step-1", "v1"), FromDisk("/models/step-2", "v2")


class Rig:
    """A manager of four engines behind a router, and their journal."""

    def __init__(self, *names: str, policy: Any = QUICK, tags: Sequence[Any] = (WEIGHTS, KV_CACHE), **how: Any) -> None:
        self.journal = Journal()
        self.router = ScriptedRouter(self.journal)
        self.engines = []
        for name in names or ("e0", "e1", "e2", "e3"):
            adapter = ScriptedAdapter(name, capabilities(*tags), journal=self.journal, devices=(f"gpu-{name}",))
            options: dict[str, Any] = {
                "probe": adapter.probe,
                "has_router": True,
                "policy": policy,
                "lease": None,
                **how,
            }
            self.engines.append(Engine(adapter, name=name, **{**options, **how}))
        self.fleet = AsyncFleet(self.engines, router=self.router, policy=policy)
        self.manager = RolloutManager(self.fleet)

    async def __aenter__(self) -> Rig:
        await self.fleet.__aenter__()
        self.journal.clear()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.fleet.aclose()

    def __getitem__(self, index: int) -> Any:
        return self.engines[index]

    @property
    def states(self) -> list[str]:
        return [str(engine.state) for engine in self.engines]

    def lines(self, name: str, *kinds: str) -> list[str]:
        found = [str(entry).removeprefix(f"{name}: ") for entry in self.journal if str(entry).startswith(f"{name}:")]
        return [line for line in found if line.startswith(kinds)]


def resident(rig: Rig, index: int, beside: int) -> None:
    """From here on an engine holds so many bytes beside its tags: they stay resident after a release."""
    adapter, device = rig[index].adapter, f"gpu-{rig[index].name}"
    read = adapter.probe._read

    def reading(pids: Any) -> Any:
        found = read(pids)
        if not isinstance(found, Reading):
            return found
        engine = adapter.engine
        held = beside + sum(engine.sizes[tag] for tag in engine.sizes.keys() - engine.unmapped)
        return Reading({device: held}, (Holder(engine.pid, device, held, engine.name),), "scripted")

    adapter.probe._read = reading
