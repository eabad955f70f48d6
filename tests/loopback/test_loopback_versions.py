"""SGLang's dialect by release: what differs between 0.5.11 and 0.5.23, as read in the released packages."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights
from lifecycle.adapters.loopback.dialect import VERSIONS, Dialect, parse_dialect
from lifecycle.adapters.loopback.sglang.versions import TRAITS, Traits
from lifecycle.adapters.sglang.versions import VERSIONS as KNOWN
from loopback_client import (
    GONE,
    SLOW_STEPS,
    SMALL,
    background,
    fresh,
    get,
    ids,
    load,
    pause,
    post,
    prompt_body,
    release,
    running,
    start_generate,
    stays_silent,
    unpause,
    until,
)

slow = pytest.mark.slow  # an engine of each version

PAGE = Path(__file__).parents[2] / "docs" / "dialects.md"
SAID = {True: "yes", False: "no"}


@pytest.fixture(scope="module", params=["0.5.11", "0.5.12", "0.5.16", "0.5.20", "0.5.22", "0.5.23"])
def started(request: pytest.FixtureRequest) -> Iterator[tuple[str, LoopbackProcess]]:
    with fresh(*SLOW_STEPS, dialect=f"sglang:{request.param}") as process:
        yield request.param, process


@pytest.fixture
def version(started: tuple[str, LoopbackProcess]) -> tuple[int, ...]:
    return tuple(int(part) for part in started[0].split("."))


@pytest.fixture
def traits(started: tuple[str, LoopbackProcess]) -> Traits:
    return TRAITS[started[0]]


@pytest.fixture
def old(started: tuple[str, LoopbackProcess]) -> LoopbackProcess:
    """An engine of that version, which admits requests."""
    unpause(started[1])
    return started[1]


def test_each_range_of_the_adapter_has_one() -> None:
    assert [KNOWN.find(release) for release in TRAITS] == list(KNOWN)
    assert set(VERSIONS["sglang"].values()) == set(TRAITS)
    assert parse_dialect("sglang:0.5.15") == Dialect("sglang", "0.5.15")
    with pytest.raises(ValueError, match=r"there are 0\.5\.11, .*, 0\.5\.23"):
        parse_dialect("sglang:0.5.10")


def test_the_page_has_the_table_of_traits() -> None:
    lines = PAGE.read_text()
    for trait in fields(Traits):
        if trait.name not in ("release", "absent"):
            said = " | ".join(SAID[getattr(each, trait.name)] for each in TRAITS.values())
            assert f"| {said} |" in next(line for line in lines.splitlines() if line.startswith(f"| `{trait.name}`"))


@slow
def test_it_says_its_version_and_what_that_one_says_of_its_start(old: LoopbackProcess, traits: Traits) -> None:
    info = get(old, "/server_info").json
    assert (info["version"], "startup_time" in info) == (traits.release, traits.tells_start)
    assert get(old, "/v1/loads").json["version"] == traits.release


@slow
def test_what_it_does_not_have_is_404(old: LoopbackProcess, version: tuple[int, ...]) -> None:
    assert (get(old, "/ready").status == 404) is (version < (0, 5, 20))
    assert (post(old, "/begin_weight_update").status == 404) is (version < (0, 5, 21))
    assert (post(old, "/end_weight_update").status == 404) is (version < (0, 5, 21))


@slow
def test_retracted_requests_count_as_idle_or_never_do(old: LoopbackProcess, version: tuple[int, ...]) -> None:
    flight = start_generate(old, "keep me", 60)
    running(old, 1)
    pause(old, "retract")
    assert post(old, "/flush_cache").status == (200 if version >= (0, 5, 21) else 400)
    unpause(old)
    assert len(flight.result(20)["output_ids"]) == 60


@slow
@pytest.mark.parametrize("of", ["0.5.20", "0.5.22"])
def test_a_release_with_retracted_requests_ends_an_older_one(of: str) -> None:
    with fresh(*SLOW_STEPS, dialect=f"sglang:{of}") as engine:
        flight = start_generate(engine, "keep me", 60)
        running(engine, 1)
        pause(engine, "retract")
        if of == "0.5.22":
            assert release(engine, "kv_cache").status == 200
            return
        with pytest.raises(GONE):
            release(engine, "kv_cache")
        assert flight.exception(20) is not None


@slow
def test_counts_of_a_paused_one(old: LoopbackProcess, version: tuple[int, ...]) -> None:
    """They stand still and say since when; before 0.5.13 they are of now, and do not say so."""
    flight = start_generate(old, "count me", 60)
    running(old, 1)
    pause(old, "retract")
    get(old, "/server_info")  # passes through the scheduler, so that the retract was done
    now = load(old)
    assert ("timestamp" in now) is (version >= (0, 5, 13))
    assert (now["num_running_reqs"], now["num_waiting_reqs"]) == ((1, 0) if version >= (0, 5, 13) else (0, 1))
    unpause(old)
    flight.result(20)


@slow
def test_tensors_are_taken_without_a_session_where_there_are_none(
    old: LoopbackProcess, traits: Traits, tmp_path: Path
) -> None:
    other = make_weights(tmp_path / "other.safetensors", seed=7, weights_mib=SMALL["weights_mib"])
    blob = base64.b64encode(other.read_bytes()).decode()
    before, body = ids(old, "push"), {"serialized_named_tensors": [blob], "load_format": "safetensors"}
    taken = post(old, "/update_weights_from_tensor", {**body, "weight_version": "v2"})
    assert taken.status == (400 if traits.sessions else 200)
    assert (ids(old, "push") == before) is traits.sessions
    assert get(old, "/model_info").json["weight_version"] == ("default" if traits.sessions else "v2")
    assert get(old, "/server_info").json["weight_version"] == ("default" if traits.info_is_of_launch else "v2")


@slow
def test_what_was_loaded_shows_where_it_shows_it(old: LoopbackProcess, traits: Traits, tmp_path: Path) -> None:
    launched = get(old, "/server_info").json["model_path"]
    other = make_weights(tmp_path / "other.safetensors", seed=3, weights_mib=SMALL["weights_mib"])
    assert post(old, "/update_weights_from_disk", {"model_path": str(other), "weight_version": "v3"}).status == 200
    said = [get(old, path).json for path in ("/model_info", "/server_info")]
    assert [each["model_path"] for each in said] == [str(other), launched if traits.info_is_of_launch else str(other)]
    assert said[0]["weight_version"] == "v3"


@slow
def test_a_ping_after_a_health_that_failed(old: LoopbackProcess, traits: Traits) -> None:
    pause(old, "abort")
    assert get(old, "/health").status == 503
    unpause(old)
    assert get(old, "/ping").status == (503 if traits.ping_is_health else 200)
    assert get(old, "/health").status == 200


@slow
def test_checksums(old: LoopbackProcess, traits: Traits) -> None:
    assert (post(old, "/weights_checker", {"action": "checksum"}).status == 200) is traits.checksums


@pytest.mark.slow
def test_a_retract_and_an_abort_of_all_end_what_was_there_and_hold_what_comes(slow_engine: LoopbackProcess) -> None:
    """As a real 0.5.23 (tests/real/test_abort_on_sglang.py): a call that is no stream gets tokens by the fifty."""
    truth = ids(slow_engine, "abort me", 180)
    cached = load(slow_engine)["num_used_tokens"]
    call = start_generate(slow_engine, "abort me", 180)
    stream = background(lambda: post(slow_engine, "/generate", prompt_body("abort me", 180, stream=True)))
    running(slow_engine, 2)
    until(lambda: load(slow_engine)["num_used_tokens"] > cached + 2 * 64)
    pause(slow_engine, "retract")
    between = start_generate(slow_engine, "between", 4)
    stays_silent(between, 0.1)
    assert post(slow_engine, "/abort_request", {"abort_all": True}).status == 200
    events = [line for line in stream.result(5).text.splitlines() if line.startswith("data: {")]
    for reply in (told := call.result(5), streamed := json.loads(events[-1].removeprefix("data: "))):
        assert reply["meta_info"]["finish_reason"] == {"type": "abort", "message": "Abort in waiting queue"}
        assert 50 <= len(reply["output_ids"]) < 180
        assert reply["output_ids"] == truth[: len(reply["output_ids"])]
    assert len(told["output_ids"]) % 50 == 0
    assert len(streamed["output_ids"]) % 50 != 0 or streamed == told
    assert post(slow_engine, "/flush_cache").status == 200
    stays_silent(between, 0.1)
    unpause(slow_engine)
    assert len(between.result(10)["output_ids"]) == 4
