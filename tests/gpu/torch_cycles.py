"""Measures the engine in this process on a real GPU: bytes at each state, reclaim, growth, staging, identical logits.

`make gpu` runs it (test_torch_on_gpu.py). By itself:

    python3 tests/gpu/torch_cycles.py --out docs/measured        # needs torch, torch_memory_saver, transitions
    python3 tests/gpu/torch_cycles.py --device cpu --gib 0.1     # a trial of the script itself

Every part runs in a process of its own: one for each hook mode, one for each way to keep weights, one for plain copies.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
GIB = 1 << 30
MIB = 1 << 20
BATCH = 8


def use_this_tree() -> None:
    """Makes `lifecycle` and `lifecycle.adapters` importable from this working tree, installed or not."""
    sys.path[:0] = [str(HERE), str(ROOT)]
    import lifecycle

    if str(ROOT) not in lifecycle.__path__:
        lifecycle.__path__.append(str(ROOT))


# the parts, each in a process of its own


def bare(asked: argparse.Namespace) -> dict[str, Any]:
    """Bytes that a process with only a CUDA context holds, and one that has also used cuBLAS."""
    import torch

    torch.zeros(1, device=asked.device)
    context = resident(asked.device)
    with torch.no_grad():
        product = torch.ones(64, 64, device=asked.device, dtype=torch.bfloat16) @ torch.ones(
            64, 64, device=asked.device, dtype=torch.bfloat16
        )
        product.sum().item()
    scope = "device" if own_bytes(asked.device) is None else "process"
    return {"context_bytes": context, "with_cublas_bytes": resident(asked.device), "scope": scope}


def resident(device: str) -> int:
    """Bytes that this process holds; where those cannot be measured, bytes used of its device."""
    own = own_bytes(device)
    return device_used(device) if own is None else own


def own_bytes(device: str) -> int | None:
    """Bytes that this process holds, by the library's own probe; None where it cannot measure them."""
    from lifecycle.core.capabilities import Capabilities
    from lifecycle.core.readings import Reading
    from lifecycle.nodes.probes import probe_for
    from lifecycle.nodes.processes import by_pid

    kind: Any = "cuda" if device.startswith("cuda") else "cpu"
    probe = probe_for(Capabilities(engine="torch", version="", tags=(), pause={}, device=kind))
    reading = asyncio.run(probe.read([by_pid(os.getpid())], deadline_s=10))
    return reading.resident_bytes if isinstance(reading, Reading) else None


def device_used(device: str) -> int:
    """Bytes used of the whole device."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return total - free


class Recorder:
    """An observer that records the seconds of each call and each command."""

    def __init__(self) -> None:
        self.calls: dict[str, list[float]] = {}
        self.commands: dict[str, list[float]] = {}

    def call(self, engine: str, call: Any, reply: Any, duration_s: float) -> None:
        """Records a call that has ended."""
        name = call.name + (f" {call.args['tag']}" if "tag" in call.args else "")
        self.calls.setdefault(name, []).append(duration_s)

    def transition(self, record: Any) -> None:
        """Records a command that has succeeded."""
        if record.trigger == "succeeded":
            self.commands.setdefault(record.command, []).append(record.duration_s)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def build(asked: argparse.Namespace, contents: str, recorder: Recorder) -> tuple[Any, Any, Any, Any]:
    """The engine, its model and cache, and its graph (None on a CPU), everything in regions."""
    import torch
    from lifecycle.adapters.torch_memory_saver import TorchEngine
    from torch_model import Decoder, Graph, logits_of, new_cache

    from lifecycle import Policy

    on_gpu = asked.device.startswith("cuda")
    policy = Policy(residual_scope=asked.scope, residual_threshold_gib=3.0, poll_s=0.02)
    engine = TorchEngine("decoder", device=asked.device, contents=contents, policy=policy, observers=[recorder])
    torch.manual_seed(0)
    with engine.region("weights"), torch.device(asked.device):
        model = Decoder(int(asked.gib * GIB), asked.width, torch.bfloat16 if on_gpu else torch.float32)
    with engine.region("kv_cache"):
        cache = new_cache(model, int(asked.kv_gib * GIB), BATCH)
    with engine.region("workspace"):
        engine.workspace = torch.ones(int(asked.workspace_gib * GIB), dtype=torch.uint8, device=asked.device)
        logits_of(model, cache, 2)  # cuBLAS takes its workspace now
        graph = Graph(model, cache) if on_gpu else None
    engine.attach(model, generate=lambda probe: [1] if bool(logits_of(model, cache, 1).isfinite().all()) else [])
    engine.adapter.tenant.hooks.drop_cache = cache.zero_
    if graph is not None:
        preload = engine.adapter.tenant.tags.backend.hook_mode == "preload"
        graph.capture(model, cache, engine.cuda_graph if preload else torch.cuda.graph)
    return engine, model, cache, graph


def ring(asked: argparse.Namespace) -> dict[str, Any]:
    """Twenty cycles through the ring: what is held at each state, what comes back, whether the logits are the same."""
    return asyncio.run(_ring(asked))


async def _ring(asked: argparse.Namespace) -> dict[str, Any]:
    from torch_model import logits_of

    from lifecycle import Fleet, Kept

    recorder = Recorder()
    engine, model, cache, graph = build(asked, asked.contents, recorder)
    before = logits_of(model, cache), graph and graph.replayed(cache)
    bytes_at: dict[str, list[int]] = {}
    same = []
    async with Fleet([engine]) as fleet:
        for _ in range(asked.cycles):
            bytes_at.setdefault("serving", []).append(await held(engine))
            await fleet.pause()
            await fleet.drain()
            bytes_at.setdefault("drained", []).append(await held(engine))
            await fleet.release(weights=Kept())
            bytes_at.setdefault("released", []).append(await held(engine))
            await fleet.restore_weights()
            bytes_at.setdefault("weights_restored", []).append(await held(engine))
            await fleet.restore_kv()
            bytes_at.setdefault("kv_restored", []).append(await held(engine))
            await fleet.resume()
            after = logits_of(model, cache), graph and graph.replayed(cache)
            same.append(all(_equal(one, other) for one, other in zip(before, after, strict=True)))
        tags = {spec.name: spec.expected_bytes for spec in engine.capabilities.tags}
    backend = engine.adapter.tenant.tags.backend
    return {
        "hook_mode": backend.hook_mode or "pages",
        "contents": asked.contents,
        "model_bytes": model.bytes(),
        "tags_bytes": tags,
        "bytes_at": bytes_at,
        "identical_logits": sum(same),
        "cycles": len(same),
        "command_s": recorder.commands,
        "call_s": recorder.calls,
        "allocator_outside_regions_bytes": outside(engine),
    }


async def held(engine: Any) -> int:
    """Resident bytes of the engine now."""
    from lifecycle.engine.gather import residual

    reading = await residual(engine, deadline_s=10)
    return getattr(reading, "resident_bytes", -1)


def outside(engine: Any) -> int:
    """Bytes of torch's allocator that lie in no region."""
    import torch

    tags = engine.adapter.tenant.tags
    return torch.cuda.memory_reserved() - tags.mapped_bytes() if tags.backend.device.type == "cuda" else 0


def _equal(one: Any, other: Any) -> bool:
    import torch

    return one is None or torch.equal(one, other)


def copies(asked: argparse.Namespace) -> dict[str, Any]:
    """GB/s each way: host staging, one plain pinned copy of the same size, and each tensor by `.cpu()`."""
    import torch
    from lifecycle.adapters.torch_memory_saver import HostStaging
    from torch_model import Decoder

    with torch.device(asked.device):
        model = Decoder(int(asked.gib * GIB), asked.width, torch.bfloat16)
    size = model.bytes()
    staging = HostStaging({"target": model})
    begun = time.perf_counter()
    staging.stage()
    first_s = time.perf_counter() - begun
    staging.restore()
    staged = [(staging.stage().gb_per_s, staging.restore().gb_per_s) for _ in range(asked.repeats)]
    staging.close()
    del staging
    plain = list(_plain(size, asked))
    each = list(_each(model, asked))
    return {
        "bytes": size,
        "tensors": len(list(model.parameters())),
        "first_stage_s": first_s,
        "staging": _both_ways(staged),
        "plain_pinned": _both_ways(plain),
        "cpu_per_tensor": _both_ways(each),
    }


def _plain(size: int, asked: argparse.Namespace) -> Any:
    import torch

    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(size, dtype=torch.uint8, device=asked.device)
    for _ in range(asked.repeats + 1):
        there = _timed(lambda: host.copy_(device, non_blocking=True))
        yield size / there / 1e9, size / _timed(lambda: device.copy_(host, non_blocking=True)) / 1e9


def _each(model: Any, asked: argparse.Namespace) -> Any:
    import torch

    size = model.bytes()
    with torch.no_grad():
        for _ in range(max(2, asked.repeats // 2)):
            kept: list[Any] = []
            there = _timed(lambda kept=kept: kept.extend(each.cpu() for each in model.parameters()))
            back = _timed(
                lambda kept=kept: [each.copy_(host) for each, host in zip(model.parameters(), kept, strict=True)]
            )
            yield size / there / 1e9, size / back / 1e9


def _timed(work: Callable[[], Any]) -> float:
    import torch

    torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def _both_ways(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """The medians to the host and back, and the spread; the first pair of several is a warm-up."""
    pairs = pairs[1:] if len(pairs) > 2 else pairs
    out, back = ([pair[way] for pair in pairs] for way in (0, 1))
    return {
        "to_host_gb_s": statistics.median(out),
        "to_device_gb_s": statistics.median(back),
        "to_host_range": [min(out), max(out)],
        "to_device_range": [min(back), max(back)],
    }


# the whole


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"bare": bare, "ring": ring, "copies": copies}


def part(name: str, asked: argparse.Namespace, *, mode: str = "", **options: Any) -> dict[str, Any]:
    """The figures of a part, run in a process of its own; where it failed, `error` with the end of its output."""
    environ = dict(os.environ, LIFECYCLE_HOOK_MODE=mode or "auto", PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    if mode == "preload":
        environ["LD_PRELOAD"] = preload_library()
    given = {**vars(asked), **options}
    arguments = [f"--{key.replace('_', '-')}={value}" for key, value in given.items() if key not in ("out", "part")]
    command = [sys.executable, __file__, f"--part={name}", *arguments]
    begun = time.monotonic()
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=500)
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
    print(f"{name} {mode} {options} ended with {ended.returncode} in {time.monotonic() - begun:.0f} s", flush=True)
    if not lines:
        print(ended.stdout[-2000:], ended.stderr[-4000:], flush=True)
        return {"error": ended.stderr[-1500:], "returncode": ended.returncode}
    return {**json.loads(lines[-1]), "returncode": ended.returncode}


def preload_library() -> str:
    """torch_memory_saver's library for LD_PRELOAD, of this torch's CUDA."""
    from torch_memory_saver.utils import get_binary_path_from_package

    return str(get_binary_path_from_package("torch_memory_saver_hook_mode_preload"))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """The figures of every part."""
    on_gpu = asked.device.startswith("cuda")
    figures: dict[str, Any] = {"machine": machine(on_gpu), "asked": vars(asked), "bare": part("bare", asked)}
    scope = {"scope": figures["bare"].get("scope", asked.scope)}
    modes = ("torch", "preload") if on_gpu else ("",)
    figures["ring"] = {mode or "cpu": part("ring", asked, mode=mode, **scope) for mode in modes}
    few = {"cycles": min(asked.cycles, 4), **scope}
    kinds = ("pinned", "mmap")
    figures["backups"] = {kind: part("ring", asked, mode=modes[0], contents=kind, **few) for kind in kinds}
    if on_gpu:
        figures["copies"] = part("copies", asked)
    return figures


def machine(on_gpu: bool) -> dict[str, Any]:
    """The machine and the versions of the packages."""
    import torch

    figures = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "torch": torch.__version__}
    if on_gpu:
        query = "--query-gpu=name,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current"
        figures["gpu"] = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True
        ).stdout.strip()
        figures["cuda"] = torch.version.cuda
        from importlib.metadata import version

        figures["torch_memory_saver"] = version("torch_memory_saver")
    return figures


def main() -> None:
    """Measures, prints the page, and writes it and the figures as JSON to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--gib", type=float, default=8.0, help="of weights")
    parser.add_argument("--kv-gib", type=float, default=8.0)
    parser.add_argument("--workspace-gib", type=float, default=0.5)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--scope", default="process", choices=("process", "device"), help="for a part by itself")
    parser.add_argument("--contents", default="staged")
    parser.add_argument("--part", default="")
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    use_this_tree()
    if asked.part:
        print(json.dumps(PARTS[asked.part](asked)), flush=True)
        os._exit(0)  # torn down after torch, the saver may end the process with an error
    figures = measure(asked)
    from torch_report import page

    print(page(figures))
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "torch_cycles.json").write_text(json.dumps(figures, indent=1, default=str))
        (asked.out / "torch_cycles.md").write_text(page(figures))


if __name__ == "__main__":
    main()
