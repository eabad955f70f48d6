"""One of two pipelines that share the memory of a host: its engine rolls out, then its trainer trains, again and again.

Run as a program, with one argument: JSON of `port`, `checkpoint`, `version`, `ledger`, `name`, `turns`, `train_mib`,
`serves_first`. It prints what its process holds before it trains, reads the budget of the device from its input, and
prints at the end what it did: the ids of each rollout, and when it trained and served (seconds since the host booted).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy

from lifecycle import Fleet, FromDisk, Policy
from lifecycle.core.readings import Reading
from lifecycle.engine.occupancy import occupying
from lifecycle.nodes.probes import NodeProbe
from lifecycle.nodes.processes import by_pid
from lifecycle.store import Store, Tenants

MIB = 1 << 20
POLICY = Policy(residual_threshold_gib=0.125, poll_s=0.01, room_wait_s=60.0)
DEADLINE_S = 90.0

#: What the trainer's process may hold beside what it trains with, over what it held at first.
SLACK_MIB = 48

#: Seconds that a step of the trainer computes.
STEP_S = 0.2


def now_s() -> float:
    """Seconds since the host booted: both processes have the same."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def rolled_out(port: int) -> list[int]:
    """The ids that the engine generates."""
    body = json.dumps({"text": "the same prompt", "sampling_params": {"max_new_tokens": 8}}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/generate", body, method="POST")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=30.0) as response:
        return list(json.load(response)["output_ids"])


async def own() -> dict[str, int]:
    """Bytes that this process holds, by device."""
    reading = await NodeProbe("cpu", POLICY).read((by_pid(os.getpid()),), deadline_s=5.0)
    assert isinstance(reading, Reading), reading
    return dict(reading.devices)


async def turns(given: dict[str, Any]) -> dict[str, Any]:
    """All turns of the pipeline; it ends with its engine serving."""
    source = FromDisk(given["checkpoint"], given["version"])
    ((device, base),) = (await own()).items()
    print(json.dumps({"device": device, "base": base}), flush=True)
    budget = int(await asyncio.to_thread(sys.stdin.readline))
    ledger = Tenants(Path(given["ledger"]), budgets={device: budget}, pipeline=given["name"])
    store = Store(Path(given["ledger"]).with_name(f"{given['name']}.sqlite3"))
    keeps = base + SLACK_MIB * MIB
    needs = {device: keeps + given["train_mib"] * MIB}
    done: dict[str, Any] = {"name": given["name"], "trained": [], "served": [], "ids": [], "waited_s": 0.0}
    async with Fleet.connect(
        [f"loopback://127.0.0.1:{given['port']}"], policy=POLICY, tenants=ledger, store=store
    ) as fleet:
        if not given["serves_first"]:
            await fleet.offload(weights=source, deadline_s=DEADLINE_S)
        for turn in range(given["turns"]):
            if turn or not given["serves_first"]:
                await train(ledger, given["name"], needs, keeps, done, given["train_mib"])
                await fleet.onload(deadline_s=DEADLINE_S)
            begun = now_s()
            done["ids"].append(await asyncio.to_thread(rolled_out, given["port"]))
            done["served"].append([begun, now_s()])
            if turn + 1 < given["turns"]:
                await fleet.offload(weights=source, deadline_s=DEADLINE_S)
    return done


async def train(
    ledger: Tenants, name: str, needs: dict[str, int], keeps: int, done: dict[str, Any], train_mib: int
) -> None:
    """A step of the trainer, which takes its memory for real."""
    asked = now_s()
    async with occupying(
        ledger, needs, name=f"{name}-trainer", deadline_s=DEADLINE_S, keeps_bytes=keeps, policy=POLICY
    ):
        begun = now_s()
        batch = numpy.ones(train_mib * MIB, numpy.uint8)
        while now_s() < begun + STEP_S:
            assert int(batch[:: 1 << 12].sum()) == train_mib * 256
            await asyncio.sleep(0)
        del batch
        done["trained"].append([begun, now_s()])
        done["waited_s"] += begun - asked


if __name__ == "__main__":
    print(json.dumps(asyncio.run(turns(json.loads(sys.argv[1])))), flush=True)
