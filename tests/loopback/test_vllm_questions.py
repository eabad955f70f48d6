"""The questions that can be asked of a real vLLM and of this one are answered here as was observed there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from lifecycle.adapters.loopback import make_weights
from vllm_client import fresh, is_paused, is_sleeping

sys.path.append(str(Path(__file__).parents[1] / "real"))

pytestmark = pytest.mark.slow  # half a minute of requests in flight

#: The statuses that are not 200. Source: observed on vllm 0.32.0 where no comment says otherwise.
STATUSES = {
    307: {"pause_slash"},
    400: {
        "world_size_bad",
        "server_info_bad",
        "completion_no_body",
        "completion_empty",
        "completion_bad_json",
        "completion_wrong_type",
        "completion_zero_tokens",  # sampling_params.py, read
        "completion_too_long",  # read
        "completion_bad_sampling",  # read
        "chat_empty",
        "pause_bad_mode",
        "pause_bad_clear",
        "abort_no_body",
        "abort_bad_json",
        "abort_list",
        "reset_prefix_cache_bad",
        "sleep_3",
        "sleep_below_0",
        "sleep_word",
        "sleep_bad_mode",
        "rpc_no_method",
        "rpc_no_body",
        "rpc_bad_json",
        "label_missing",
        "label_wrong_type",
        "compare_without",
        "checker_bad_action",
        "update_missing",
        "init_transfer_missing",
    },
    404: {"unknown_path", "no_fault_tolerance", "no_pause_of_sglang", "no_abort", "completion_bad_model"},
    405: {"completion_get", "pause_get", "resume_get", "rpc_get"},
    500: {
        "release_kv_asleep",
        "wake_up_named_twice",
        "release_kv_serving",
        "release_kv",
        "release_kv_freeze_busy",
        "rpc_unknown",
        "start_update",
        "start_draft_update",
        "update",
        "finish_update",
        "init_transfer",
        "reload_bad_path",
        "completion_on_meta",
    },
    None: {"health_dead"},
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each question was answered with, of an engine that lies as one on a CPU does."""
    from record import Recorder
    from vllm_record import everything, kill

    folder = tmp_path_factory.mktemp("answers")
    first, second = (make_weights(folder / f"{seed}.safetensors", seed=seed, weights_mib=16) for seed in (1, 0))
    arguments = ("--step-delay-s", "0.02", "--load-tracking", "--death-delay-s", "1")
    with fresh(*arguments, cpu_like=True, weights=first) as engine:
        recorder = Recorder(engine.url, folder / "answers")
        everything(recorder, str(first), str(second), tokens=60)
        assert (is_paused(engine), is_sleeping(engine)) == (False, False)
        kill(recorder)
    files = (folder / "answers").glob("*.json")
    return {file.stem: json.loads(file.read_text()) for file in files if file.stem != "index"}


def test_every_question_has_the_status_that_was_observed(answers: dict[str, dict[str, Any]]) -> None:
    assert len(answers) >= 40
    assert [name for name, answer in answers.items() if answer["error"]] == ["health_dead"]
    wanted = {name: status for status, names in STATUSES.items() for name in names}
    assert wanted.keys() <= answers.keys()
    assert {name: answer["status"] for name, answer in answers.items()} == dict.fromkeys(answers, 200) | wanted


@pytest.mark.parametrize("name", ["completion_second", "completion_asleep", "completion_awake", "completion_reloaded"])
def test_the_same_weights_say_the_same(answers: dict[str, dict[str, Any]], name: str) -> None:
    said = {each: answers[each]["body"]["choices"][0]["text"] for each in ("completion", name)}
    assert (said["completion"] == said[name]) is (name != "completion_second")


def test_what_became_of_those_in_flight(answers: dict[str, dict[str, Any]]) -> None:
    ends = {"abort": "abort", "abort_requests": "abort", "keep": "length", "freeze": "length", "wait": "length"}
    for name, reason in (ends | {"slept": "length"}).items():
        assert answers[f"{name}_busy_1"]["body"]["choices"][0]["finish_reason"] == reason
        for index in (0, 2, 3, 4):
            last, done = answers[f"{name}_busy_{index}"]["events"][-2:]
            assert (json.loads(last[6:])["choices"][0]["finish_reason"], done) == (reason, "data: [DONE]")


def test_what_a_real_one_says_beside_the_tokens(answers: dict[str, dict[str, Any]]) -> None:
    """Found by `make real`."""
    usage = json.loads(answers["completion_usage"]["events"][-2][6:])
    assert (usage["choices"], usage["system_fingerprint"].split("-")[:2]) == ([], ["vllm", "0.32.0"])
    first, second = (json.loads(event[6:]) for event in answers["chat_stream"]["events"][:2])
    assert {"prompt_token_ids": None, "prompt_text": None}.items() <= first.items()
    assert not {"prompt_token_ids", "prompt_text"} & second.keys()
    [permission] = answers["models"]["body"]["data"][0]["permission"]
    assert (permission["allow_sampling"], permission["allow_fine_tuning"]) == (True, False)
