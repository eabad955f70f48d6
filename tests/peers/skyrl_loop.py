"""Two loops of SkyRL: on the engines' own devices, and beside them with their KV cache given up while weights arrive.

Source of the order: skyrl 0.4.0, train/trainer.py: generate, sleep (colocated), train, `save_weights_for_sampler`.
"""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace as Of
from typing import Any

import skyrl_stand_ins
from peer_step import FAULTS, PROMPT, TOKENS, Engines, Outcome

DIALECT = "vllm:0.32"
ENGINES = 2
HOLLOW = skyrl_stand_ins.install()


def config(colocated: bool) -> Any:
    """The settings that the dispatch reads."""
    policy = Of(optimizer_config=Of(offload_after_step=True), model=Of(lora=Of(rank=0)))
    placement = Of(colocate_all=colocated, colocate_policy_ref=colocated)
    trainer = Of(placement=placement, policy=policy, strategy="fsdp2", fully_async=Of(enabled=False))
    return Of(trainer=trainer, generator=Of(inference_engine=Of(offload_kv_for_weight_sync=True)))


def step(colocated: bool, engines: Engines, outcome: Outcome, shim: Any) -> None:
    """Two times: sleep (colocated), train, sync, generate."""
    asyncio.run(_step(colocated, engines, outcome, shim))


async def _step(colocated: bool, engines: Engines, outcome: Outcome, shim: Any) -> None:
    from skyrl.backends.skyrl_train.inference_servers.remote_inference_client import RemoteInferenceClient
    from skyrl.backends.skyrl_train.weight_sync.control_plane import SkyrlWeightSyncClient
    from skyrl.backends.skyrl_train.workers.worker_dispatch import WorkerDispatch

    client_class, dispatch_class, sync_class = shim or (RemoteInferenceClient, WorkerDispatch, SkyrlWeightSyncClient)
    router = skyrl_stand_ins.Router(engines.urls)
    client = client_class(router.url, engines.urls, 1, tokenizer=skyrl_stand_ins.Tokenizer())
    workers = skyrl_stand_ins.Workers(sync_class(engines.urls))
    dispatch = dispatch_class(config(colocated), workers, inference_engine_client=client)
    sampling = {"max_tokens": TOKENS, "temperature": 0.0, "ignore_eos": True}
    batch = {"prompt_token_ids": [PROMPT, PROMPT], "sampling_params": sampling}
    try:
        for _ in range(2):
            if colocated:
                await client.sleep()
                outcome.held_mib.append(engines.held_mib())
            await dispatch.save_weights_for_sampler()
            generated = await client.generate(batch)
            found = {engines.what_it_is(each) for each in generated["response_ids"]}
            outcome.rollout = " and ".join(sorted(found))
    finally:
        outcome.known = [str(each.state) for each in getattr(client, "fleet", None) or ()]
        await client.teardown()
        router.shutdown()
        router.server_close()


LOOPS = {
    "colocated": (tuple(FAULTS), partial(step, True)),
    "offload_kv_for_weight_sync": (("none", "dies"), partial(step, False)),
}
