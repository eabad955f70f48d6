"""verl's colocated step: its manager puts the replicas to sleep, training runs, and every rank updates its engine.

Source of the order: verl 0.9.1, trainer/ppo/ray_trainer.py: generate, `sleep_replicas`, train, `update_weights`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from peer_step import FAULTS, PROMPT, TOKENS, Engines, Outcome

DIALECT = "sglang:0.5.20"
ENGINES = 2

os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path[-1:])])
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

import ray  # noqa: E402
import verl_actors  # noqa: E402
from verl.checkpoint_engine.base import CheckpointEngineManager  # noqa: E402
from verl.single_controller.ray import RayClassWithInitArgs, RayWorkerGroup  # noqa: E402
from verl.workers.config import CheckpointEngineConfig  # noqa: E402
from verl.workers.rollout.sglang_rollout.async_sglang_server import SGLangReplica  # noqa: E402

HOLLOW = verl_actors.HOLLOW


def free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])


class Actors:
    """Ray, with a server and a trainer for each engine. Their processes are kept from one step to the next."""

    def __init__(self) -> None:
        home = os.environ["XDG_STATE_HOME"]  # of this run, and short enough for a socket's path
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray writes one into the user's home
        quiet = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
        ray.init(num_cpus=1, namespace="peers", _node_ip_address="127.0.0.1", _temp_dir=home, **quiet)
        server = ray.remote(verl_actors.Server)
        self.servers = [
            server.options(name=f"sglang_server_{rank}_0", max_concurrency=8).remote() for rank in range(ENGINES)
        ]
        self.trainers: list[Any] = []

    def _trainers(self) -> list[Any]:
        trainer, port = ray.remote(verl_actors.Trainer), free_port()
        return [trainer.remote(rank, ENGINES, port) for rank in range(ENGINES)]

    def begin(self) -> None:
        """Every actor answers."""
        self.trainers = self.trainers or self._trainers()
        ray.get([each.__ray_ready__.remote() for each in (*self.servers, *self.trainers)], timeout=240)

    def attach(self, urls: list[str], free_cache_engine: bool, record: bool) -> None:
        """The engines are these from now on; what runs is recorded, or not."""
        found = [urlsplit(url) for url in urls]
        attached = [
            each.attach.remote(url.hostname, url.port) for each, url in zip(self.servers, found, strict=True)
        ] + [each.attach.remote(free_cache_engine) for each in self.trainers]
        ray.get(attached)
        if record:
            ray.get([each.record_functions.remote() for each in (*self.servers, *self.trainers)])

    def end_trainers(self) -> None:
        """After a step that failed: a rank may wait for the others, for half an hour."""
        for each in self.trainers:
            ray.kill(each)
        self.trainers = []

    def functions_run(self) -> list[Any]:
        """The functions of verl that were recorded in them; they record no more."""
        found = ray.get([each.functions_run.remote() for each in (*self.servers, *self.trainers)])
        return [function for each in found for function in each]


_actors: list[Actors] = []
_recorded: dict[str, list[Any]] = {"theirs": [], "ours": []}


def actors() -> Actors:
    """Those of this process."""
    if not _actors:
        _actors.append(Actors())
    return _actors[0]


def prepare() -> None:
    """The actors are there, before a step is timed. What fails here is no outcome of a step."""
    actors().begin()


def functions_run(code: str) -> list[Any]:
    """What ran of verl in other processes, with its own code or over the shim."""
    return _recorded[code]


def close() -> None:
    """Ray has ended, with all of its processes."""
    ray.shutdown()


def step(engines: Engines, outcome: Outcome, shim: Any) -> None:
    """Two times: sleep, train, update, generate."""
    actors().attach(engines.urls, free_cache_engine=shim is None, record=outcome.traced)
    replicas = []
    for rank, (server, url) in enumerate(zip(actors().servers, engines.urls, strict=True)):
        config = verl_actors.rollout_config(free_cache_engine=shim is None)
        replica = SGLangReplica(rank, config, verl_actors.MODEL, gpus_per_node=1)
        replica.servers, replica._server_handle, replica._server_address = [server], server, urlsplit(url).netloc
        replicas.append(replica)
    worker = RayClassWithInitArgs(cls=ray.remote(verl_actors.Trainer))
    group = RayWorkerGroup(worker_handles=actors().trainers, ray_cls_with_init=worker)
    manager = (shim or CheckpointEngineManager)(CheckpointEngineConfig(), group, replicas)
    try:
        for number in range(2):
            manager.sleep_replicas()
            outcome.held_mib.append(engines.held_mib())
            manager.update_weights(global_steps=number + 1)
            outcome.rollout = " and ".join(sorted(asyncio.run(rollout(engines, replicas))))
    except Exception:
        actors().end_trainers()
        raise
    finally:
        if outcome.traced:
            _recorded[outcome.code].extend(actors().functions_run())
        outcome.known = [str(each.state) for each in getattr(manager, "fleet", None) or ()]
        if shim is not None:
            manager.close()


async def rollout(engines: Engines, replicas: list[Any]) -> set[str]:
    """The weights from which the replicas generate."""
    sampling = {"max_new_tokens": TOKENS, "temperature": 0.0, "ignore_eos": True}
    asked = [each.server_handle.generate.remote(PROMPT, dict(sampling), uuid.uuid4().hex) for each in replicas]
    return {engines.what_it_is(output.token_ids) for output in await asyncio.gather(*asked)}


LOOPS = {"colocated": (tuple(FAULTS), step)}
