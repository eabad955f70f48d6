"""verl's server and worker as they run in Ray's processes, but for how they are started.

Source: verl 0.9.1, workers/rollout/sglang_rollout/async_sglang_server.py and workers/engine_workers.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import verl_stand_ins
from functions_run import Function, FunctionsRun

HOLLOW = verl_stand_ins.install()

import verl  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from verl.workers.config import RolloutConfig  # noqa: E402
from verl.workers.engine_workers import ActorRolloutRefWorker  # noqa: E402
from verl.workers.rollout.replica import RolloutMode  # noqa: E402
from verl.workers.rollout.sglang_rollout.async_sglang_server import SGLangHttpServer  # noqa: E402
from verl.workers.rollout.sglang_rollout.sglang_rollout import ServerAdapter  # noqa: E402

MODEL = SimpleNamespace(lora={}, lora_rank=0, hf_config=SimpleNamespace(model_type="loopback"), local_path="loopback")
MODEL.trust_remote_code = False


def rollout_config(free_cache_engine: bool = True) -> RolloutConfig:
    """verl's settings of the rollout, one engine a rank."""
    return RolloutConfig(
        name="sglang", tensor_model_parallel_size=1, max_model_len=1024, free_cache_engine=free_cache_engine
    )


class Traced:
    """Tells which functions of verl ran in this actor. It has one thread, that of its event loop."""

    _ran = FunctionsRun(Path(verl.__file__).parent)

    async def record_functions(self) -> None:
        sys.settrace(self._ran.called)

    async def functions_run(self) -> list[Function]:
        sys.settrace(None)
        return self._ran.found()


class Server(SGLangHttpServer, Traced):
    """verl's server of one replica, on an engine process that runs already."""

    def __init__(self) -> None:
        self.config, self.model_config = rollout_config(), MODEL
        self.rollout_mode, self.node_rank, self.replica_rank = RolloutMode.HYBRID, 0, 0
        self._disaggregation_role, self._pd_decode_peers, self.global_steps = "null", [], None

    async def attach(self, host: str, port: int) -> None:
        """The engine process is this one."""
        self._server_address, self._server_port = host, port
        self.tokenizer_manager = verl_stand_ins.TokenizerManager(f"http://{host}:{port}")


class Trainer(ActorRolloutRefWorker, Traced):
    """verl's hybrid worker of one rank: its own weights, and verl's adapter to the replica's server."""

    def __init__(self, rank: int, ranks: int, port: int) -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), RAY_LOCAL_WORLD_SIZE="1")
        torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
        self.actor = SimpleNamespace(engine=verl_stand_ins.Model())
        self.layered_summon, self.peft_merge, self.base_sync_done = False, False, True

    async def attach(self, free_cache_engine: bool) -> None:
        """The engine's process is another one: verl's adapter asks for it anew."""
        rollout = {"name": "sglang", "free_cache_engine": free_cache_engine}
        self.config = OmegaConf.create({"rollout": {**rollout, "checkpoint_engine": {"backend": "naive"}}})
        self.rollout = ServerAdapter(rollout_config(free_cache_engine), MODEL, None)
