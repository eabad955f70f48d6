"""vLLM's dialect by release: what differs in 0.24, 0.25, 0.30, 0.32 and 0.33, as read in the released packages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from lifecycle.adapters.loopback.dialect import VERSIONS, Dialect, parse_dialect
from lifecycle.adapters.loopback.vllm.versions import TRAITS, Traits
from loopback_client import background, pss_mib, stays_silent, until
from vllm_client import (
    fresh,
    get,
    is_paused,
    is_sleeping,
    ok,
    post,
    prompt,
    serving,
    sleep_gauge,
    stream,
    text_of,
)

pytestmark = pytest.mark.slow  # an engine of each version

PAGE = Path(__file__).parents[2] / "docs" / "dialects.md"
OLD = ("0.24", "0.25", "0.30")


@pytest.fixture(scope="module", params=list(VERSIONS["vllm"]))
def started(request: pytest.FixtureRequest) -> Iterator[tuple[str, LoopbackProcess]]:
    with fresh("--enable-fault-tolerance", dialect=f"vllm:{request.param}") as process:
        yield request.param, process


@pytest.fixture
def release(started: tuple[str, LoopbackProcess]) -> str:
    return started[0]


@pytest.fixture
def engine(started: tuple[str, LoopbackProcess]) -> LoopbackProcess:
    return serving(started[1])


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("sglang", Dialect("sglang", "0.5.23")),
        ("vllm", Dialect("vllm", "0.32.0")),
        ("vllm:0.25", Dialect("vllm", "0.25.1")),
        ("vllm:0.33.0", Dialect("vllm", "0.33.0")),
    ],
)
def test_a_dialect_and_its_version(text: str, dialect: Dialect) -> None:
    assert parse_dialect(text) == dialect


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("vllm:0.31", "0.24, 0.25, 0.30, 0.32, 0.33"),
        ("vllm:", "0.24, 0.25, 0.30, 0.32, 0.33"),
        ("tgi", "sglang, vllm"),
        ("sglang:0.5.10", "0.5.11, 0.5.12, 0.5.15"),
    ],
)
def test_what_is_not_spoken_is_refused_with_what_is(text: str, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        parse_dialect(text)


def test_every_version_has_its_traits() -> None:
    assert list(TRAITS) == list(VERSIONS["vllm"].values())


def test_the_page_has_every_trait_of_every_release() -> None:
    rows = (line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `"))
    found = {row[0].strip("`"): row[2:] for row in rows if len(row) == 2 + len(TRAITS)}
    traits = [field.name for field in fields(Traits) if field.type == "bool"]
    says = {True: "yes", False: "no"}
    assert found == {name: [says[getattr(each, name)] for each in TRAITS.values()] for name in traits}


def test_it_says_its_release(release: str, engine: LoopbackProcess) -> None:
    assert ok(get(engine, "/version")) == {"version": VERSIONS["vllm"][release]}


@pytest.mark.parametrize("path", ["/sleep", "/wake_up"])
def test_before_0_32_sleep_and_wake_say_nothing(release: str, engine: LoopbackProcess, path: str) -> None:
    reply = post(engine, path)
    assert reply.status == 200
    assert (reply.text == "") is (release in OLD)


@pytest.mark.parametrize(
    ("path", "first"),
    [
        ("/release_kv_cache_memory", "0.32"),
        ("/weight_checker", "0.32"),
        ("/shutdown_weight_transfer_engine", "0.32"),
        ("/abort_requests", "0.30"),
        ("/update_weight_version", "0.30"),
        ("/start_draft_weight_update", "0.30"),
    ],
)
def test_paths_that_came_later(release: str, engine: LoopbackProcess, path: str, first: str) -> None:
    assert (post(engine, path, {}).status == 404) is (release < first)


@pytest.mark.parametrize("path", ["/weight_info", "/fault_tolerance/status"])
def test_reads_that_came_later(release: str, engine: LoopbackProcess, path: str) -> None:
    assert (get(engine, path).status == 404) is (release < "0.30")


def test_each_core_has_a_status(release: str, engine: LoopbackProcess) -> None:
    if release >= "0.30":
        cores = [{"id": 0, "status": "healthy"}]
        assert ok(get(engine, "/fault_tolerance/status")) == {"schema_version": 1, "total_engines": 1, "engines": cores}


@pytest.mark.parametrize(
    ("path", "status"), [("/sleep?level=3", 200), ("/sleep?level=abc", 400), ("/sleep?mode=bogus", 500)]
)
def test_before_0_32_sleep_checks_little(release: str, engine: LoopbackProcess, path: str, status: int) -> None:
    assert post(engine, path).status == (status if release in OLD else 400)
    assert is_sleeping(engine) is (release in OLD and status == 200)


def test_before_0_32_a_wake_of_one_tag_counts_as_awake(release: str, engine: LoopbackProcess) -> None:
    post(engine, "/sleep")
    post(engine, "/wake_up?tags=weights")
    assert sleep_gauge(engine) == ((1, 0, 0) if release in OLD else (0, 1, 0))
    assert is_sleeping(engine)


def test_before_0_32_a_sleep_from_half_awake_frees_nothing(release: str, engine: LoopbackProcess) -> None:
    post(engine, "/sleep")
    post(engine, "/wake_up?tags=weights")
    half_awake = pss_mib(engine)
    assert post(engine, "/sleep").status == 200
    assert half_awake - pss_mib(engine) == pytest.approx(0 if release in OLD else 16, abs=3)


def test_before_0_32_a_pause_waits_by_a_flag(release: str, engine: LoopbackProcess) -> None:
    flight = stream(engine, "hello", 300)
    until(lambda: flight.text)
    ok(post(engine, "/pause?wait_for_inflight_requests=true"))
    assert flight.ended().finish == ("length" if release in OLD else "abort")


def test_in_0_24_an_update_is_started_with_a_body(release: str, engine: LoopbackProcess) -> None:
    assert post(engine, "/start_weight_update").status == (400 if release == "0.24" else 500)
    assert post(engine, "/start_weight_update", {"is_checkpoint_format": True}).status == 500  # not configured


@pytest.mark.parametrize("path", ["/pause", "/pause?mode=wait"])
def test_in_0_33_a_paused_engine_rejects_new_requests(release: str, engine: LoopbackProcess, path: str) -> None:
    ok(post(engine, path))
    asked = background(lambda: post(engine, "/v1/completions", prompt("hello", 3)))
    if release != "0.33":
        stays_silent(asked)
        ok(post(engine, "/resume"))
        assert ok(asked.result(5))["choices"][0]["finish_reason"] == "length"
        return
    error = asked.result(5).json["error"]
    assert (asked.result().status, error["type"], error["code"]) == (503, "ServiceUnavailableError", 503)
    assert error["message"] == "Generation is paused. Please retry after it resumes."
    flight = stream(engine, "hello", 3).ended()
    assert (flight.status, flight.chunks, flight.events[-1]) == (200, [{"error": error}], "[DONE]")
    ok(post(engine, "/resume"))
    assert len(text_of(engine, "hello", 3)) == 3


@pytest.mark.parametrize("steps", [("/pause?mode=keep",), ("/sleep",), ("/pause", "/pause?mode=keep")])
def test_requests_are_queued_under_keep_and_sleep(engine: LoopbackProcess, steps: tuple[str, ...]) -> None:
    for step in steps:
        assert post(engine, step).status == 200
    asked = background(lambda: text_of(engine, "hello", 3))
    stays_silent(asked)
    post(engine, "/wake_up")
    assert len(asked.result(5)) == 3


def test_in_0_33_a_sleep_leaves_the_rejection_and_a_wake_ends_it(release: str, engine: LoopbackProcess) -> None:
    if release == "0.33":
        ok(post(engine, "/pause"))
        ok(post(engine, "/sleep?mode=keep"))
        assert post(engine, "/v1/completions", prompt("hello", 3)).status == 503
        ok(post(engine, "/wake_up"))
        assert not is_paused(engine)
        assert len(text_of(engine, "hello", 3)) == 3
