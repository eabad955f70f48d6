"""A driver that answers from a record: what pynvml offers of it, and nothing else.

Records are plain JSON, as `tests/gpu/gpu_record.py` writes them on a machine with a GPU; `gpu()` makes one by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

GIB = 1 << 30
RECORDED = Path(__file__).parent / "recorded"


class NVMLError(Exception):
    """The driver's error, with its number."""

    def __init__(self, value: int) -> None:
        self.value = value
        super().__init__(f"NVML error {value}")


def gpu(index: int = 0, **changes: Any) -> dict[str, Any]:
    """A Hopper GPU whose memory is unused; `changes` replace parts of the record."""
    memory = {"total": 80 * GIB, "used": 0, "free": 80 * GIB}
    card = {
        "index": index,
        "uuid": f"GPU-{index}{index}{index}{index}aaaa",
        "name": "NVIDIA H100",
        "capability": [9, 0],
        "memory": memory,
        "compute": [],
        "graphics": [],
        "mig": None,
    }
    return {**card, **changes}


def use(pid: int, used: int | None) -> dict[str, Any]:
    """One process in a list of the driver."""
    return {"pid": pid, "used": used}


@dataclass
class StandInNvml:
    """pynvml, as far as it is used, over a record. `calls` lists what was called."""

    record: dict[str, Any]
    calls: list[str] = field(default_factory=list)
    broken: int | None = None
    NVMLError: type[NVMLError] = NVMLError

    @classmethod
    def of(cls, *gpus: dict[str, Any]) -> StandInNvml:
        return cls({"driver": "580.0", "devices": list(gpus)})

    def _answer(self, name: str) -> None:
        self.calls.append(name)
        if self.broken is not None:
            raise NVMLError(self.broken)

    def nvmlInit(self) -> None:
        self._answer("init")

    def nvmlShutdown(self) -> None:
        self._answer("shutdown")

    def nvmlSystemGetDriverVersion(self) -> str:
        return str(self.record["driver"])

    def nvmlDeviceGetCount(self) -> int:
        return len(self.record["devices"])

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        return self.record["devices"][index]

    def nvmlDeviceGetUUID(self, card: dict[str, Any]) -> str:
        return card["uuid"]

    def nvmlDeviceGetName(self, card: dict[str, Any]) -> bytes:
        return card["name"].encode()  # older bindings answer with bytes

    def nvmlDeviceGetCudaComputeCapability(self, card: dict[str, Any]) -> tuple[int, ...]:
        return tuple(card["capability"])

    def nvmlDeviceGetMemoryInfo(self, card: dict[str, Any], version: int = 1) -> SimpleNamespace:
        self._answer("memory")
        if card["memory"] is None:
            raise NVMLError(3)
        return SimpleNamespace(**card["memory"])

    def nvmlDeviceGetMigMode(self, card: dict[str, Any]) -> tuple[int, int]:
        if card["mig"] is None:
            raise NVMLError(3)
        return card["mig"]["mode"], card["mig"]["mode"]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: dict[str, Any]) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: dict[str, Any], number: int) -> dict[str, Any]:
        instances = card["mig"]["instances"]
        if number >= len(instances):
            raise NVMLError(6)
        return instances[number]

    def nvmlDeviceGetComputeRunningProcesses(self, card: dict[str, Any]) -> list[SimpleNamespace]:
        self._answer("compute")
        return self._processes(card["compute"])

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: dict[str, Any]) -> list[SimpleNamespace]:
        return self._processes(card["graphics"])

    def _processes(self, listed: Any) -> list[SimpleNamespace]:
        if isinstance(listed, int):
            raise NVMLError(listed)
        return [SimpleNamespace(pid=each["pid"], usedGpuMemory=each["used"]) for each in listed]
