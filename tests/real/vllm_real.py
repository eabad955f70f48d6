"""Inside `with RealVLLM(...) as server:` an unmodified vLLM serves on a CPU; afterwards nothing of it is left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from make_model import tiny_checkpoint
from measure import tree
from real_server import RealServer
from vllm_env import ENV, build

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Enough to be seen beside what its processes hold.
KV_BYTES = 256 << 20

ARGUMENTS = f"""
--dtype float32 --max-model-len 4096 --max-num-seqs 16 --kv-cache-memory-bytes {KV_BYTES} --enforce-eager
--enable-server-load-tracking --host 127.0.0.1
"""


class RealVLLM(RealServer):
    """A real vLLM on a CPU: a front end, its engine process and what they started. Ready means `GET /health` is 200.

    `extra` is appended to its arguments. Without `dev_mode` none of the lifecycle's endpoints is there.
    """

    ENGINE = "vllm"
    READY = "/health"
    ENVIRONMENT = {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONUNBUFFERED": "1",
    }

    def __init__(
        self, *, seed: int = 0, dev_mode: bool = True, extra: Sequence[str] = (), deadline_s: float = 420.0
    ) -> None:
        environment = {"VLLM_SERVER_DEV_MODE": str(int(dev_mode))}
        super().__init__(environment=environment, deadline_s=deadline_s, grace_s=15.0)
        self._seed = seed
        self._extra = list(extra)

    def command(self) -> list[str]:
        """The command line. The environment and the checkpoint are made where they are missing."""
        build()
        model = str(tiny_checkpoint(self._seed))
        server = [str(ENV / "bin" / "vllm"), "serve", model, "--port", str(self.port)]
        return [*server, *ARGUMENTS.split(), *self._extra]

    @property
    def engine_pid(self) -> int:
        """The engine process. It has given itself its name."""
        named = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in tree(self.pid)}
        [pid] = [pid for pid, name in named.items() if name.startswith(b"VLLM::EngineCore")]
        return pid
