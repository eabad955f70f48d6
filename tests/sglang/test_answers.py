"""What is read of an answer: whatever an endpoint answers is a value, and an odd part is unknown."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lifecycle.adapters.http import MOST_CONTAINERS, Answer
from lifecycle.adapters.sglang import answers, capabilities
from lifecycle.adapters.sglang.capabilities import Boots, boot_of, capabilities_of
from lifecycle.adapters.sglang.checksums import by_role, of_engine

from lifecycle import Proved, Refuted
from lifecycle.core.units import GIB

INFO: dict[str, Any] = {"internal_states": [{}], "startup_time": {"load_weight": 0.5}, "random_seed": 7}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts, max_size=3),
    max_leaves=8,
)
NAMES = (
    *("internal_states", "startup_time", "random_seed", "tp_size", "pp_size", "dp_size", "tokenizer_worker_num"),
    *("version", "device", "enable_memory_saver", "disaggregation_mode", "loads", "meta_info", "output_ids"),
    *("weight_version", "ranks", "per_engine_checksum", "num_running_reqs", "timestamp", "checksums"),
)
OBJECTS = st.dictionaries(st.sampled_from(NAMES), JSON | st.lists(st.dictionaries(st.sampled_from(NAMES), JSON)))


def ok(value: Any) -> Answer:
    return Answer(200, value if isinstance(value, bytes) else json.dumps(value).encode())


@given(st.binary() | JSON | OBJECTS)
def test_no_answer_raises(value: Any) -> None:
    answer = ok(value)
    info = answers.server_info(answer)
    if info is not None:
        boot_of(info)
        capabilities_of(info)
    answers.why_not(answer)
    answers.weights_label(answer)
    answers.loads(answer)
    answers.generated(answer)
    report = answer.json()
    if isinstance(report, dict):
        of_engine(report)
        by_role(report)


@pytest.mark.parametrize(
    "odd",
    [
        b"<html></html>",
        b"[" * 100_000,
        b"[" + b"9" * 5000 + b"]",
        b"[" + b"{}," * MOST_CONTAINERS + b"{}]",
        {},
        None,
        [],
        7,
        {"internal_states": [{}]},
        {**INFO, "startup_time": None, "random_seed": None},
        {**INFO, "internal_states": []},
        {**INFO, "internal_states": [1]},
        {**INFO, "internal_states": {}},
        {**INFO, "tp_size": "two"},
        {**INFO, "dp_size": -1},
        {**INFO, "pp_size": 10**30},
    ],
)
def test_what_lacks_what_connect_demands_is_no_answer(odd: Any) -> None:
    assert answers.server_info(ok(odd)) is None
    assert "no SGLang server" in answers.why_not(ok(odd))


def test_an_answer_of_a_server_is_one() -> None:
    assert answers.server_info(ok(INFO)) == INFO
    assert answers.server_info(Answer(503, json.dumps(INFO).encode())) is None
    assert answers.server_info(ok({**INFO, "startup_time": None})) is not None
    assert boot_of(INFO) != boot_of({**INFO, "random_seed": 8})


@pytest.mark.parametrize("size", [float("nan"), float("inf"), -1, 0, "1", None, [], True, 10**400, 1e300])
def test_a_size_that_is_none_is_unknown(size: Any) -> None:
    body = json.dumps({**INFO, "internal_states": [{"memory_usage": {"weight": size, "kvcache": 2}}]}).encode()
    info = answers.server_info(ok(body))
    assert info is not None
    assert [spec.expected_bytes for spec in capabilities_of(info).tags] == [None, 2 * GIB]


LOAD = {"num_running_reqs": 2, "num_waiting_reqs": 1, "timestamp": 1.5}


def test_counts_of_requests() -> None:
    assert answers.loads(ok({"loads": [LOAD, LOAD]})) == (6, (1.5, 1.5))
    assert answers.loads(ok({"loads": [{"timestamp": 0.0}]})) == (0, (0.0,))
    for odd in ({"num_running_reqs": "2"}, {"num_waiting_reqs": -1}, {"timestamp": float("nan")}, {"timestamp": None}):
        assert answers.loads(ok({"loads": [LOAD, {**LOAD, **odd}]})) is None
    for rows in ([], {}, [1], None, "x"):
        assert answers.loads(ok({"loads": rows})) is None


def test_how_old_the_oldest_count_is_by_the_servers_own_clock() -> None:
    rows = [{**LOAD, "timestamp": 1796032187.5}, {**LOAD, "timestamp": 1796032180.0}]
    answered = datetime.fromtimestamp(1796032188.0, UTC).isoformat()
    assert answers.counted_s_ago(ok({"timestamp": answered, "loads": rows})) == 8.0
    for odd in ({"loads": rows}, {"timestamp": "today", "loads": rows}, {"timestamp": 7, "loads": rows}, []):
        assert answers.counted_s_ago(ok(odd)) is None
    assert answers.counted_s_ago(ok({"timestamp": answered, "loads": [{}]})) is None


def test_tokens() -> None:
    meta = {"completion_tokens": 1, "finish_reason": {"type": "length"}}
    token = answers.generated(ok({"meta_info": meta, "output_ids": [5]}))
    assert isinstance(token, Proved)
    assert token.figures["output_ids"] == (5,)
    odd = answers.generated(ok({"meta_info": meta, "output_ids": [[5], "x"]}))
    assert odd.figures["output_ids"] == ()
    for refused in ({"meta_info": 3}, {"meta_info": {**meta, "finish_reason": {"type": "abort"}}}, [1], {}):
        assert isinstance(answers.generated(ok(refused)), Refuted)


@pytest.mark.parametrize("rank", [None, 3, {}, {"checksums": 1}, {"checksums": {"a": 1}}])
def test_one_odd_rank_leaves_no_checksum(rank: Any) -> None:
    sound = {"checksums": {"a": "1"}, "parallelism_info": [{"role": "target"}, 3]}
    assert by_role({"ranks": [sound]}).keys() == {"target"}
    assert by_role({"ranks": [sound, rank]}) == {}


def test_a_check_has_no_body() -> None:
    assert answers.is_empty(Answer(200), 200)
    assert not answers.is_empty(Answer(200, b"<html></html>"), 200)
    assert not answers.is_empty(Answer(503), 200)


def test_an_answer_of_other_bytes_is_read_anew_and_one_of_the_same_tells_the_same() -> None:
    boots = Boots()
    first, other = ok(INFO), ok({**INFO, "random_seed": 4711})
    assert boots.read(first) == boot_of(INFO)
    assert boots.read(other) == boot_of({**INFO, "random_seed": 4711}) != boot_of(INFO)
    assert boots.read(ok({"internal_states": []})) is None
    assert boots.read(ok({"internal_states": []})) is None
    assert boots.read(first) == boot_of(INFO)
    assert boots.read(Answer(503, first.body)) is None
    assert boots.read(Answer(None, error="it broke")) is None


def test_what_has_the_same_bytes_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Answer] = []
    monkeypatch.setattr(capabilities, "server_info", lambda answer: parsed.append(answer) or INFO)
    boots, again = Boots(), ok(INFO)
    assert len({boots.read(ok(INFO)), boots.read(again), boots.read(again)}) == 1
    assert len(parsed) == 1
