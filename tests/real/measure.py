"""`python measure.py` prints how the memory of a real SGLang moves along the ring, and whether its answers follow.

One row a step: the PSS of the whole tree of processes in MiB (what they would give back by ending), the change since
the row before, and the seconds that the step's call took. What a release should return is known: the tensors' sizes.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from make_model import LLAMA, checkpoint
from questions import greedy
from server import RealSGLang

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
FLOAT32 = 4


def tree(pid: int) -> Iterator[int]:
    """Every process of the tree under this one, itself first."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield from tree(child)


def pss(pid: int) -> int:
    """The proportional set size in bytes of the tree under this process."""
    return sum(_pss_of_one(member) for member in tree(pid))


def _pss_of_one(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def expected_weights(folder: Path) -> int:
    """The bytes of the weights: those of the file, whose header is a few KiB."""
    return (folder / "model.safetensors").stat().st_size


def expected_kv(tokens: int) -> int:
    """The bytes of keys and values for so many tokens and the pool's one of padding."""
    heads = int(LLAMA["num_key_value_heads"] * LLAMA["head_dim"])
    return (tokens + 1) * heads * int(LLAMA["num_hidden_layers"]) * 2 * FLOAT32


@dataclass(slots=True)
class Ring:
    """The steps that were taken, with what they did to the memory."""

    server: RealSGLang
    rows: list[tuple[str, float, float, float]] = field(default_factory=list)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The answer's JSON; raises on any status but 200."""
        request = urllib.request.Request(
            self.server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read().decode()
        return json.loads(text) if "json" in answer.headers.get("Content-Type", "") else text

    def note(self, step: str, seconds: float = 0.0) -> None:
        """The step has a row."""
        time.sleep(0.5)
        now = pss(self.server.pid) / MIB
        before = self.rows[-1][1] if self.rows else now
        self.rows.append((step, now, now - before, seconds))
        print(f"{step:28} {now:8.0f} {now - before:+8.0f} {seconds:7.2f} s", flush=True)

    def step(self, name: str, path: str, body: dict[str, Any]) -> None:
        """The call was made and has a row."""
        started = time.monotonic()
        self.post(path, body)
        self.note(name, time.monotonic() - started)

    def answer(self, prompt: str = "hello") -> list[int]:
        """The greedy tokens after this prompt."""
        tokens: list[int] = self.post("/generate", greedy(prompt, 16))["output_ids"]
        return tokens


def walk(ring: Ring, reload_from: Path | None) -> None:
    """The ring was walked once, weights reloaded or not, and prompts ran at its end."""
    ring.note("serving")
    ring.step("paused", "/pause_generation", {"mode": "retract"})
    ring.step("drained", "/flush_cache", {})
    ring.step("kv released", "/release_memory_occupation", {"tags": ["kv_cache"]})
    ring.step("weights released", "/release_memory_occupation", {"tags": ["weights"]})
    ring.step("weights resumed", "/resume_memory_occupation", {"tags": ["weights"]})
    if reload_from is not None:
        ring.step("weights loaded from disk", "/update_weights_from_disk", {"model_path": str(reload_from)})
    ring.step("kv resumed", "/resume_memory_occupation", {"tags": ["kv_cache"]})
    ring.step("continued", "/continue_generation", {})
    ring.answer()
    ring.note("prompts run")


def main() -> None:
    """A server was started, walked along the ring a few times, and stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backup", action="store_true", help="with --enable-weights-cpu-backup, and no reload")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    first, second = checkpoint(0), checkpoint(1)
    print(f"expected: weights {expected_weights(first) / MIB:.0f} MiB, kv {expected_kv(12288) / MIB:.0f} MiB")
    with RealSGLang(weights_cpu_backup=options.backup) as server:
        print(f"ready after {server.startup_s:.0f} s")
        ring = Ring(server)
        was = {prompt: ring.answer(prompt) for prompt in ("hello", "zebra")}
        print("prompts differ:", was["hello"] != was["zebra"])
        for _ in range(options.rounds):
            walk(ring, None if options.backup else first)
            print("same answers:", all(ring.answer(prompt) == tokens for prompt, tokens in was.items()))
        if not options.backup:
            ring.step("second checkpoint", "/update_weights_from_disk", {"model_path": str(second)})
            print("answers changed:", all(ring.answer(prompt) != tokens for prompt, tokens in was.items()))
            walk(ring, None)
            print("answer without a reload:", ring.answer())
            ring.step("first checkpoint", "/update_weights_from_disk", {"model_path": str(first)})
            print("same answers:", all(ring.answer(prompt) == tokens for prompt, tokens in was.items()))
        started = time.monotonic()
        print("exit status", server.stop(), f"after {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
