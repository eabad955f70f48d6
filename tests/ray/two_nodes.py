"""A Ray of two nodes on this machine, with an engine on the second: run by test_ray_nodes.py in a process of its own.

Prints what it found as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import psutil
import ray
from lifecycle.adapters.ray import SLIME, RayActors, agents_on
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray_actors import SlimeEngine

from lifecycle import ConfigurationError, Engine, FromDisk, Policy, Proved

POLICY = Policy(residual_threshold_gib=0.2, settle_s=2.0, poll_s=0.02)


async def cycled(folder: str, node: str, other: str) -> dict[str, Any]:
    """What became of a cycle of an engine on this node, and what the agents of both were asked."""
    placed = NodeAffinitySchedulingStrategy(node, soft=False)
    actor = ray.remote(num_cpus=0)(SlimeEngine).options(scheduling_strategy=placed).remote(folder)
    told = await actor.about.remote()
    async with await agents_on() as agents:
        adapter = RayActors(actor, SLIME, agents=agents.addresses, options={"abort": "retract"})
        engine = await Engine(adapter, name="e", policy=POLICY, lease=None).connect()
        await engine.pause()
        await engine.drain()
        released = await engine.release(weights=FromDisk(told["weights"], "v1"))
        processes = await adapter.processes()
        await engine.aclose()
        asked = {each: await agents.actors[each].questions.remote() for each in (node, other)}
    refused = ""
    try:
        await agents_on(["no such node"])
    except ConfigurationError as error:
        refused = str(error)
    return {
        "agent": processes[0].agent == agents.addresses[node],
        "pid": processes[0].pid == told["server"],
        "returned": isinstance(released.verdicts["memory_returned"], Proved),
        "asked": sorted(set(asked[node])),
        "asked of the other": asked[other],
        "agents": len(agents.addresses),
        "refused": refused,
    }


def main() -> None:
    before = set(psutil.Process().children(recursive=True))
    args = {"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=args)
    try:
        second = cluster.add_node(num_cpus=2, object_store_memory=80 << 20)
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},
        )
        first = next(each["NodeID"] for each in ray.nodes() if each["NodeID"] != second.node_id)
        found = asyncio.run(cycled(sys.argv[1], second.node_id, first))
        started = set(psutil.Process().children(recursive=True)) - before
    finally:
        ray.shutdown()
        cluster.shutdown()
    _, left = psutil.wait_procs(started, timeout=30)
    print(json.dumps({**found, "left": [str(each) for each in left]}))


if __name__ == "__main__":
    main()
