"""Memory: a release frees the processes' memory, a resume maps it again, and contents are lost or kept as on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from loopback_client import (
    checksum,
    fresh,
    generate,
    get,
    ids,
    pause,
    post,
    prompt_body,
    pss_mib,
    release,
    resume,
    unpause,
)

MIB = 64  # of weights, and of KV
TOLERANCE_MIB = 3.0  # an interpreter's own memory drifts a little


@pytest.fixture(scope="module", params=[1, 2], ids=["one-rank", "two-ranks"])
def large(request: pytest.FixtureRequest) -> Iterator[LoopbackProcess]:
    """An engine whose tags are large beside the variation of a process's memory."""
    with fresh(weights_mib=MIB, kv_mib=MIB, ranks=request.param) as started:
        generate(started, "warm up", 8)
        yield started


def reload(engine: LoopbackProcess) -> None:
    assert post(engine, "/update_weights_from_disk", {"model_path": str(engine.weights)}).status == 200


@pytest.mark.parametrize("tag", ["weights", "kv_cache"])
def test_a_released_tag_leaves_the_processes_and_comes_back(large: LoopbackProcess, tag: str) -> None:
    before = pss_mib(large)
    assert release(large, tag).text == "null"
    assert before - pss_mib(large) == pytest.approx(MIB, abs=TOLERANCE_MIB)
    assert resume(large, tag).text == "null"
    assert pss_mib(large) == pytest.approx(before, abs=TOLERANCE_MIB)
    reload(large)


def test_an_empty_list_means_all_tags(large: LoopbackProcess) -> None:
    before = pss_mib(large)
    release(large)
    assert before - pss_mib(large) == pytest.approx(2 * MIB, abs=TOLERANCE_MIB)
    resume(large)
    assert pss_mib(large) == pytest.approx(before, abs=TOLERANCE_MIB)
    reload(large)


def test_without_a_backup_the_weights_are_garbage_until_reloaded(large: LoopbackProcess) -> None:
    truth, proof = ids(large, "hello"), checksum(large)
    release(large, "weights")
    resume(large, "weights")
    assert ids(large, "hello") != truth
    assert checksum(large) != proof
    reload(large)
    assert ids(large, "hello") == truth
    assert checksum(large) == proof
    assert large.stderr_tail() == ""  # no warning of NumPy over garbage


def test_a_kv_cycle_keeps_the_output(large: LoopbackProcess) -> None:
    truth = ids(large, "h" * 40)
    release(large, "kv_cache")
    resume(large, "kv_cache")
    again = generate(large, "h" * 40)
    assert again["output_ids"] == truth
    assert again["meta_info"]["cached_tokens"] == 0  # its release flushed


def test_each_rank_gives_back_its_share() -> None:
    with fresh(weights_mib=MIB, kv_mib=MIB, ranks=2) as engine:
        from loopback_client import _pss_mib

        before = [_pss_mib(pid) for pid in engine.rank_pids]
        release(engine, "weights")
        freed = [then - _pss_mib(pid) for then, pid in zip(before, engine.rank_pids, strict=True)]
    assert freed == pytest.approx([MIB / 2, MIB / 2], abs=TOLERANCE_MIB)


@pytest.mark.parametrize("ranks", [1, 2])
def test_with_a_backup_the_weights_come_back_and_the_memory_still_leaves(ranks: int) -> None:
    with fresh(weights_mib=MIB, ranks=ranks, weights_backup=True) as engine:
        truth, before = ids(engine, "hello"), pss_mib(engine)
        release(engine, "weights")
        assert before - pss_mib(engine) == pytest.approx(MIB, abs=TOLERANCE_MIB)
        resume(engine, "weights")
        assert pss_mib(engine) == pytest.approx(before, abs=TOLERANCE_MIB)
        assert ids(engine, "hello") == truth
        assert get(engine, "/server_info").json["enable_weights_cpu_backup"] is True


def test_without_a_memory_saver_200_frees_nothing() -> None:
    with fresh(weights_mib=MIB, memory_saver=False) as engine:
        truth, before = ids(engine, "h" * 40), pss_mib(engine)
        assert [release(engine).status, release(engine).status] == [200, 200]
        assert pss_mib(engine) == pytest.approx(before, abs=TOLERANCE_MIB)
        assert resume(engine).status == 200
        again = generate(engine, "h" * 40)
    assert again["output_ids"] == truth
    assert again["meta_info"]["cached_tokens"] == 0  # the prefix cache is flushed all the same


def test_a_request_to_a_released_engine_runs_and_takes_pages_back(large: LoopbackProcess) -> None:
    truth = ids(large, "hello", 64)
    release(large, "kv_cache", "weights")
    low = pss_mib(large)
    assert post(large, "/generate", prompt_body("hello", 64)).status == 200
    assert pss_mib(large) > low
    resume(large, "kv_cache", "weights")
    reload(large)
    assert ids(large, "hello", 64) == truth


def test_resuming_does_not_flush_what_was_cached_while_released(large: LoopbackProcess) -> None:
    truth = ids(large, "s" * 40)
    release(large, "kv_cache")
    ids(large, "s" * 40)  # its pages are in the prefix cache, in memory that resume replaces
    resume(large, "kv_cache")
    stale = generate(large, "s" * 40)
    assert stale["meta_info"]["cached_tokens"] > 0
    assert stale["output_ids"] != truth
    post(large, "/flush_cache")
    assert ids(large, "s" * 40) == truth


def test_the_order_of_tags_is_free_and_paused_requests_survive(large: LoopbackProcess) -> None:
    truth = ids(large, "hello")
    assert pause(large, "retract").status == 200
    assert post(large, "/flush_cache").status == 200
    assert [release(large, "weights").status, release(large, "kv_cache").status] == [200, 200]
    assert [resume(large, "weights").status, resume(large, "kv_cache").status] == [200, 200]
    reload(large)
    unpause(large)
    assert ids(large, "hello") == truth


def test_unknown_tags_are_accepted(large: LoopbackProcess) -> None:
    assert [release(large, "nonsense").status, release(large, "nonsense").status] == [200, 200]
    assert resume(large, "nonsense").status == 200


def test_server_info_does_not_say_what_is_released(large: LoopbackProcess) -> None:
    before = get(large, "/server_info").json["internal_states"][0]["memory_usage"]
    release(large, "kv_cache")
    assert get(large, "/server_info").json["internal_states"][0]["memory_usage"] == before
    resume(large, "kv_cache")
