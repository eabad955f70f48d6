"""verl's manager of weights and replicas over this library: as released, but that its engines move by evidence.

`ManagedCheckpointEngineManager(...)` in place of `CheckpointEngineManager(...)`, with `free_cache_engine=False` in the
rollout's settings: the fleet wakes the engines, and the trainer's workers only push.

Covered is the colocated step (`checkpoint_engine.backend="naive"`) that pushes all weights to SGLang; with LoRA, where
the trainer merges it (`model.lora.merge=True`). Anything else raises at the first call: an adapter that is pushed alone
needs the base weights, which are released here, and an engine that is woken twice ends.

Source: verl 0.9.1, checkpoint_engine/base.py: `sleep_replicas()` before training; `update_weights()` after it, in which
every rank wakes weights, pushes, offloads its trainer, waits for the others, and wakes the KV cache.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
import requests
from verl.checkpoint_engine.base import CheckpointEngineManager
from verl.utils.ray_utils import auto_await
from verl.workers.rollout.sglang_rollout.utils import lora_served_as_adapter

from lifecycle import Policy, Pushed
from lifecycle.sync import Fleet


async def _pushes(engines: Any) -> None:
    raise RuntimeError("verl pushes in update_weights")


class ManagedCheckpointEngineManager(CheckpointEngineManager):
    """verl's manager, whose sleep and update return once the state that they lead to is proved."""

    policy = Policy()
    fleet: Fleet | None = None
    step = 0

    def _check(self) -> None:
        """NotImplementedError where verl is set to what is not covered here."""
        if self.backend != "naive":
            raise NotImplementedError(f"checkpoint_engine.backend={self.backend!r}: only 'naive' is covered here")
        for each in self.replicas:
            if lora_served_as_adapter(each.model_config):
                raise NotImplementedError("LoRA as an adapter loses its base weights here; set model.lora.merge=True")
            if each.config.free_cache_engine:
                raise NotImplementedError("verl would wake the engines too; set rollout.free_cache_engine=False")

    @auto_await
    async def sleep_replicas(self) -> None:
        if self.fleet is None:
            self._check()
            urls = [f"sglang://{each.server_address}" for each in self.replicas]
            self.fleet = Fleet.connect(urls, policy=self.policy).open()
        self.step += 1
        await asyncio.to_thread(self.fleet.offload, weights=Pushed(_pushes, f"step-{self.step}"))

    @auto_await
    async def update_weights(self, global_steps: int | None = None) -> dict[str, Any]:
        await asyncio.to_thread(self._update, global_steps)
        return {}

    def _update(self, global_steps: int | None) -> None:
        if self.fleet is None:
            raise NotImplementedError("sleep_replicas() comes before update_weights() here")
        self.fleet.restore_weights()
        with self.fleet.updating_weights(f"step-{self.step}"):
            ray.get(self.actor_wg.update_weights(global_steps=global_steps, mode=self.backend))
            label = {"new_version": f"step-{self.step}", "abort_all_requests": False}  # verl's push has none
            for each in self.replicas:
                url = f"http://{each.server_address}/update_weight_version"
                requests.post(url, json=label, timeout=10).raise_for_status()
        self.fleet.onload()

    def close(self) -> None:
        if self.fleet is not None:
            self.fleet.close()
