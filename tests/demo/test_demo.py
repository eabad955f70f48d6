"""The demo, small and as a process of its own: what it prints, what it returns, and that nothing is left of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

ENGINES = {"prefill-0", "decode-0", "decode-1", "reward-0"}
OFFLOADED = ENGINES - {"reward-0"}
SMALL = "weights_mib=96, kv_mib=96, clients=4"


@contextmanager
def demo(folder: Path, arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A running demo whose temporary files are in `folder`."""
    program = f"import sys; from lifecycle.demo import run; sys.exit(run({arguments}))"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    try:
        with process:
            yield process
            process.kill()
    finally:
        process.kill()


def ended(folder: Path, arguments: str) -> tuple[int, str]:
    with demo(folder, arguments) as process:
        output, _ = process.communicate(timeout=110)
        return process.returncode, output


def pids(output: str) -> dict[str, int]:
    """The engines' pids, from the table that introduces them."""
    found = re.findall(r"^ +(\w+-\d) +(?:prefill|decode|reward) +(\d+) ", output, re.MULTILINE)
    return {name: int(pid) for name, pid in found}


def returned(output: str) -> list[tuple[str, int, int]]:
    found = re.findall(r"(\S+-\d) .*returned (\d+) MiB of (\d+) MiB expected", output)
    return [(name, int(back), int(expected)) for name, back, expected in found]


@pytest.mark.slow
def test_everything_holds_and_nothing_is_left(tmp_path: Path) -> None:
    code, output = ended(tmp_path, SMALL)
    assert code == 0, output
    assert "FAILED" not in output
    assert "parity: ok" in output
    assert "lost: 0" in output
    assert "refused by weights_valid" in output
    story, _, result = output.partition("\nResult\n")
    assert {name for name, _, _ in returned(result)} == OFFLOADED
    cycles = returned(story)
    assert {name for name, _, _ in cycles} == OFFLOADED
    assert len(cycles) == 3 + 2 + 3
    assert all(0.9 * expected <= back for _, back, expected in cycles)
    assert set(pids(output)) == ENGINES
    assert not any(psutil.pid_exists(pid) for pid in pids(output).values())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_release_that_keeps_memory_fails_the_demo(tmp_path: Path) -> None:
    code, output = ended(tmp_path, f"{SMALL}, deadline_s=6, fault='release=leak:100'")
    assert code == 1, output
    assert re.search(r"FAILED .*decode-1: release failed", output), output
    assert "memory_returned is refuted" in output
    assert "parity: FAILED" in output
    assert "lost: 0" in output  # the fleet came back, and served what was open
    assert not any(psutil.pid_exists(pid) for pid in pids(output).values())
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_its_engines_do_not_outlive_it(tmp_path: Path, number: signal.Signals) -> None:
    with demo(tmp_path, SMALL) as process:
        assert process.stdout is not None
        printed = ""
        while set(pids(printed)) != ENGINES:
            line = process.stdout.readline()
            assert line, printed
            printed += line
        process.send_signal(number)
        process.wait(30)
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) for pid in pids(printed).values()):
        assert time.monotonic() < deadline, "an engine outlived the demo"
        time.sleep(0.05)
    if number is signal.SIGTERM:
        assert process.returncode == 128 + signal.SIGTERM
        assert not list(tmp_path.iterdir())
