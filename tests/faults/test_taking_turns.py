"""Two pipelines that take turns on the memory of one host, each a process with its engine and its trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights

from lifecycle.rules.violations import violations
from lifecycle.store import Tenants
from lifecycle.store.journal import read_file

pytestmark = pytest.mark.slow

MIB = 1 << 20
#: What an engine gives back, in two tags, and what a trainer takes: two trainers are more than the budget has.
WEIGHTS_MIB, KV_MIB, TRAIN_MIB = 96, 96, 640
SLACK_MIB = 48
TURNS = 20 if "LIFECYCLE_TEST_LONG" in os.environ else 5


class Watch(threading.Thread):
    """The most that these processes held together, as the kernel counts it, all the while."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__()
        self._pids = pids
        self.ended = threading.Event()
        self.most_bytes = self.looks = 0

    def run(self) -> None:
        while not self.ended.wait(0.01):
            held = 0
            for pid in self._pids:
                with suppress(psutil.Error):
                    held += psutil.Process(pid).memory_full_info().pss
            self.most_bytes, self.looks = max(self.most_bytes, held), self.looks + 1


def started(engine: LoopbackProcess, checkpoint: Path, ledger: Path, name: str, first: bool) -> subprocess.Popen[str]:
    """A pipeline that waits for its budget."""
    given = {
        "port": engine.port,
        "checkpoint": str(checkpoint),
        "version": "step-1",
        "ledger": str(ledger),
        "name": name,
        "turns": TURNS,
        "train_mib": TRAIN_MIB,
        "serves_first": first,
    }
    program = Path(__file__).with_name("taking_turns.py")
    return subprocess.Popen([sys.executable, str(program), json.dumps(given)], stdin=-1, stdout=-1, text=True)


def overlap(some: list[list[float]], others: list[list[float]]) -> list[tuple[float, float]]:
    """The times that are in both of these lists of times."""
    pairs = [(max(a, c), min(b, d)) for a, b in some for c, d in others]
    return [(begin, end) for begin, end in pairs if begin < end]


@pytest.mark.timeout(300)
def test_two_pipelines_take_turns_within_the_budget_of_their_host(
    tmp_path: Path, report: Callable[[str], None]
) -> None:
    checkpoint, ledger = tmp_path / "step-1.safetensors", tmp_path / "ledger.sqlite3"
    make_weights(checkpoint, seed=7, weights_mib=WEIGHTS_MIB)
    with ExitStack() as stack:
        engines = [stack.enter_context(LoopbackProcess.start(weights_mib=WEIGHTS_MIB, kv_mib=KV_MIB)) for _ in range(2)]
        full = [psutil.Process(engine.pid).memory_full_info().pss for engine in engines]
        pipelines = [
            started(engine, checkpoint, ledger, name, first)
            for engine, name, first in zip(engines, ("a", "b"), (True, False), strict=True)
        ]
        for pipeline in pipelines:
            stack.callback(pipeline.kill)
        said = [json.loads(pipeline.stdout.readline()) for pipeline in pipelines]
        # Both engines full, and one trainer at work: two trainers do not fit, whatever the engines do.
        budget = sum(full) + sum(each["base"] for each in said) + (TRAIN_MIB + 4 * SLACK_MIB) * MIB
        watch = Watch([*(engine.pid for engine in engines), *(pipeline.pid for pipeline in pipelines)])
        watch.start()
        for pipeline in pipelines:
            pipeline.stdin.write(f"{budget}\n")
            pipeline.stdin.flush()
        answers = [pipeline.communicate(timeout=280)[0] for pipeline in pipelines]
        watch.ended.set()
        watch.join()
        assert [pipeline.returncode for pipeline in pipelines] == [0, 0]
        assert [engine.returncode for engine in engines] == [None, None]
    a, b = (json.loads(answer) for answer in answers)
    check(a, b, ledger, tmp_path)
    assert watch.most_bytes <= budget
    waited = a["waited_s"] + b["waited_s"]
    report(
        f"two pipelines took {TURNS} turns each: budget {budget // MIB} MiB, most held {watch.most_bytes // MIB} MiB "
        f"({watch.looks} looks), trainers at once 0, steps {2 * TURNS - 1}, waited {waited:.1f} s"
    )


def check(a: dict[str, Any], b: dict[str, Any], ledger: Path, folder: Path) -> None:
    """Every turn was taken, no two trainers at once, the outputs are right, and the journals break no rule."""
    assert [len(each["served"]) for each in (a, b)] == [TURNS, TURNS]
    assert [len(each["trained"]) for each in (a, b)] == [TURNS - 1, TURNS]
    assert overlap(a["trained"], b["trained"]) == []
    assert len({tuple(ids) for ids in [*a["ids"][1:], *b["ids"]]}) == 1, "the weights of step-1 in both engines"
    for name in ("a", "b"):
        assert list(violations(read_file(folder / f"{name}.sqlite3"))) == []
    given_back = {each.tenant.kind: each.given_back for each in Tenants(ledger).tenancies()}
    assert "trainer" not in given_back, "both have ended"
