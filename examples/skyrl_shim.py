"""SkyRL's inference client over this library: as released, but that its engines move by evidence.

`ManagedClient(...)` in place of `RemoteInferenceClient(...)`, `ManagedDispatch(...)` in place of `WorkerDispatch(...)`,
and `ManagedSyncClient(...)` in place of `SkyrlWeightSyncClient(...)` where the trainer's workers make theirs.

Covered is what sleeps with level 2 and has all weights pushed: colocated training, and `offload_kv_for_weight_sync` of
a synchronous trainer; with LoRA, where the trainer merges it (Megatron's `merge_lora`). Anything else raises at its
first call: an adapter that is synced alone needs the base weights, which level 2 discards.

Source: skyrl 0.4.0, train/trainer.py and workers/worker_dispatch.py: `sleep()` after generation, and before the next
one `wake_up(["weights"])`, a broadcast by the workers' own client, `wake_up(["kv_cache"])`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from skyrl.backends.skyrl_train.inference_servers.remote_inference_client import RemoteInferenceClient
from skyrl.backends.skyrl_train.weight_sync.control_plane import SkyrlWeightSyncClient
from skyrl.backends.skyrl_train.workers.worker_dispatch import WorkerDispatch

from lifecycle import Policy, Pushed
from lifecycle.sync import Fleet


async def _pushes(engines: Any) -> None:
    raise RuntimeError("SkyRL pushes in save_weights_for_sampler; call that before generate")


class ManagedClient(RemoteInferenceClient):
    """SkyRL's client, whose sleep and wake return once the state that they lead to is proved."""

    policy = Policy()
    fleet: Fleet | None = None

    @property
    def next_version(self) -> str:
        return f"step-{self.weight_version + 1}"

    @property
    def moved(self) -> Fleet:
        """The fleet, whose engines sleep."""
        if self.fleet is None:
            raise NotImplementedError("the engines were not put to sleep before: this way to sync is not covered here")
        return self.fleet

    async def sleep(self, level: int = 2, tags: list[str] | None = None) -> dict[str, Any]:
        if level != 2 or tags or self.uses_lora_weight_sync:
            asked = f"sleep(level={level}, tags={tags}), uses_lora_weight_sync={self.uses_lora_weight_sync}"
            raise NotImplementedError(f"{asked}: only level 2 of all tags is covered here, with all weights pushed")
        if self.fleet is None:
            urls = [url.replace("http", "vllm", 1) for url in self.server_urls]
            self.fleet = await asyncio.to_thread(Fleet.connect(urls, policy=self.policy).open)
        await asyncio.to_thread(self.fleet.offload, weights=Pushed(_pushes, self.next_version))
        return {}

    async def wake_up(self, tags: list[str] | None = None) -> dict[str, Any]:
        if tags not in (None, ["weights"], ["kv_cache"]):
            raise NotImplementedError(f"wake_up(tags={tags}): only weights, then kv_cache, is covered here")
        await asyncio.to_thread(self.moved.restore_weights if tags == ["weights"] else self.moved.onload)
        return {}

    async def teardown(self) -> None:
        await super().teardown()
        if self.fleet is not None:
            await asyncio.to_thread(self.fleet.close)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "fleet": None}


class ManagedDispatch(WorkerDispatch):
    """SkyRL's dispatch, whose broadcast is an update of all engines or of none."""

    def _broadcast_to_inference_engines(self, client: ManagedClient, model_id: str | None = None) -> None:
        with client.moved.updating_weights(client.next_version):
            super()._broadcast_to_inference_engines(client, model_id)


class ManagedSyncClient(SkyrlWeightSyncClient):
    """The workers' client, for an update that the fleet begins and ends."""

    def start_weight_update(self) -> None:
        pass

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        pass
