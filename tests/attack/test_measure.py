"""Sizes that are wrong and readings that fail, on real engines: what is true is proved, what is false falls."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import Fleet, FleetError, FromDisk, Kept, Policy, State, Unmeasurable
from lifecycle.core.readings import Reading
from lifecycle.engine.engine import Engine
from lifecycle.nodes.process_memory import ProcessMemoryProbe

pytestmark = pytest.mark.slow

MIB = 1 << 20
WEIGHTS_MIB, KV_MIB = 96, 72
#: What is reported for the weights: 24 % too much, as measured on a real server, and as much too little.
TOO_MUCH, TOO_LITTLE = "server_info=weight:119", "server_info=weight:77"
ARGUMENTS = ("--abort-poll-s", "0.02", "--death-delay-s", "0.02")
DEADLINES = {"release": 1.5, "restore_weights": 4.0, "restore_kv": 4.0, "drain": 4.0}


def policy(**changes: Any) -> Policy:
    parts = {"residual_threshold_gib": 0.3, "deadlines_s": DEADLINES, "settle_s": 0.3, "poll_s": 0.02}
    return Policy(**{**parts, "on_failure": "hold", **changes})


async def started(*faults: str, **options: Any) -> LoopbackProcess:
    sizes = {"weights_mib": WEIGHTS_MIB, "kv_mib": KV_MIB, "weights_backup": True}
    return await LoopbackProcess.astart(**{**sizes, "faults": faults, "arguments": ARGUMENTS, **options})


def fleet_of(process: LoopbackProcess, **changes: Any) -> Fleet:
    return Fleet.connect([f"loopback://127.0.0.1:{process.port}?name=e"], policy=policy(**changes))


def generate(process: LoopbackProcess) -> list[int]:
    body = {"text": "zebra", "sampling_params": {"max_new_tokens": 8}}
    request = urllib.request.Request(process.url + "/generate", json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        ids: list[int] = json.loads(answer.read())["output_ids"]
    return ids


@pytest.mark.parametrize("reported", [TOO_MUCH, TOO_LITTLE], ids=["too much", "too little"])
async def test_a_wrong_size_is_proved_and_learned(reported: str) -> None:
    with await started(reported) as process:
        before = await asyncio.to_thread(generate, process)
        async with fleet_of(process) as fleet:
            engine = fleet["e"]
            for _ in range(2):
                async with fleet.offloaded(weights=Kept()) as (released,):
                    assert engine.memory_is_free
                    assert released.returned_bytes == pytest.approx((WEIGHTS_MIB + KV_MIB) * MIB, rel=0.05)
            assert released.expected_bytes == pytest.approx((WEIGHTS_MIB + KV_MIB) * MIB, rel=0.05), "it was learned"
            assert engine.state is State.SERVING
        assert await asyncio.to_thread(generate, process) == before


#: What is reported, what a release does, and the tags that are named.
FALSE = {
    "frees nothing": (TOO_MUCH, "release=keep", None),
    "leaves a part": (TOO_MUCH, "release=leak:52", None),
    "leaves half of what is reported": (TOO_MUCH, "release=leak:37", ["weights"]),
    "leaves most of the weights": (TOO_LITTLE, "release=leak:60", ["weights"]),
    "frees late": (TOO_MUCH, "release=late:9", None),
    "frees all where one is named": (TOO_MUCH, "release=all", ["kv_cache"]),
    "frees all where weights are named": (TOO_LITTLE, "release=all", ["weights"]),
}


@pytest.mark.parametrize("false", FALSE)
async def test_a_false_reply_falls_though_the_size_is_wrong(false: str) -> None:
    reported, fault, tags = FALSE[false]
    with await started(reported, fault) as process:
        async with fleet_of(process) as fleet:
            with pytest.raises(FleetError, match=r"memory_returned|tags_unmapped"):
                await fleet.offload(tags, weights=Kept())
            assert not fleet["e"].memory_is_free


async def test_one_rank_of_four_that_is_stuck_falls_though_the_size_is_wrong() -> None:
    """Three of four return 240 of 340 MiB: more than half of what is reported, but one rank returned nothing."""
    sizes = {"weights_mib": 320, "ranks": 4}
    with await started("server_info=weight:340", "release=stuck:1", **sizes) as process:
        async with fleet_of(process, residual_threshold_gib=1.5, deadlines_s={"release": 4.0}) as fleet:
            with pytest.raises(FleetError, match="only 3 of 4 ranks"):
                await fleet.offload(["weights"], weights=Kept())
            assert not fleet["e"].memory_is_free


class Unread(ProcessMemoryProbe):
    """A probe whose readings fail where `fails` says so, by their number."""

    def __init__(self, fails: Callable[[int], bool]) -> None:
        super().__init__()
        self.fails = fails
        self.readings = 0

    async def read(self, processes: Any, *, deadline_s: float) -> Reading | Unmeasurable:
        self.readings += 1
        if self.fails(self.readings):
            return Unmeasurable(reason="/proc could not be read")
        return await super().read(processes, deadline_s=deadline_s)


async def test_every_second_reading_may_fail() -> None:
    with await started() as process:
        before = await asyncio.to_thread(generate, process)
        probe = Unread(lambda number: number > 4 and number % 2 == 0)
        async with fleet_of(process) as fleet:
            engine: Engine = fleet["e"]
            engine._session._probe = probe
            for _ in range(2):
                async with fleet.offloaded(weights=Kept()):
                    assert engine.memory_is_free
            assert engine.state is State.SERVING
        assert probe.readings > 12
        assert await asyncio.to_thread(generate, process) == before


async def test_what_could_not_be_read_in_time_is_recovered_by_reading_again() -> None:
    with await started() as process:
        async with fleet_of(process) as fleet:
            engine: Engine = fleet["e"]
            await fleet.offload(weights=Kept())
            await engine.restore_weights()
            probe = Unread(lambda number: number > 1)
            engine._session._probe = probe
            with pytest.raises(Exception, match=r"could not be read|cannot be seen"):
                await engine.restore_kv(deadline_s=0.6)
            probe.fails = lambda number: False
            assert (await engine.recover()).state is State.DRAINED
            await fleet.onload()
            assert engine.state is State.SERVING
        assert await asyncio.to_thread(generate, process)


async def test_a_tag_too_small_to_see_comes_back_as_it_went() -> None:
    """40 MiB of KV cache: under 64 MiB nothing can be seen to move."""
    with await started(kv_mib=40) as process:
        async with fleet_of(process) as fleet:
            for _ in range(2):
                async with fleet.offloaded(weights=Kept()):
                    assert fleet["e"].memory_is_free
            with pytest.raises(FleetError, match=r"kv_cache hold 40 MiB, too little to see: less than 64 MiB"):
                await fleet.offload(["kv_cache"])
            assert fleet["e"].state is State.SERVING, "refused before anything was sent"
        assert await asyncio.to_thread(generate, process)


async def test_a_size_that_the_caller_gives_must_be_met() -> None:
    """24 % too much, as the engine may report it: it is what the caller says, and no hint."""
    with await started() as process:
        url = f"loopback://127.0.0.1:{process.port}?name=e&sizes=weights:{119 * MIB}"
        async with Fleet.connect([url], policy=policy()) as fleet:
            with pytest.raises(FleetError, match=r"mapping_borne_out: 2\d\d MiB are resident, .* tags hold 264 MiB"):
                await fleet.offload(weights=FromDisk(str(process.weights), "again"))
            assert fleet["e"].state is State.SERVING, "it serves as it did when it was met"
