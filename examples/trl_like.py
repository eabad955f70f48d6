"""A colocated engine with the blocking verbs of TRL's GRPO trainer (`sleep`, `wake_up` by tags), over this library.

Source: trl 0.24, trainer/grpo_trainer.py with vllm_mode="colocate": wake_up(tags=["weights"]), the weights are synced,
wake_up(tags=["kv_cache"]), generate, sleep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle import Engine, Fleet, Pushed
from lifecycle.sync import Fleet as BlockingFleet
from lifecycle.sync import Loop


class Colocated:
    """Replaces `self.llm` of TRL. Every verb returns when it is done and raises where it fails."""

    def __init__(self, engine: Engine) -> None:
        self._fleet = BlockingFleet(Fleet([engine]), Loop()).open()
        self._step = 0

    def sleep(self) -> None:
        """Releases the engine's memory and waits until it is measured to be free."""
        self._step += 1
        self._source = Pushed(self._push, f"step-{self._step}")
        self._fleet.offload(weights=self._source)

    def wake_up(self, tags: list[str]) -> None:
        """Maps the weights, which hold garbage until sync_weights; with kv_cache, maps that and serves."""
        if "weights" in tags:
            self._fleet.restore_weights()
        if "kv_cache" in tags:
            self._fleet.restore_kv()
            self._fleet.resume()

    def sync_weights(self, tensors: Mapping[str, Any]) -> None:
        """Pushes the trainer's weights to the engine."""
        self._tensors = tensors
        self._fleet.update_weights(self._source)

    def close(self) -> None:
        """Closes the connections; the engine stays as it is."""
        self._fleet.close()

    async def _push(self, engines: Any) -> None:
        for engine in engines:
            await engine.push("tensors", tensors=self._tensors)
