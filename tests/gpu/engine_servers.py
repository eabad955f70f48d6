"""Real engines as engine_cycles.py drives them: on a GPU from this interpreter's packages, on a CPU as tests/real does.

How they are started, asked and streamed from is what tests/real has. Here is what a GPU changes: the command line, and
a random model of some GiB.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REAL = HERE.parent / "real"

GIB = 1 << 30

#: Seconds in which a server must be ready. The lane as a whole has a limit of its own.
START_S = 500.0

#: What is imported to see whether an engine can be started, and so what names the first package that it lacks.
SERVED_BY = {"vllm": "vllm.entrypoints.openai.api_server", "sglang": "sglang.srt.entrypoints.http_server"}

VLLM_ARGUMENTS = """
--dtype bfloat16 --max-model-len 4096 --max-num-seqs 16 --enforce-eager --enable-sleep-mode
--enable-server-load-tracking --host 127.0.0.1
"""

SGLANG_ARGUMENTS = """
--dtype bfloat16 --context-length 4096 --max-running-requests 16 --enable-memory-saver --disable-cuda-graph
--attention-backend triton --sampling-backend pytorch --grammar-backend none --skip-server-warmup
"""


def unavailable(engine: str) -> str | None:
    """Why this interpreter cannot serve with the engine, by the name of what is missing; None where it can."""
    # tests/vllm is found as an empty package where the real one is missing
    if getattr(importlib.util.find_spec(engine), "origin", None) is None:
        return f"{engine} is not installed here"
    found = subprocess.run([sys.executable, "-c", f"import {SERVED_BY[engine]}"], capture_output=True, text=True)
    return None if found.returncode == 0 else f"{engine} cannot be imported: {found.stderr.strip().splitlines()[-1]}"


@dataclass(frozen=True)
class End:
    """How a request in flight ended: with how many tokens, and why; empty where nobody said."""

    tokens: int
    reason: str


class Served(ABC):
    """A running engine. `weights_bytes` and `kv_bytes` are what its tags hold; `frees` whether a release frees them."""

    scheme: str
    keeps: bool

    def __init__(self, server: Any, model: Path, kv_bytes: int, *, frees: bool = True) -> None:
        self.server, self.model, self.kv_bytes, self.frees = server, model, kv_bytes, frees
        file = model / "model.safetensors" if model.is_dir() else model
        self.weights_bytes = file.stat().st_size

    @property
    def url(self) -> str:
        """The engine's URL for a fleet, with the sizes of its tags."""
        sizes = f"weights:{self.weights_bytes},kv_cache:{self.kv_bytes}"
        return f"{self.scheme}://127.0.0.1:{self.server.port}?name=e&sizes={sizes}"

    @abstractmethod
    def answers(self) -> list[list[int]]:
        """The greedy tokens after each of the prompts, asked one by one."""

    @abstractmethod
    def start_streams(self, tokens: int) -> Any:
        """Requests after each of the prompts run, and each has begun."""

    @abstractmethod
    def ends(self, streams: Any) -> list[End]:
        """How each of these ended; it waits for them."""


class OfVLLM(Served):
    """vLLM over HTTP. It keeps weights through a sleep of level 1."""

    scheme, keeps = "vllm", True

    def answers(self) -> list[list[int]]:
        """As `Served`."""
        import vllm_lane

        found: list[list[int]] = vllm_lane.outputs(self.server)
        return found

    def start_streams(self, tokens: int) -> Any:
        """As `Served`."""
        import vllm_lane

        return vllm_lane.streams(self.server, tokens)

    def ends(self, streams: Any) -> list[End]:
        """As `Served`."""
        return [End(len(each.join().ids), each.reason or "") for each in streams]


class OfSGLang(Served):
    """SGLang over HTTP, without a backup of its weights."""

    scheme, keeps = "sglang", False

    def answers(self) -> list[list[int]]:
        """As `Served`."""
        import lane

        found: list[list[int]] = lane.outputs(self.server)
        return found

    def start_streams(self, tokens: int) -> Any:
        """As `Served`."""
        import lane

        return lane.Streams(self.server, tokens=tokens).start()

    def ends(self, streams: Any) -> list[End]:
        """As `Served`."""
        return [End(len(ids), (reason or {}).get("type", "")) for ids, reason in streams.join().values()]


def served(engine: str, asked: Any, folder: Path) -> Served:
    """The engine, not started yet. Its model is made in `folder` on a GPU; on a CPU it is that of tests/real.

    On `loopback` it is the loopback engine that speaks its dialect.
    """
    sys.path[:0] = [str(REAL)]  # not before: its modules have names that other folders of tests use too
    if asked.device == "loopback":
        loopback = Loopback(engine)
        return (OfVLLM if engine == "vllm" else OfSGLang)(loopback, loopback.weights, Loopback.MIB << 20)
    if asked.device == "cpu":
        return _on_a_cpu(engine)
    model = large_checkpoint(folder / "model", gib=asked.gib, device=asked.device)
    kv_bytes = int(asked.kv_gib * GIB)
    if engine == "vllm":
        extra = [*VLLM_ARGUMENTS.split(), "--kv-cache-memory-bytes", str(kv_bytes)]
        server = _of_this_interpreter("vllm", "/health", ["vllm.entrypoints.cli.main", "serve", str(model)], extra)
        return OfVLLM(server, model, kv_bytes)
    tokens = kv_bytes // kv_bytes_per_token(asked.gib)
    extra = [*SGLANG_ARGUMENTS.split(), "--max-total-tokens", str(tokens), "--mem-fraction-static", "0.5"]
    server = _of_this_interpreter("sglang", "/model_info", ["sglang.launch_server", "--model-path", str(model)], extra)
    return OfSGLang(server, model, kv_bytes)


class Loopback:
    """A loopback engine that speaks the engine's dialect, started and stopped as the servers of tests/real are."""

    MIB = 96
    startup_s = 0.0

    def __init__(self, engine: str) -> None:
        from lifecycle.adapters.loopback import make_weights

        self._dialect = engine
        self._process: Any = None
        self.weights = Path(tempfile.mkdtemp(prefix="loopback-")) / "weights.safetensors"
        make_weights(self.weights, seed=0, weights_mib=self.MIB)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._process.port)

    @property
    def url(self) -> str:
        """Where it listens, without a slash at the end."""
        return str(self._process.url)

    def start(self) -> None:
        """It answers."""
        from lifecycle.adapters.loopback import LoopbackProcess

        sizes: dict[str, Any] = {"weights_mib": self.MIB, "kv_mib": self.MIB, "memory_saver": True}
        arguments = ["--step-delay-s", "0.01", *(["--load-tracking"] if self._dialect == "vllm" else [])]
        weights = str(self.weights)
        self._process = LoopbackProcess.start(dialect=self._dialect, weights=weights, arguments=arguments, **sizes)

    def stop(self) -> None:
        """Nothing of it is left."""
        if self._process is not None:
            self._process.kill()
        shutil.rmtree(self.weights.parent, ignore_errors=True)


def _on_a_cpu(engine: str) -> Served:
    """As tests/real starts it. A vLLM frees nothing there."""
    if engine == "vllm":
        from make_model import tiny_checkpoint
        from vllm_real import KV_BYTES, RealVLLM

        return OfVLLM(RealVLLM(deadline_s=START_S), tiny_checkpoint(0), KV_BYTES, frees=False)
    from make_model import checkpoint
    from measure import expected_kv
    from server import RealSGLang

    return OfSGLang(RealSGLang(deadline_s=START_S), checkpoint(0), expected_kv(12288))


def _of_this_interpreter(engine: str, ready: str, module: Sequence[str], extra: Sequence[str]) -> Any:
    from real_server import RealServer

    class Server(RealServer):
        """A server whose packages are on this interpreter's path."""

        ENGINE, READY = engine, ready
        ENVIRONMENT = {
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_HOST_IP": "127.0.0.1",
        }

        def command(self) -> list[str]:
            """The command line."""
            return [sys.executable, "-m", *module, "--port", str(self.port), *extra]

    return Server(deadline_s=START_S, grace_s=15.0)


#: What a Llama of 1-4 GiB is like whose number of layers decides its size, and the parameters of one layer.
LARGE = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "head_dim": 128}
LAYER_PARAMETERS = 2048 * (2048 + 2 * 8 * 128 + 2048) + 3 * 2048 * 5632


def layers_of(gib: float) -> int:
    """The number of layers with which the model has about so many GiB of bfloat16."""
    return max(1, round(gib * GIB / 2 / LAYER_PARAMETERS))


def kv_bytes_per_token(gib: float) -> int:
    """The bytes of keys and values of one token in bfloat16."""
    return layers_of(gib) * 2 * 8 * 128 * 2


def large_checkpoint(folder: Path, *, gib: float, device: str) -> Path:
    """A random Llama of about so many GiB of bfloat16, made on this device."""
    import torch
    from make_model import LLAMA, write_model, write_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    config = {**LLAMA, **LARGE, "num_hidden_layers": layers_of(gib), "torch_dtype": "bfloat16"}
    with torch.device(device):
        write_model("llama", folder, config, seed=0, dtype="bfloat16")
    return folder
