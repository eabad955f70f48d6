"""A Ray of three nodes on this machine, two of which have engines: run by test_ray_nodes.py in a process of its own.

Two cycles of all engines through the drivers of their nodes; then a node is killed during the release. Prints what it
found as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import psutil
import ray
from lifecycle.adapters.ray import SLIME, Drivers, OnNode, RayActors, drivers_on
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray_actors import SlimeEngine, until

from lifecycle import Engine, Fleet, FleetError, FromDisk, Policy, Proved, State

POLICY = Policy(residual_threshold_gib=0.2, settle_s=3.0, poll_s=0.02)
EACH = 2


async def engine_of(name: str, actor: Any, drivers: Drivers) -> Engine:
    make = partial(RayActors, actor, SLIME, options={"abort": "retract"})
    return Engine(OnNode(await drivers.of(actor), make), name=name, policy=POLICY, lease=None)


async def found(folder: str, cluster: Cluster, nodes: list[Any]) -> dict[str, Any]:
    actors = {
        f"{letter}{number}": ray.remote(num_cpus=0)(SlimeEngine)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False))
        .remote(folder, f"{letter}{number}")
        for letter, node in zip("ab", nodes, strict=True)
        for number in range(EACH)
    }
    told = {name: await each.about.remote() for name, each in actors.items()}
    weights = FromDisk(told["a0"]["weights"], "v1")
    async with await drivers_on([each.node_id for each in nodes]) as drivers:
        engines = [await engine_of(name, each, drivers) for name, each in actors.items()]
        async with Fleet(engines, policy=POLICY) as fleet:
            report: dict[str, Any] = {"met": [str(each.state) for each in fleet]}
            phases = []
            for verb in (fleet.pause, fleet.drain, partial(fleet.release, weights=weights)):
                before = [each.messages for each in drivers.by_node.values()]
                begun = time.monotonic()
                done = await verb()
                sent = [each.messages - was for each, was in zip(drivers.by_node.values(), before, strict=True)]
                phases.append([done[0].command, round(time.monotonic() - begun, 3), sent])
            report["phases"] = phases
            report["returned"] = all(isinstance(each.verdicts["memory_returned"], Proved) for each in done)
            await fleet.onload()
            report["served"] = [str(each.state) for each in fleet]
            for name in ("b0", "b1"):
                await actors[name].set_fault.remote("release_memory_occupation", "hangs")
            moving = asyncio.ensure_future(fleet.offload(weights=weights))
            await until(lambda: (Path(folder) / "in-release_memory_occupation-b0").exists())
            cluster.remove_node(nodes[1], allow_graceful=False)
            try:
                await moving
            except FleetError as error:
                report["failed"] = sorted(each.engine for each in error.exceptions)
                report["why"] = [str(each)[:200] for each in error.exceptions]
            report["after"] = [str(each.state) for each in fleet]
            report["driver"] = str((await fleet["b0"].recover(deadline_s=5)).state)
        assert State.SERVING == "serving"
    return report


def main() -> None:
    before = set(psutil.Process().children(recursive=True))
    sized = {"num_cpus": 2, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**sized, "include_dashboard": False})
    started: set[psutil.Process] = set()
    try:
        nodes = [cluster.add_node(**sized) for _ in range(2)]
        path = {"PYTHONPATH": str(Path(__file__).parent)}
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": path})
        report = asyncio.run(found(sys.argv[1], cluster, nodes))
        started = set(psutil.Process().children(recursive=True)) - before
    finally:
        ray.shutdown()
        cluster.shutdown()
    _, left = psutil.wait_procs(started, timeout=30)
    print(json.dumps({**report, "left": [str(each) for each in left]}))


if __name__ == "__main__":
    main()
