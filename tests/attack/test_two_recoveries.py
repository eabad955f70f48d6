"""Two processes that recover one engine at once: one acts, the other is told who does, and nothing is repeated."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from another_driver import alive, url
from crash import Point, killed_at
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import FromDisk, Policy
from lifecycle.core.journal import CallSent, StateEntered
from lifecycle.core.states import State
from lifecycle.rules.violations import violations
from lifecycle.store.journal import read_file

pytestmark = pytest.mark.slow

Start = Callable[..., LoopbackProcess]

Ended = tuple[int, int, str]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which every driver of a test keeps what it knows."""
    monkeypatch.setenv("LIFECYCLE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("LIFECYCLE_RESIDUAL_THRESHOLD_GIB", "0.125")
    return tmp_path / "state"


def at_once(*arguments: str) -> list[Ended]:
    """The same command in two processes: pid, exit code and what was printed, of each."""
    command = [sys.executable, "-m", "lifecycle", *arguments]
    two = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ))
        for _ in range(2)
    ]
    printed = [each.communicate(timeout=60)[0] for each in two]
    return [(each.pid, each.returncode, text) for each, text in zip(two, printed, strict=True)]


def released(process: LoopbackProcess, source: FromDisk, policy: Policy) -> None:
    """A command that has ended left the engine released."""
    arguments = ("offload", url(process), "--weights", source.path, "--version", source.version)
    subprocess.run([sys.executable, "-m", "lifecycle", *arguments], check=True, timeout=60, stdout=subprocess.DEVNULL)


def killed_in_a_release(process: LoopbackProcess, source: FromDisk, policy: Policy) -> None:
    """A driver was killed between the two calls of a release."""
    killed_at(Point("release", "after", 1), url(process), source, policy)


@pytest.mark.parametrize("left", [released, killed_in_a_release])
def test_one_of_them_acts_and_the_other_is_told_who_does(
    left: Callable[[LoopbackProcess, FromDisk, Policy], None],
    start: Start,
    step_1: FromDisk,
    policy: Policy,
    state: Path,
) -> None:
    process = start(faults=["resume=slow:0.7"])  # so that both are there while one acts
    left(process, step_1, policy)
    before = max(entry.number or 0 for entry in read_file(state / "engines.sqlite3"))
    ended: list[Ended] = []
    end = time.monotonic() + 40.0
    while not any(code == 0 for _, code, _ in ended):  # a call of one that was killed may run until its deadline
        assert time.monotonic() < end, ended
        ended += (both := at_once("recover", url(process), "--to", "serving"))
        pids = {pid for pid, _, _ in both}
        for pid, code, printed in both:
            assert code in (0, 1, 3), printed  # 1: it had attached already when the other took the engine
            held = re.search(r"pid (\d+) on ", printed)
            assert code == 0 or (held is not None and int(held[1]) != pid), printed
            acted = code != 0 and held is not None and int(held[1]) in pids
            assert not acted or any(other != pid and its == 0 for other, its, _ in both), "the one that is named did it"
    assert any(code != 0 for _, code, _ in ended), "both were there, and one was refused"
    assert alive(process), "a call was repeated"
    entries = list(read_file(state / "engines.sqlite3"))
    assert list(violations(entries)) == []
    after = [entry for entry in entries if (entry.number or 0) > before]
    sent = Counter(each.event.call for each in after if isinstance(each.event, CallSent) and not each.event.repeatable)
    assert sent
    assert set(sent.values()) == {1}, sent
    serving = [
        each.driver for each in after if isinstance(each.event, StateEntered) and each.event.dest is State.SERVING
    ]
    assert len(serving) == 1
