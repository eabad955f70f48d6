"""Four processes, one rank each, over a TCPStore: one refuses, or is killed at each step, and nobody waits for ever."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import pytest
from rank_process import CALLS, run_rank
from torch.distributed import TCPStore

WORLD = 4
#: The deadline of each phase: what a killed rank costs the others, once.
DEADLINE_S = 2.5
#: Beside that: what they need to come and to come back, on a machine that is busy.
SLACK_S = 20.0
OFFLOAD = ["pause", "drain", "release"]
ONLOAD = [call for call in CALLS if call not in OFFLOAD]

#: What a verb came to: how it ended, in which words, what was said of ranks, how long it took, state and violations.
Said = tuple[str, str, list[tuple[str, int, str]], float, str, list[str]]


class Ranks:
    """The processes. One that was killed is replaced before the next job."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._forks = multiprocessing.get_context("forkserver")
        self._running: dict[int, tuple[Any, Connection]] = {}
        self._jobs = 0

    def start(self) -> None:
        for rank in range(WORLD):
            if rank not in self._running:
                mine, theirs = self._forks.Pipe()
                process = self._forks.Process(target=run_rank, args=(theirs, rank, WORLD, self._port), daemon=True)
                process.start()
                theirs.close()
                self._running[rank] = process, mine

    def run(
        self, *, name: str = "", verbs: str = "offload onload", misses: str = "", rank2: Any = None, **all_ranks: str
    ) -> list[list[Said]]:
        """What each rank said of each verb, of which rank 2 is given something else to do.

        Only the verb that `misses` it has a short deadline: a busy machine must not decide anything elsewhere.
        """
        self._jobs += 1
        self.start()
        for rank, (_, pipe) in self._running.items():
            deadlines = {verb: str(DEADLINE_S if verb == misses else 60) for verb in ("offload", "onload")}
            how = {"verbs": verbs} | deadlines | all_ranks | ((rank2 or {}) if rank == 2 else {})
            pipe.send((name or f"job-{self._jobs}", how))
        for _, pipe in self._running.values():
            assert pipe.recv() == "ready"
        for _, pipe in self._running.values():
            pipe.send("go")
        return [self._said(rank) for rank in range(WORLD)]

    def _said(self, rank: int) -> list[Said]:
        process, pipe = self._running[rank]
        said: list[Said] = []
        try:
            while pipe.poll(3 * DEADLINE_S + SLACK_S):
                if (one := pipe.recv()) is None:
                    return said
                said.append(one)
        except (EOFError, ConnectionResetError):
            process.join(10)
            pipe.close()
            del self._running[rank]
            return said
        raise AssertionError(f"rank {rank} waits for ever")

    def end(self) -> None:
        for process, pipe in self._running.values():
            process.kill()
            process.join(10)
            pipe.close()


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    here, store = Path(__file__).parent, TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.MonkeyPatch.context() as patch:  # the process that forks has no other path, and is started only once
        patch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent / "core")]))
        forks = multiprocessing.get_context("forkserver")
        forks.set_forkserver_preload(["rank_process"])
        ensure_running()
    started = Ranks(store.port)
    try:
        yield started
    finally:
        started.end()


def others(said: list[list[Said]], verb: int = 0) -> list[Said]:
    """What the ranks but rank 2 said of a verb; each in time, and on an engine to which nothing wrong was done."""
    found = [each[verb] for rank, each in enumerate(said) if rank != 2]
    for _, _, _, took_s, _, violations in found:
        assert took_s < DEADLINE_S + SLACK_S
        assert violations == []
    return found


def test_all_ranks_go_round_the_ring(ranks: Ranks) -> None:
    said = ranks.run()
    assert [[each[0] for each in of_rank] for of_rank in said] == [["done", "done"]] * WORLD, said
    assert [of_rank[0][4] for of_rank in said] == ["released"] * WORLD
    assert [of_rank[1][4] for of_rank in said] == ["serving"] * WORLD


@pytest.mark.parametrize("phase", ["begin", "pause", "release"])
def test_a_rank_that_refuses_an_offload_is_named_by_all_and_all_serve(ranks: Ranks, phase: str) -> None:
    said = ranks.run(verbs="offload", rank2={"refuses": phase})
    for how, words, of_ranks, _, state, _ in others(said):
        assert how == "failed"
        assert of_ranks == [("RankFailed", 2, f"offload: {phase}")], words
        assert "e2" in words
        assert state == "serving"
    assert said[2][0][0] == "failed"


@pytest.mark.parametrize(
    ("how", "missed"),
    [
        *((("killed", phase), phase) for phase in OFFLOAD),
        (("killed", "start"), "begin"),
        (("voted", "offload: drain"), "release"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else each,
)
def test_a_rank_that_is_killed_in_an_offload_is_missed_by_all_and_all_serve(
    ranks: Ranks, how: tuple[str, str], missed: str
) -> None:
    """Between a vote and what follows it one may always be killed: the barrier after it shows that."""
    said = ranks.run(verbs="offload", misses="offload", rank2=dict([how]))
    for ended, words, of_ranks, _, state, _ in others(said):
        assert ended == "failed"
        assert of_ranks == [("RankMissing", 2, f"offload: {missed}")], words
        assert state == "serving"
    assert said[2] == []


@pytest.mark.parametrize(
    ("how", "missed"),
    [
        *((("killed", phase), phase) for phase in ONLOAD),
        (("killed", "training"), "begin"),
        (("voted", "offload: release"), "begin"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else each,
)
def test_a_rank_that_is_killed_in_an_onload_is_missed_by_all_and_all_serve(
    ranks: Ranks, how: tuple[str, str], missed: str
) -> None:
    said = ranks.run(misses="onload", rank2=dict([how]))
    assert [each[0] for each in others(said)] == ["done"] * 3
    for ended, words, of_ranks, _, state, _ in others(said, 1):
        assert ended == "failed"
        assert of_ranks == [("RankMissing", 2, f"onload: {missed}")], words
        assert state == "serving"


def test_a_rank_whose_process_was_replaced_takes_part_again(ranks: Ranks) -> None:
    ranks.run(name="replaced", verbs="offload", misses="offload", rank2={"killed": "release"})
    said = ranks.run(name="replaced", rejoins="yes")
    assert [[each[0] for each in of_rank] for of_rank in said] == [["done", "done"]] * WORLD, said
