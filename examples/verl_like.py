"""A rollout worker with verl's verbs (resume by tags, update_weights from a generator, release), over this library.

Source: verl 0.6, workers/rollout/base.py: `resume(tags)`, `update_weights(weights)`, `release()`, all asynchronous.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

from lifecycle import Engine, Fleet, Pushed


class Rollout:
    """The rollout engine of verl's trainer, on the device of its own module."""

    def __init__(self, engine: Engine) -> None:
        self._fleet = Fleet([engine])
        self._weights: Iterable[tuple[str, Any]] = ()
        self._versions: Iterator[int] = count(1)

    async def start(self) -> None:
        """Connects to the engine and observes its state."""
        await self._fleet.__aenter__()

    async def release(self) -> None:
        """Releases the engine's memory and waits until it is measured to be free."""
        self._source = Pushed(self._push, f"step-{next(self._versions)}")
        await self._fleet.offload(weights=self._source)

    async def resume(self, tags: list[str]) -> None:
        """Maps the memory of these tags: weights before the update; kv_cache after it, and then the engine serves."""
        if "weights" in tags:
            await self._fleet.restore_weights()
        if "kv_cache" in tags:
            await self._fleet.restore_kv()
            await self._fleet.resume()

    async def update_weights(self, weights: Iterable[tuple[str, Any]]) -> None:
        """Pushes what the trainer yields to the engine."""
        self._weights = weights
        await self._fleet.update_weights(self._source)

    async def _push(self, engines: Any) -> None:
        tensors = dict(self._weights)
        for engine in engines:
            await engine.push("tensors", tensors=tensors)
