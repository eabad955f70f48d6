"""The examples of the README and of docs/command-line.md run on real engines, with the results that they claim."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights

from lifecycle.settings.schema import load

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


def commands(page: str, heading: str) -> list[list[str]]:
    """The `lifecycle` commands of the block under a heading, but for the one that starts an engine."""
    (block,) = re.findall(rf"## {heading}\n.*?```\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = [
        shlex.split(line, comments=True) for line in block.replace("$E", "loopback://127.0.0.1:30000").splitlines()
    ]
    return [line[1:] for line in lines if line[:1] == ["lifecycle"] and "--port" not in line]


def run_all(command_lines: list[list[str]], folder: Path) -> dict[str, int]:
    """The exit code of each command, run one after the other against an engine as it is started there."""
    environment = {**os.environ, "LIFECYCLE_STATE_DIR": str(folder / "state")}
    codes = {}
    with LoopbackProcess.start(weights_mib=192, kv_mib=192) as engine:
        for arguments in command_lines:
            here = [argument.replace("30000", str(engine.port)) for argument in arguments]
            command = [sys.executable, "-m", "lifecycle", *here]
            codes[shlex.join(arguments)] = subprocess.run(
                command, cwd=folder, env=environment, check=False, capture_output=True, timeout=60
            ).returncode
    return codes


def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    codes = run_all(commands("README.md", "Engines"), tmp_path)
    assert [code for code in codes.values() if code] == [], codes
    assert len(codes) == 3


@pytest.mark.slow
def test_the_first_hour_goes_as_it_is_told(tmp_path: Path) -> None:
    codes = run_all(commands("docs/command-line.md", "A first hour"), tmp_path)
    assert {command.split()[0]: code for command, code in codes.items() if code} == {"resume": 3}, codes
    assert len(codes) == 6  # status is asked twice


def test_the_fleet_file_that_is_shown_is_one(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/command-line.md").read_text(), re.DOTALL)
    file = tmp_path / "fleet.toml"
    file.write_text(shown)
    fleet = load(file)
    assert fleet.urls == ("sglang://10.0.0.1:30000?api_key_env=SGLANG_KEY&name=decode-0&group=decode",)
    assert not fleet.groups["reward"].offload


def test_the_commands_that_it_names_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text())) <= targets


def test_nothing_names_a_registry_or_a_machine() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.+]+", line) for line in pins)
    assert not (ROOT / "uv.lock").exists()
