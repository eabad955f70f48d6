"""vLLM's dialect: what sleep frees is measured by the operating system, and what comes back by a prompt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from loopback_client import pss_mib
from vllm_client import fresh, get, is_sleeping, ok, post, sleep_gauge, text_of

MIB = 64  # of weights, and of KV
TOLERANCE_MIB = 4.0  # the memory of two interpreters drifts a little


@pytest.fixture(scope="module", params=[1, 2], ids=["one-rank", "two-ranks"])
def large(request: pytest.FixtureRequest) -> Iterator[LoopbackProcess]:
    """An engine whose tags are large beside the variation of a process's memory."""
    with fresh(weights_mib=MIB, kv_mib=MIB, ranks=request.param) as started:
        text_of(started, "warm up", 8)
        for _ in range(2):  # what the first calls leave behind
            post(started, "/sleep")
            post(started, "/wake_up")
        yield started


def reload(engine: LoopbackProcess) -> None:
    assert ok(post(engine, "/collective_rpc", {"method": "reload_weights"}))["results"][0] is None


def freed_mib(engine: LoopbackProcess, *paths: str) -> float:
    """What the calls returned to the operating system."""
    before = pss_mib(engine)
    for path in paths:
        ok(post(engine, path))
    return before - pss_mib(engine)


def test_level_1_keeps_the_weights_on_the_host(large: LoopbackProcess) -> None:
    truth = text_of(large, "hello")
    assert freed_mib(large, "/sleep?level=1") == pytest.approx(2 * MIB, abs=TOLERANCE_MIB)
    assert freed_mib(large, "/wake_up?tags=weights") == pytest.approx(-MIB, abs=TOLERANCE_MIB)
    assert freed_mib(large, "/wake_up?tags=kv_cache") == pytest.approx(-MIB, abs=TOLERANCE_MIB)
    assert text_of(large, "hello") == truth


def test_level_2_discards_them(large: LoopbackProcess) -> None:
    truth = text_of(large, "hello")
    assert freed_mib(large, "/sleep?level=2") == pytest.approx(2 * MIB, abs=TOLERANCE_MIB)
    assert freed_mib(large, "/wake_up") == pytest.approx(-2 * MIB, abs=TOLERANCE_MIB)
    assert text_of(large, "hello") != truth
    reload(large)
    post(large, "/reset_prefix_cache")
    assert text_of(large, "hello") == truth


def test_level_2_is_reloaded_between_the_tags(large: LoopbackProcess) -> None:
    truth = text_of(large, "hello")
    ok(post(large, "/sleep?level=2"))
    ok(post(large, "/wake_up?tags=weights"))
    reload(large)
    ok(post(large, "/wake_up?tags=kv_cache"))
    assert text_of(large, "hello") == truth


def test_the_level_of_who_sleeps_already_is_kept(large: LoopbackProcess) -> None:
    truth = text_of(large, "hello")
    ok(post(large, "/sleep?level=1"))
    assert freed_mib(large, "/sleep?level=2") == pytest.approx(0, abs=TOLERANCE_MIB)
    assert sleep_gauge(large) == (0, 0, 1)  # only the gauge has changed
    ok(post(large, "/wake_up"))
    assert text_of(large, "hello") == truth


def test_the_kv_cache_alone(large: LoopbackProcess) -> None:
    truth = text_of(large, "h" * 40)
    assert freed_mib(large, "/pause", "/release_kv_cache_memory") == pytest.approx(MIB, abs=TOLERANCE_MIB)
    assert freed_mib(large, "/wake_up") == pytest.approx(-MIB, abs=TOLERANCE_MIB)
    assert text_of(large, "h" * 40) == truth


def test_a_sleep_from_the_kv_cache_alone_frees_the_weights(large: LoopbackProcess) -> None:
    truth = text_of(large, "hello")
    ok(post(large, "/pause"))
    ok(post(large, "/release_kv_cache_memory"))
    assert freed_mib(large, "/sleep") == pytest.approx(MIB, abs=TOLERANCE_MIB)
    ok(post(large, "/wake_up"))
    assert text_of(large, "hello") == truth


def test_a_sleep_from_half_awake_frees_what_is_awake(large: LoopbackProcess) -> None:
    truth = text_of(large, "hello")
    ok(post(large, "/sleep"))
    ok(post(large, "/wake_up?tags=weights"))
    assert freed_mib(large, "/sleep?mode=keep") == pytest.approx(MIB, abs=TOLERANCE_MIB)
    ok(post(large, "/wake_up"))
    assert text_of(large, "hello") == truth


def test_level_0_frees_nothing(large: LoopbackProcess) -> None:
    assert freed_mib(large, "/sleep?level=0") == pytest.approx(0, abs=TOLERANCE_MIB)
    ok(post(large, "/wake_up?tags=scheduling"))


@pytest.mark.parametrize("tags", ["tags=bogus", "tags=weights&tags=bogus", "tags=weights,kv_cache"])
def test_a_wrong_tag_maps_nothing(large: LoopbackProcess, tags: str) -> None:
    ok(post(large, "/sleep"))
    assert freed_mib(large, f"/wake_up?{tags}") == pytest.approx(0, abs=TOLERANCE_MIB)
    ok(post(large, "/wake_up"))


def test_a_tag_that_is_named_twice_was_mapped(large: LoopbackProcess) -> None:
    ok(post(large, "/sleep"))
    before = pss_mib(large)
    assert post(large, "/wake_up?tags=weights&tags=weights").status == 500
    assert pss_mib(large) - before == pytest.approx(MIB, abs=TOLERANCE_MIB)
    ok(post(large, "/wake_up"))


LIARS = [{"cpu_like": True}, {"memory_saver": False}]


@pytest.mark.parametrize("chosen", LIARS, ids=["cpu-like", "no-sleep-mode"])
def test_where_nothing_can_sleep_a_200_frees_nothing(chosen: dict[str, bool]) -> None:
    with fresh(weights_mib=MIB, kv_mib=MIB, **chosen) as engine:
        truth = text_of(engine, "hello")
        model = ok(get(engine, "/server_info?config_format=json"))["vllm_config"]["model_config"]
        assert (model["enable_sleep_mode"], model["enable_cumem_allocator"]) == (False, False)
        assert freed_mib(engine, "/sleep?level=2") == pytest.approx(0, abs=TOLERANCE_MIB)
        assert is_sleeping(engine)
        assert sleep_gauge(engine) == (0, 0, 1)
        assert ok(post(engine, "/wake_up"))["status"] == "awake"
        assert text_of(engine, "hello") == truth


@pytest.mark.parametrize(("chosen", "status"), [({"cpu_like": True}, 500), ({"memory_saver": False}, 200)])
def test_the_kv_cache_alone_where_nothing_can_sleep(chosen: dict[str, bool], status: int) -> None:
    with fresh(**chosen) as engine:
        ok(post(engine, "/pause"))
        reply = post(engine, "/release_kv_cache_memory")
        assert reply.status == status
        if status == 500:
            assert "Selective discard is not supported on CPU." in reply.json["error"]["message"]
        post(engine, "/resume")
        assert is_sleeping(engine)  # recorded as asleep, also where it failed
        assert ok(post(engine, "/wake_up"))["status"] == "awake"
