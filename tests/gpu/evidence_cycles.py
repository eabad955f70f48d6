"""Shows on a real GPU what evidence is worth there: a look at what was released, small tags, and sizes that are wrong.

The engine is a torch model in this process: torch_memory_saver releases its memory and NVML measures it. It is driven
as a server is, which does not say which of its tags are released. `make gpu` runs it (test_evidence_on_gpu.py), in less
than 5 minutes. By itself:

    python3 tests/gpu/evidence_cycles.py --out docs/measured     # needs torch, torch_memory_saver, transitions
    python3 tests/gpu/evidence_cycles.py --device cpu --gib 1.5 --threshold-gib 0.9     # a trial of the script itself

Every part runs in a process of its own and prints what it measured, in bytes, and what it found to be `wrong`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GIB = 1 << 30

#: Seconds that all parts together may take.
DEADLINE_S = 300

#: What is said of the weights, of what they hold: as measured on a real server, whose figure had other memory in it.
SAID = 1.24


def build(asked: argparse.Namespace, *, kv_share: float, said: float | None = None) -> Any:
    """An engine with weights, and a KV cache of this share of them. `said`: its weights' size is only reported."""
    import torch
    from lifecycle.adapters.torch_memory_saver import TorchEngine

    from lifecycle import Policy
    from lifecycle.core.facts import SizeGrade

    deadlines = {"release": 30.0, "restore_weights": 30.0, "restore_kv": 30.0}
    policy = Policy(residual_threshold_gib=asked.threshold_gib, deadlines_s=deadlines, settle_s=1.0, poll_s=0.02)
    engine = TorchEngine("decoder", device=asked.device, policy=replace(policy, on_failure="hold"))
    size = int(asked.gib * GIB)
    with engine.region("weights"):
        model = torch.nn.ParameterList([torch.full((size // 4 // 8,), 1.0, device=asked.device) for _ in range(8)])
    with engine.region("kv_cache"):
        cache = torch.ones(int(kv_share * size), dtype=torch.uint8, device=asked.device)
    engine.attach(model, generate=lambda probe: [int(model[0][0].item()) + int(cache[0].item())])
    _as_a_server(engine, said, SizeGrade.REPORTED)
    return engine


def _as_a_server(engine: Any, said: float | None, reported: Any) -> None:
    """It does not say which tags are released, and where asked of its weights' size it says so much of it."""
    adapter = engine.adapter
    capabilities, observe = adapter.capabilities, adapter.observe

    def said_of_it() -> Any:
        truth = capabilities()
        tags = [
            replace(spec, expected_bytes=round(said * spec.expected_bytes), size_grade=reported)
            if said is not None and spec.name == "weights"
            else spec
            for spec in truth.tags
        ]
        return replace(truth, tags=tuple(tags), reports_released=False)

    async def silent(want: Any, *, deadline_s: float) -> Any:
        return replace(await observe(want, deadline_s=deadline_s), released_tags=None)

    adapter.capabilities, adapter.observe = said_of_it, silent


async def sizes(asked: argparse.Namespace) -> dict[str, Any]:
    """Two cycles with a size that is reported too large, and then a release that keeps the weights."""
    from lifecycle import Fleet, FleetError, Kept

    engine = build(asked, kv_share=0.5, said=SAID)
    found: dict[str, Any] = {"weights_bytes": int(asked.gib * GIB), "said_bytes": round(SAID * asked.gib * GIB)}
    found["cycles"], wrong = [], []
    async with Fleet([engine]) as fleet:
        for _ in range(2):
            async with fleet.offloaded(weights=Kept()) as (released,):
                figures = {"returned_bytes": released.returned_bytes, "expected_bytes": released.expected_bytes}
                found["cycles"].append(figures)
                if not engine.memory_is_free:
                    wrong.append("a release that gave back everything was not proved")
        learned = engine.record.calibration.bytes_by_tags.get(frozenset({"weights"}))
        found["learned_bytes"] = learned
        if learned is None or abs(learned - found["weights_bytes"]) > 0.05 * found["weights_bytes"]:
            wrong.append("what was measured did not replace what was reported")
        engine.adapter.tenant.tags.release = _keeps_weights(engine.adapter.tenant.tags.release)
        try:
            await fleet.offload(weights=Kept(), deadline_s=15.0)
            wrong.append("a release that kept the weights was proved")
        except FleetError as refuted:
            found["false_release"] = str(refuted)[:400]
    return found | {"wrong": wrong}


def _keeps_weights(release: Callable[..., Any]) -> Callable[..., Any]:
    return lambda tag, *rest, **options: None if tag == "weights" else release(tag, *rest, **options)


async def small(asked: argparse.Namespace) -> dict[str, Any]:
    """Two cycles with a KV cache of less than 5 % of what is resident, which cannot be seen beside it."""
    from lifecycle import Fleet, Kept

    engine = build(asked, kv_share=0.04)
    wrong, reasons = [], []
    async with Fleet([engine]) as fleet:
        resident = getattr(await engine.read_residual(deadline_s=10), "resident_bytes", 0)
        kv = engine.capabilities.spec("kv_cache").expected_bytes
        for _ in range(2):
            await fleet.offload(weights=Kept())
            if not engine.memory_is_free:
                wrong.append("a release was not proved")
            await engine.restore_weights()
            restored = await engine.restore_kv()
            reasons.append(str(restored.verdicts["kv_mapped"]))
            await engine.resume()
    if kv >= 0.05 * resident:
        wrong.append("the KV cache is not small")
    return {"resident_bytes": resident, "kv_bytes": kv, "restored": reasons, "wrong": wrong}


async def look(asked: argparse.Namespace) -> dict[str, Any]:
    """Its memory comes back behind the driver that released it; that driver's next window must not say free."""
    from lifecycle import Fleet, FleetError, Kept, LifecycleError

    engine = build(asked, kv_share=0.25)
    wrong, found = [], {}
    async with Fleet([engine]) as fleet:
        await fleet.offload(weights=Kept())
        found["released_bytes"] = getattr(await engine.read_residual(deadline_s=10), "resident_bytes", -1)
        tenant = engine.adapter.tenant
        for tag in ("weights", "kv_cache"):
            await engine.adapter.send(_restore_call(engine, tag), deadline_s=30)
        found["restored_behind"] = sorted({"weights", "kv_cache"} - tenant.tags.released)
        try:
            async with fleet.offloaded(weights=Kept()):
                held = getattr(await engine.read_residual(deadline_s=10), "resident_bytes", -1)
                found |= {"held_in_the_window_bytes": held, "said": "free" if engine.memory_is_free else "not free"}
                if engine.memory_is_free and held > asked.threshold_gib * GIB:
                    wrong.append("the window says free, and its memory is back")
        except (LifecycleError, FleetError) as refused:
            found["refused"] = str(refused)[:400]
    return found | {"wrong": wrong}


def _restore_call(engine: Any, tag: str) -> Any:
    from lifecycle import RestoreKV, RestoreWeights

    command = RestoreWeights() if tag == "weights" else RestoreKV()
    calls = engine.adapter.plan(command, engine.facts)
    return next(call for call in calls if call.args.get("tag") == tag)


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {"sizes": sizes, "small": small, "look": look}


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """The figures of every part, each from a process of its own; `error` where one ended without any."""
    end = time.monotonic() + DEADLINE_S
    figures: dict[str, Any] = {}
    for name in PARTS:
        given = {key.replace("_", "-"): value for key, value in vars(asked).items() if key not in ("out", "part")}
        command = [sys.executable, __file__, f"--part={name}", *(f"--{key}={value}" for key, value in given.items())]
        left_s = max(1.0, end - time.monotonic())
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=left_s)
        except subprocess.TimeoutExpired:
            figures[name] = {"error": f"it did not end in {left_s:.0f} s", "wrong": ["it did not end"]}
            continue
        lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]
        lost = {"error": ended.stderr[-1500:], "wrong": ["it ended without figures"]}
        figures[name] = json.loads(lines[-1]) if lines else lost
    return figures


def main() -> None:
    """Prints the figures, and writes them to `--out`. The exit status is 1 where anything was found to be wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--gib", type=float, default=16.0, help="of weights")
    parser.add_argument("--threshold-gib", type=float, default=3.0)
    parser.add_argument("--part", default="", choices=("", *PARTS))
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    from torch_cycles import use_this_tree

    use_this_tree()
    if asked.part:
        print(json.dumps(asyncio.run(PARTS[asked.part](asked)), default=str), flush=True)
        os._exit(0)  # torn down after torch, the saver may end the process with an error
    figures = measure(asked)
    print(json.dumps(figures, indent=1))
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        (asked.out / "evidence_cycles.json").write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(1 if any(part["wrong"] for part in figures.values()) else 0)


if __name__ == "__main__":
    main()
