"""A rollout worker with verl's verbs (resume by tags, update_weights from a generator, release), over this library.

Source: verl 0.6, workers/rollout/base.py: `resume(tags)`, `update_weights(weights)`, `release()`, all asynchronous.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from lifecycle import Engine, Fleet, Pushed


class Rollout:
    """verl's trainer holds one of these beside its own module, on the same device."""

    def __init__(self, engine: Engine) -> None:
        self._fleet = Fleet([engine])
        self._weights: Iterable[tuple[str, Any]] = ()
        self._versions: Iterator[int] = count(1)

    async def start(self) -> None:
        """The engine was observed and serves."""
        await self._fleet.__aenter__()

    async def release(self) -> None:
        """The engine's memory is back, measured: the trainer may take it."""
        self._source = Pushed(self._push, f"step-{next(self._versions)}")
        await self._fleet.offload(weights=self._source)

    async def resume(self, tags: list[str]) -> None:
        """The memory of these tags is mapped: weights before the update, kv_cache after it, then it serves."""
        if "weights" in tags:
            await self._fleet.restore_weights()
        if "kv_cache" in tags:
            await self._fleet.restore_kv()
            await self._fleet.resume()

    async def update_weights(self, weights: Iterable[tuple[str, Any]]) -> None:
        """The engine holds what the trainer yields."""
        self._weights = weights
        await self._fleet.update_weights(self._source)

    async def _push(self, engines: Any) -> None:
        tensors = dict(self._weights)
        for engine in engines:
            await engine.push("tensors", tensors=tensors)
