"""The model's outputs differ by prompt, and do not depend on the other requests of a batch."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from loopback_client import fresh, generate, get, ids, post, prompt_body, start_generate

PROMPTS = [f"{word} {number}" for number in range(10) for word in ("the fox", "a reward of")]


def test_twenty_prompts_have_twenty_continuations(engine: LoopbackProcess) -> None:
    texts = [generate(engine, prompt, 32)["text"] for prompt in PROMPTS]
    assert len(set(texts)) == len(PROMPTS)
    assert all(len(set(text)) > 5 for text in texts)
    assert all(text.isprintable() for text in texts)


def test_a_row_does_not_depend_on_its_batch_mates(engine: LoopbackProcess) -> None:
    alone = ids(engine, "the one", 64)
    others = [start_generate(engine, prompt, 80) for prompt in PROMPTS[:8]]
    among = ids(engine, "the one", 64)
    assert among == alone
    assert [len(other.result()["output_ids"]) for other in others] == [80] * 8


@pytest.mark.parametrize("ranks", [2, 4])
def test_more_ranks_give_the_same_tokens(engine: LoopbackProcess, ranks: int) -> None:
    with fresh(ranks=ranks) as split:
        assert len(split.pids) == ranks + 1
        for prompt in ("hello", "x" * 100):
            assert ids(split, prompt, 24) == ids(engine, prompt, 24)


def test_a_cached_prefix_gives_the_same_tokens(engine: LoopbackProcess) -> None:
    post(engine, "/flush_cache")
    first = generate(engine, "p" * 50)
    second = generate(engine, "p" * 50)
    assert (first["meta_info"]["cached_tokens"], second["meta_info"]["cached_tokens"]) == (0, 48)
    assert first["output_ids"] == second["output_ids"]


def test_another_seed_is_another_model(engine: LoopbackProcess) -> None:
    with fresh(seed=1) as other:
        assert ids(other, "hello") != ids(engine, "hello")


def test_a_stream_is_cumulative_and_ends_with_done(engine: LoopbackProcess) -> None:
    reply = post(engine, "/generate", prompt_body("hello", 12, stream=True))
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    steps = [json.loads(event) for event in events[:-1]]
    assert steps[-1]["output_ids"] == ids(engine, "hello", 12)
    assert all(later["text"].startswith(earlier["text"]) for earlier, later in pairwise(steps))
    assert [step["meta_info"]["finish_reason"] for step in steps[:-1]] == [None] * (len(steps) - 1)


def test_text_and_its_ids_are_the_same_prompt(engine: LoopbackProcess) -> None:
    body = {"input_ids": list(b"hello"), "sampling_params": {"max_new_tokens": 16}}
    assert post(engine, "/generate", body).json["output_ids"] == ids(engine, "hello")


def test_a_batch_is_answered_in_order(engine: LoopbackProcess) -> None:
    replies = post(engine, "/generate", {"text": PROMPTS[:3], "sampling_params": {"max_new_tokens": 8}}).json
    assert [reply["output_ids"] for reply in replies] == [ids(engine, prompt, 8) for prompt in PROMPTS[:3]]


def test_a_stop_string_ends_it(engine: LoopbackProcess) -> None:
    full = generate(engine, "stop me", 30)
    stop = full["text"][4:6]
    body = {"text": "stop me", "sampling_params": {"max_new_tokens": 30, "stop": stop}}
    reply = post(engine, "/generate", body).json
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert full["text"].startswith(reply["text"])


def test_a_stop_token_ends_it(engine: LoopbackProcess) -> None:
    token = ids(engine, "stop me", 5)[0]
    body = {"text": "stop me", "sampling_params": {"max_new_tokens": 30, "stop_token_ids": [token]}}
    reply = post(engine, "/generate", body).json
    assert reply["output_ids"] == [token]
    assert reply["meta_info"]["finish_reason"] == {"type": "stop", "matched": token}


def test_meta_info_says_what_a_driver_reads(engine: LoopbackProcess) -> None:
    meta = generate(engine, "hello", 7, rid="mine")["meta_info"]
    assert meta["id"] == "mine"
    assert meta["finish_reason"] == {"type": "length", "length": 7}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["num_retractions"]) == (5, 7, 0)
    assert meta["weight_version"] == "default"
    assert meta["e2e_latency"] > 0


@pytest.mark.slow
def test_a_pool_too_small_for_all_retracts_some_and_serves_all(engine: LoopbackProcess) -> None:
    prompts = [f"{number}" * 90 for number in range(4)]
    with fresh(kv_mib=4) as small:  # 512 tokens, for four requests of 190
        futures = [start_generate(small, prompt, 100) for prompt in prompts]
        replies = [future.result() for future in futures]
    assert sum(reply["meta_info"]["num_retractions"] for reply in replies) > 0
    assert [reply["output_ids"] for reply in replies] == [ids(engine, prompt, 100) for prompt in prompts]


def test_server_info_has_the_fields_of_sglang(engine: LoopbackProcess) -> None:
    info = get(engine, "/server_info").json
    assert info["version"] == "0.5.23"
    assert info["served_by"] == "loopback"
    assert (info["enable_memory_saver"], info["enable_weights_cpu_backup"]) == (True, False)
    assert (info["dp_size"], info["tp_size"], info["tokenizer_worker_num"]) == (1, 1, 1)
    assert info["disaggregation_mode"] == "null"
    usage = info["internal_states"][0]["memory_usage"]
    assert usage["weight"] == pytest.approx(16 / 1024, abs=0.001)
    assert (usage["kvcache"], usage["token_capacity"]) == (pytest.approx(8 / 1024, abs=0.001), 1024)
    assert get(engine, "/get_server_info").json.keys() == info.keys()


def test_every_start_has_another_identity(engine: LoopbackProcess) -> None:
    with fresh("--disaggregation-mode", "decode") as other:
        mine, its = get(engine, "/server_info").json, get(other, "/server_info").json
    assert mine["random_seed"] != its["random_seed"]
    assert mine["startup_time"] != its["startup_time"]
    assert its["disaggregation_mode"] == "decode"


def test_log_probabilities_are_those_of_the_tokens_that_were_chosen(engine: LoopbackProcess) -> None:
    plain = generate(engine, "hello", 5)
    wanted = generate(engine, "hello", 5, return_logprob=True, top_logprobs_num=3)
    assert wanted["output_ids"] == plain["output_ids"]
    meta = wanted["meta_info"]
    chosen = meta["output_token_logprobs"]
    assert [token for _, token, _ in chosen] == wanted["output_ids"]
    assert meta["output_token_logprobs_length"] == len(chosen) == len(meta["output_top_logprobs"]) == 5
    for (logprob, token, _), top in zip(chosen, meta["output_top_logprobs"], strict=True):
        assert top[0][:2] == [logprob, token]  # greedy: the likeliest
        assert sorted(top, key=lambda each: -each[0]) == top
        assert sum(math.exp(each[0]) for each in top) <= 1.0 + 1e-5
    assert (meta["input_token_logprobs"], meta["input_top_logprobs"]) == ([], [])
    assert not {"output_token_logprobs", "output_top_logprobs"} & plain["meta_info"].keys()


def test_all_log_probabilities_of_a_token_sum_up_to_one(engine: LoopbackProcess) -> None:
    meta = generate(engine, "hello", 1, return_logprob=True, top_logprobs_num=100_000)["meta_info"]
    assert sum(math.exp(each[0]) for each in meta["output_top_logprobs"][0]) == pytest.approx(1.0, abs=1e-4)


def test_log_probabilities_that_are_not_computed_are_refused(engine: LoopbackProcess) -> None:
    for more in ({"logprob_start_len": 0}, {"token_ids_logprob": [1]}, {"top_logprobs_num": -1}):
        reply = post(engine, "/generate", prompt_body("hello", 3, return_logprob=True, **more))
        assert (more, reply.status) == (more, 400)
        assert reply.json["error"]["message"]
