"""In a real terminal (tmux) a live table; piped, plain lines. The captures in docs/captures are made the same way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]
Capture = Callable[[str], str]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Capture]:
    """Types a command into a terminal of 150 columns and returns what stands on it when the command has ended."""
    name = f"lifecycle-{uuid.uuid4().hex[:8]}"
    environment = {**os.environ, "LIFECYCLE_STATE_DIR": str(tmp_path), "PS1": "$ "}
    tmux = ["tmux", "-L", name]
    subprocess.run([*tmux, "new-session", "-d", "-x", "150", "-y", "40", "sh"], check=True, env=environment)

    def run(command: str) -> str:
        done = f"done-{uuid.uuid4().hex[:6]}"
        subprocess.run([*tmux, "send-keys", f"{command}; echo {done[:4]}''{done[4:]}", "Enter"], check=True)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            screen = subprocess.run([*tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True).stdout
            if done in screen:
                return screen
            time.sleep(0.1)
        raise AssertionError(f"{command!r} did not end; the terminal shows:\n{screen}")

    yield run
    subprocess.run([*tmux, "kill-server"], check=False)


def test_a_table_on_a_terminal_and_lines_in_a_pipe(terminal: Capture) -> None:
    lifecycle = f"{sys.executable} -m lifecycle"
    with LoopbackProcess.start(weights_mib=96, kv_mib=96, weights_backup=True) as engine:
        url = f"'loopback://127.0.0.1:{engine.port}?name=decode-0'"
        cycle = f"{lifecycle} cycle {url} --weights kept --threshold-gib 0.25"
        live = terminal(cycle)
        assert "PROGRESS" in live
        assert "●○○○○○" in live
        assert "resume" in live
        assert "MiB expected" in live
        piped = terminal(f"clear; {cycle} | cat")
        assert "PROGRESS" not in piped
        assert "decode-0  kv_restored" in piped
        assert "serving" in terminal(f"clear; {lifecycle} status {url}")
