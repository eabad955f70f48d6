"""A real server whose memory is on a stand-in device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lifecycle.adapters.loopback import LoopbackAdapter, LoopbackProcess
from stand_in_nvml import GIB, StandInNvml, gpu, use

from lifecycle import BaseObserver, Call, Capabilities, FromDisk, Reply, TagSpec

CONTEXT, WEIGHTS, KV = round(1.8 * GIB), 16 * GIB, 40 * GIB
TRAINER = 4_194_303  # no process of this host has it


class OnGpu(LoopbackAdapter):
    """The loopback engine, which says that it runs on a GPU and holds what a large model holds."""

    async def connect(self, *, deadline_s: float) -> Capabilities:
        reported = await super().connect(deadline_s=deadline_s)
        tags = (TagSpec("weights", "weights", "discarded", WEIGHTS), TagSpec("kv_cache", "kv", "discarded", KV))
        return self._now(replace(reported, device="cuda", tags=tags))

    def _now(self, capabilities: Capabilities) -> Capabilities:
        self._capabilities = capabilities
        return capabilities


class Card(BaseObserver):
    """The device that the engine's process is on; a release that is acknowledged returns all but `leak`."""

    def __init__(self, pid: int, leak: int = 0, **changes: Any) -> None:
        self.leak = leak
        self.entry = use(pid, CONTEXT + WEIGHTS + KV)
        self.record = gpu(**{"compute": [self.entry], **changes})
        self.nvml = StandInNvml.of(self.record)
        self.fill()

    def fill(self) -> None:
        used = sum(each["used"] for each in self.record["compute"])
        self.record["memory"] = {"total": 80 * GIB, "used": used, "free": 80 * GIB - used}

    def join(self, pid: int, size: int) -> None:
        """Another process takes memory of the device."""
        self.record["compute"].append(use(pid, size))
        self.fill()

    def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
        """Memory moves as the calls say."""
        moved = {"weights": WEIGHTS, "kv_cache": KV}
        if call.name == "release_memory_occupation":
            self.entry["used"] -= sum(moved[tag] for tag in call.args["tags"]) - self.leak
            self.leak = 0
        if call.name == "resume_memory_occupation":
            self.entry["used"] += sum(moved[tag] for tag in call.args["tags"])
        self.fill()


def disk(process: LoopbackProcess) -> FromDisk:
    return FromDisk(str(process.weights), "step-2")
