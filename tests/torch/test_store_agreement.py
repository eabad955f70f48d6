"""Ranks agree through a store of torch.distributed: what a barrier decided it decided for all, however late one is."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from lifecycle.adapters.torch_distributed import StoreAgreement
from torch.distributed import FileStore, HashStore, PrefixStore, TCPStore

from lifecycle import AgreementLost, ConfigurationError, RankOutcome

YES = RankOutcome("offload: begin")
WORLD = 3
DEADLINE_S = 20.0
MISSED_S = 0.3


def job(store: Any = None, world_size: int = WORLD, **how: Any) -> list[StoreAgreement]:
    shared = HashStore() if store is None else store
    return [StoreAgreement(shared, rank=rank, world_size=world_size, **how) for rank in range(world_size)]


async def all_of(
    ranks: Sequence[StoreAgreement], outcome: RankOutcome = YES, *, deadline_s: float = DEADLINE_S
) -> list[Any]:
    return await asyncio.gather(
        *(each.agree(outcome.phase, outcome, deadline_s=deadline_s) for each in ranks), return_exceptions=True
    )


async def cancelled_once_it_has_voted(rank: StoreAgreement) -> None:
    """The rank has voted yes, and was cancelled while it waited for the others."""
    waiting = asyncio.create_task(rank.agree("x", YES, deadline_s=DEADLINE_S))
    while not rank._cast:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


def of_file(folder: Any) -> FileStore:
    return FileStore(str(folder / "votes"), -1)


def of_tcp(_: Any) -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


STORES: list[Callable[[Any], Any]] = [
    lambda _: HashStore(),
    of_file,
    of_tcp,
    lambda folder: PrefixStore("job-7", of_tcp(folder)),
]


@pytest.mark.parametrize("store", STORES, ids=["hash", "file", "tcp", "prefix"])
async def test_every_rank_gets_the_outcomes_of_all(tmp_path: Any, store: Any) -> None:
    ranks = job(store(tmp_path))
    mine = [RankOutcome("offload: release", f"e{rank}: no", {"tags": str(rank)}) for rank in range(WORLD)]
    found = await asyncio.gather(
        *(each.agree("offload: release", mine[each.rank], deadline_s=DEADLINE_S) for each in ranks)
    )
    assert found == [tuple(mine)] * WORLD
    assert await all_of(ranks) == [(YES,) * WORLD] * WORLD


async def test_a_rank_that_does_not_vote_is_missing_to_all_by_the_deadline() -> None:
    ranks = job()
    begun = time.monotonic()
    found = await all_of(ranks[:2], deadline_s=MISSED_S)
    assert time.monotonic() - begun < MISSED_S + 5
    assert [[each.vote for each in outcomes] for outcomes in found] == [["voted", "voted", "missing"]] * 2


async def test_a_rank_that_votes_after_the_decision_is_missing_to_itself_too_and_is_in_step_then() -> None:
    ranks = job()
    await all_of(ranks)
    decided = await all_of(ranks[:2], deadline_s=MISSED_S)
    await all_of(ranks[:2], deadline_s=MISSED_S)
    (late,) = await all_of(ranks[2:])
    assert late[2].vote == "missing"
    assert [late] * 2 == decided
    assert await all_of(ranks) == [(YES,) * WORLD] * WORLD


async def test_a_rank_that_is_late_for_a_beginning_joins_the_others_where_they_are() -> None:
    ranks, begins = job(), RankOutcome("offload: begin", begins=True)
    await all_of(ranks)
    for _ in range(2):
        await all_of(ranks[:2], begins, deadline_s=MISSED_S)
    assert await all_of(ranks, begins) == [(begins,) * WORLD] * WORLD


async def test_one_that_comes_at_the_deadline_is_taken_alike_by_all() -> None:
    seen = set()
    ranks = job()
    await all_of(ranks)
    for number in range(40):
        chance = random.Random(number)

        async def late(rank: StoreAgreement, wait_s: float) -> Any:
            await asyncio.sleep(wait_s)
            return await rank.agree("x", RankOutcome("x"), deadline_s=DEADLINE_S)

        wait_s = 0.075 + chance.uniform(-0.02, 0.02)
        early = [rank.agree("x", RankOutcome("x"), deadline_s=0.1 + chance.uniform(-0.01, 0.01)) for rank in ranks[:2]]
        found = await asyncio.gather(*early, late(ranks[2], wait_s), return_exceptions=True)
        decided = {each for each in found if not isinstance(each, AgreementLost)}
        assert len(decided) == 1, found
        seen.add(decided.pop()[2].vote)
    assert seen == {"voted", "missing"}, "both happen, or this shows nothing"


async def test_what_a_rank_leaves_ends_the_waiting_of_the_others() -> None:
    ranks = job()
    gone = RankOutcome("offload", "it was cancelled", vote="gave_up")
    waiting = asyncio.create_task(all_of(ranks[:2]))
    await ranks[2].give_up(gone, deadline_s=DEADLINE_S)
    assert await waiting == [(YES, YES, gone)] * 2
    assert await all_of(ranks) == [(YES,) * WORLD] * WORLD


async def test_what_a_rank_leaves_stands_also_where_it_comes_back_first() -> None:
    ranks = job()
    gone = RankOutcome("offload", "it was cancelled", vote="gave_up")
    await all_of(ranks)
    await ranks[2].give_up(gone, deadline_s=DEADLINE_S)
    again = asyncio.create_task(ranks[2].agree(YES.phase, YES, deadline_s=DEADLINE_S))
    assert await all_of(ranks[:2]) == [(YES, YES, gone)] * 2
    assert await all_of(ranks[:2]) == [(YES,) * WORLD] * 2
    assert await again == (YES,) * WORLD


@pytest.mark.parametrize("begins", [False, True], ids=["in a verb", "in a window"])
async def test_a_rank_that_leaves_after_a_failure_is_heard_at_the_next_beginning_alone(begins: bool) -> None:
    ranks = job()
    await cancelled_once_it_has_voted(ranks[2])
    no = RankOutcome("x", "e1: no")
    await asyncio.gather(*(rank.agree("x", no, deadline_s=DEADLINE_S) for rank in ranks[:2]))
    gone = RankOutcome("x", "it was cancelled", vote="gave_up", begins=begins)
    await ranks[2].give_up(gone, deadline_s=DEADLINE_S)
    if begins:  # others may have caught that failure, and go on
        assert await all_of(ranks[:2]) == [(YES, YES, gone)] * 2
    assert await all_of(ranks) == [(YES,) * WORLD] * WORLD


async def test_a_rank_that_is_cancelled_takes_its_vote_back() -> None:
    ranks = job()
    await cancelled_once_it_has_voted(ranks[2])
    gone = RankOutcome("x", "it was cancelled", vote="gave_up")
    await ranks[2].give_up(gone, deadline_s=DEADLINE_S)
    assert await all_of(ranks[:2]) == [(YES, YES, gone)] * 2
    assert await all_of(ranks) == [(YES,) * WORLD] * WORLD


async def test_a_rank_that_is_cancelled_after_the_decision_says_so_at_the_next_barrier() -> None:
    ranks = job()
    await cancelled_once_it_has_voted(ranks[2])
    assert await all_of(ranks[:2]) == [(YES,) * WORLD] * 2, "it had voted"
    gone = RankOutcome("x", "it was cancelled", vote="gave_up")
    await ranks[2].give_up(gone, deadline_s=DEADLINE_S)
    assert await all_of(ranks[:2]) == [(YES, YES, gone)] * 2
    assert await all_of(ranks) == [(YES,) * WORLD] * WORLD


async def test_ranks_that_were_given_different_world_sizes_are_refused() -> None:
    store = HashStore()
    asyncio.get_running_loop().create_task(StoreAgreement(store, rank=0, world_size=2).agree("x", YES, deadline_s=0.1))
    await asyncio.sleep(0.05)
    with pytest.raises(ConfigurationError, match=r"rank 1 was given world_size=3, and rank 0 2: give all ranks"):
        await StoreAgreement(store, rank=1, world_size=3).agree("x", YES, deadline_s=DEADLINE_S)
    await asyncio.sleep(0.2)


async def test_a_rank_that_is_there_twice_is_refused() -> None:
    store = HashStore()
    first, second = (StoreAgreement(store, rank=1, world_size=2) for _ in range(2))
    await first.agree("x", YES, deadline_s=MISSED_S)
    with pytest.raises(ConfigurationError, match=r"rank 1 of 'lifecycle/0': .* pid \d+ .* is this rank.*rejoins=True"):
        await second.agree("x", YES, deadline_s=DEADLINE_S)


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_is_one_of_its_world(rank: int, world_size: int) -> None:
    with pytest.raises(ConfigurationError, match="ranks are 0 to world_size - 1"):
        StoreAgreement(HashStore(), rank=rank, world_size=world_size)


async def test_a_process_that_takes_the_place_of_another_begins_where_the_others_are() -> None:
    store = HashStore()
    ranks = job(store)
    await all_of(ranks)
    await all_of(ranks)
    await all_of(ranks[:2], deadline_s=MISSED_S)  # rank 2 was killed
    again = StoreAgreement(store, rank=2, world_size=WORLD, rejoins=True)
    assert await all_of([*ranks[:2], again]) == [(YES,) * WORLD] * WORLD
    with pytest.raises(ConfigurationError, match="another process has taken its place"):
        await ranks[2].agree("x", YES, deadline_s=DEADLINE_S)


async def test_a_name_tells_agreements_in_one_store_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    store = HashStore()
    first = job(store)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    both = [*first, *job(store), *job(store, name="rollout")]
    assert await all_of(both) == [(YES,) * WORLD] * len(both)


async def test_votes_that_were_counted_are_deleted() -> None:
    store = HashStore()
    ranks = job(store)
    for _ in range(30):
        await all_of(ranks)
    assert store.num_keys() < 30 + 6 * WORLD


class Hangs:
    """A store whose server was stopped: nothing is answered until `goes_on` is set."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def check(self, keys: list[str]) -> bool:
        self.goes_on.wait(30)
        raise RuntimeError("connection reset by peer")

    get = set = compare_set = delete_key = check


async def test_a_store_that_hangs_costs_the_deadline_and_no_more() -> None:
    store = Hangs()
    (rank,) = job(store, world_size=1)
    try:
        for _ in range(2):
            begun = time.monotonic()
            with pytest.raises(AgreementLost, match="whether the others go on after x is not known here: the store"):
                await rank.agree("x", YES, deadline_s=MISSED_S)
            assert time.monotonic() - begun < MISSED_S + 5
        begun = time.monotonic()
        with pytest.raises(AgreementLost):
            await rank.give_up(YES, deadline_s=MISSED_S)
        assert time.monotonic() - begun < MISSED_S + 5
    finally:
        store.goes_on.set()


SERVER = """
import sys, torch.distributed as d
store = d.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


def test_a_store_that_died_is_said_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        connected = [
            StoreAgreement.connect("127.0.0.1", port, rank=rank, world_size=2, hosts=False, deadline_s=20)
            for rank in range(2)
        ]
        assert asyncio.run(all_of(connected)) == [(YES, YES)] * 2
        server.kill()
        server.wait(20)
        with pytest.raises(AgreementLost, match=r"cannot be asked .*; see whether its server lives"):
            asyncio.run(connected[0].agree("x", YES, deadline_s=DEADLINE_S))


def test_where_nobody_serves_a_store_the_remedy_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no TCPStore at 127\.0\.0\.1:1 .*start rank 0, which serves it"):
        StoreAgreement.connect("127.0.0.1", 1, rank=1, world_size=2, deadline_s=1)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.distributed", None)
    with pytest.raises(ConfigurationError, match=r"engine-lifecycle\[torch\].*StoreAgreement\(store"):
        StoreAgreement.connect("127.0.0.1", 1, rank=0, world_size=1)
