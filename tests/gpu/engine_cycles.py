"""Drives a real engine round the ring twice, with requests in flight, and measures what is resident at each state.

`make gpu` runs it where the engine can be had (test_engines_on_gpu.py). By itself:

    python3 tests/gpu/engine_cycles.py vllm --out docs/measured     # the engine of this interpreter, on a GPU
    python3 tests/gpu/engine_cycles.py sglang --device cpu --threshold-gib 1.8          # a trial of the script itself
    python3 tests/gpu/engine_cycles.py vllm --device loopback --threshold-gib 0.25      # another, without the engine

A trial on a CPU starts the engine as tests/real does. A vLLM gives back no memory there: what it acknowledges is taken,
and the report says that the target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

ENGINES = ("vllm", "sglang")


async def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures of this engine; `error` where it did not come through."""
    from engine_servers import served

    figures: dict[str, Any] = {"machine": machine(), "asked": {**vars(asked), "out": str(asked.out)}, "cycles": []}
    one = await asyncio.to_thread(served, asked.engine, asked, folder)
    figures |= {"weights_bytes": one.weights_bytes, "kv_bytes": one.kv_bytes}
    try:
        await asyncio.to_thread(one.server.start)
        figures["startup_s"] = round(one.server.startup_s, 1)
        await _cycles(one, asked, figures)
    except Exception as error:
        figures["error"] = f"{type(error).__name__}: {error}"[-3000:]
    finally:
        await asyncio.to_thread(one.server.stop)
    return figures


async def _cycles(one: Any, asked: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Each cycle has another pause mode; where weights can be kept, they are in the second."""
    from lifecycle import Fleet, FromDisk, Kept

    disk = FromDisk(str(one.model), "seed-0")
    figures["answers_before"] = before = await asyncio.to_thread(one.answers)
    async with Fleet.connect([one.url], policy=_policy(one, asked), probe=_probe(one)) as fleet:
        engine = fleet["e"]
        figures["engine"] = f"{engine.capabilities.engine} {engine.capabilities.version}"
        for mode, kept in (("abort", False), ("keep", one.keeps)):
            cycle: dict[str, Any] = {"mode": mode, "weights": "kept" if kept else "from disk"}
            figures["cycles"].append(cycle)
            streams = await asyncio.to_thread(one.start_streams, asked.tokens)
            await _ring(engine, mode, Kept() if kept else disk, cycle, asked)
            ends = await asyncio.to_thread(one.ends, streams)
            cycle["in_flight"] = [asdict(end) for end in ends]
            cycle["same_answers"] = await asyncio.to_thread(one.answers) == before


async def _ring(engine: Any, mode: str, source: Any, cycle: dict[str, Any], asked: argparse.Namespace) -> None:
    """Once round; what is resident is read at each state, and each command has its seconds."""
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("pause", lambda: engine.pause(mode)),
        ("drain", engine.drain),
        ("release", lambda: engine.release(weights=source)),
        ("restore_weights", engine.restore_weights),
        ("update_weights", lambda: engine.update_weights(source)),
        ("restore_kv", engine.restore_kv),
        ("resume", engine.resume),
    ]
    at, seconds = cycle.setdefault("bytes_at", {}), cycle.setdefault("command_s", {})
    at["serving"] = await _resident(engine, asked)
    for name, command in steps:
        if name == "update_weights" and engine.weights_refusal() is None:
            continue
        begun = time.monotonic()
        await command()
        seconds[name] = round(time.monotonic() - begun, 3)
        at["weights_updated" if name == "update_weights" else str(engine.state)] = await _resident(engine, asked)
        if name == "release":
            cycle["memory_returned"] = bool(engine.memory_is_free)


async def _resident(engine: Any, asked: argparse.Namespace) -> int | str:
    """Bytes that the engine's processes hold, by the library's probe; why not, where they cannot be read."""
    from lifecycle import Policy
    from lifecycle.core.readings import Reading
    from lifecycle.nodes.probes import NodeProbe

    processes = await engine.adapter.processes()
    if not processes:
        return "the processes of the engine are not known"
    probe = NodeProbe("cuda" if asked.device == "cuda" else "cpu", Policy(residual_scope=asked.scope))
    found = await probe.read(processes, deadline_s=10)
    return found.resident_bytes if isinstance(found, Reading) else found.reason


def _policy(one: Any, asked: argparse.Namespace) -> Any:
    from lifecycle import Policy

    if not one.frees:
        from vllm_lane import UNSEEN

        return UNSEEN
    deadlines = {"release": 60.0, "restore_weights": 60.0, "restore_kv": 60.0, "update_weights": 120.0}
    return Policy(residual_threshold_gib=asked.threshold_gib, residual_scope=asked.scope, deadlines_s=deadlines)


def _probe(one: Any) -> Any:
    from lifecycle.nodes.probes import NoProbe

    return None if one.frees else NoProbe("vLLM frees nothing on a CPU")


def machine() -> dict[str, Any]:
    """The machine and what runs here."""
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
    from lifecycle.nodes.driver import DriverUnavailable, driver

    try:
        snapshot = driver().snapshot()
    except DriverUnavailable as error:
        return {**found, "gpu": f"none: {error}"}
    return {**found, "gpu": ", ".join(device.name for device in snapshot.devices), "driver": snapshot.driver}


def main() -> None:
    """Prints the page, and writes it and the figures to `--out`. The exit status is 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu", "loopback"))
    parser.add_argument("--gib", type=float, default=2.0, help="of weights, in bfloat16, on a GPU")
    parser.add_argument("--kv-gib", type=float, default=4.0, help="of keys and values, on a GPU")
    parser.add_argument("--threshold-gib", type=float, default=3.0, help="what may stay resident")
    parser.add_argument("--tokens", type=int, default=500, help="of each request in flight")
    parser.add_argument("--scope", default="process", choices=("process", "device"))
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    from torch_cycles import use_this_tree

    use_this_tree()
    folder = Path(tempfile.mkdtemp(prefix="engine-cycles-"))
    os.environ.setdefault("LIFECYCLE_STATE_DIR", str(folder / "state"))
    try:
        figures = asyncio.run(measure(asked, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    from engine_report import missed, page

    print(page(figures))
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / f"{asked.engine}_cycles.json").write_text(json.dumps(figures, indent=1, default=str) + "\n")
        (asked.out / f"{asked.engine}_cycles.md").write_text(page(figures))
    sys.exit(1 if any(missed(figures).values()) else 0)


if __name__ == "__main__":
    main()
