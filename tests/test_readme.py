"""The README's example runs, on two real engines, and does what its comments say."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from lifecycle.adapters.loopback import LoopbackProcess, make_weights

ROOT = Path(__file__).parent.parent


def test_the_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(example, "README.md", "exec"), names)
    checkpoint = make_weights(tmp_path / "step-12.safetensors", seed=3, weights_mib=96)
    trained: list[int] = []
    with (
        LoopbackProcess.start(weights_mib=96, kv_mib=96) as one,
        LoopbackProcess.start(weights_mib=96, kv_mib=96) as other,
    ):
        urls = [f"sglang://127.0.0.1:{one.port}", f"sglang://127.0.0.1:{other.port}?group=decode"]
        step = names["rl_step"]
        assert callable(step)
        asyncio.run(step(urls, str(checkpoint), train=lambda: trained.append(1)))
    assert trained == [1]


def test_the_commands_that_it_names_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text())) <= targets


def test_nothing_names_a_registry_or_a_machine() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.+]+", line) for line in pins)
    assert not (ROOT / "uv.lock").exists()
