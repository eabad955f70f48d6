"""Inside `with RealSGLang(...) as server:` an unmodified SGLang serves on a CPU; afterwards nothing of it is left.

    with RealSGLang() as server:
        requests.get(server.url + "/model_info")

The environment and the checkpoints are built at the first use. With `memory_saver` the stand-in for torch_memory_saver
stands first on the server's module path, and a release really gives memory back to the operating system.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from build_env import PYTHON, build
from make_model import checkpoint
from real_server import HERE, RealServer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STANDIN = HERE / "standin"

ARGUMENTS = """
--device cpu --attention-backend torch_native --disable-overlap-schedule --skip-server-warmup --disable-cuda-graph
--mem-fraction-static 0.2 --max-total-tokens 12288 --context-length 4096 --max-running-requests 4
--sampling-backend pytorch --grammar-backend none --dtype float32
"""


class RealSGLang(RealServer):
    """A real SGLang on a CPU. `seed` chooses the checkpoint it starts with; `extra` is appended to its arguments.

    Ready means `GET /model_info` is 200: a line in the log says ready before the socket listens.
    """

    ENGINE = "sglang"
    READY = "/model_info"
    ENVIRONMENT = {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "SGLANG_USE_CPU_ENGINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(STANDIN),
    }

    def __init__(
        self,
        *,
        seed: int = 0,
        memory_saver: bool = True,
        weights_cpu_backup: bool = False,
        extra: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        deadline_s: float = 180.0,
        grace_s: float = 10.0,
    ) -> None:
        super().__init__(environment=environment, deadline_s=deadline_s, grace_s=grace_s)
        self._seed = seed
        self._flags = ["--enable-memory-saver"] * memory_saver + ["--enable-weights-cpu-backup"] * weights_cpu_backup
        self._extra = list(extra)

    def command(self) -> list[str]:
        """The command line. The environment and the checkpoint are made where they are missing."""
        build()
        model = str(checkpoint(self._seed))
        server = [str(PYTHON), "-m", "sglang.launch_server", "--model-path", model, "--port", str(self.port)]
        return [*server, *ARGUMENTS.split(), *self._flags, *self._extra]
