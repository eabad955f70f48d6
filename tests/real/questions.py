"""What `record.py` asks a server: rows of (name, method, path) and, where there is one, the body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

RELEASE, RESUME = "/release_memory_occupation", "/resume_memory_occupation"

Row = tuple[str, str, str] | tuple[str, str, str, Any]


def greedy(text: str | list[str], tokens: int = 8, **more: Any) -> dict[str, Any]:
    """The body of a generate request whose answer is the same every time."""
    return {"text": text, "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}, **more}


OBSERVE: Sequence[Row] = [
    ("server_info", "GET", "/server_info"),
    ("get_server_info", "GET", "/get_server_info"),
    ("model_info", "GET", "/model_info"),
    ("get_model_info", "GET", "/get_model_info"),
    ("loads", "GET", "/v1/loads"),
    ("loads_core_queues", "GET", "/v1/loads?include=core,queues"),
    ("loads_core", "GET", "/v1/loads?include=core"),
    ("loads_all", "GET", "/v1/loads?include=all"),
    ("loads_memory", "GET", "/v1/loads?include=memory,disagg"),
    ("loads_bad_include", "GET", "/v1/loads?include=nonsense"),
    ("loads_dp_rank_0", "GET", "/v1/loads?dp_rank=0"),
    ("loads_dp_rank_7", "GET", "/v1/loads?dp_rank=7"),
    ("loads_dp_rank_bad", "GET", "/v1/loads?dp_rank=x"),
    ("ready", "GET", "/ready"),
    ("health", "GET", "/health"),
    ("health_generate", "GET", "/health_generate"),
    ("ping", "GET", "/ping"),
    ("models", "GET", "/v1/models"),
    ("get_load", "GET", "/get_load"),
    ("unknown_path", "GET", "/no/such/path"),
    ("metrics", "GET", "/metrics"),
    ("root", "GET", "/"),
    ("server_info_post", "POST", "/server_info", {}),
]

GENERATE: Sequence[Row] = [
    ("generate", "POST", "/generate", greedy("hello")),
    ("generate_again", "POST", "/generate", greedy("hello")),
    ("generate_put", "PUT", "/generate", greedy("hello")),
    ("generate_get", "GET", "/generate"),
    ("generate_stream", "POST", "/generate", greedy("hello", 12, stream=True)),
    ("generate_stream_rid", "POST", "/generate", greedy("hello", 3, stream=True, rid="stream-1")),
    ("generate_batch", "POST", "/generate", greedy(["hello", "zebra"], 4)),
    ("generate_batch_stream", "POST", "/generate", greedy(["hello", "zebra"], 3, stream=True)),
    ("generate_input_ids", "POST", "/generate", {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 4}}),
    ("generate_rid", "POST", "/generate", greedy("hello", 4, rid="mine-1")),
    ("generate_logprob", "POST", "/generate", greedy("hello", 3, return_logprob=True, top_logprobs_num=2)),
    ("generate_logprob_no_top", "POST", "/generate", greedy("hello", 3, return_logprob=True)),
    ("generate_logprob_stream", "POST", "/generate", greedy("hello", 3, return_logprob=True, stream=True)),
    ("generate_bad_logprob", "POST", "/generate", greedy("hello", 3, return_logprob="perhaps")),
    ("generate_no_body", "POST", "/generate"),
    ("generate_empty", "POST", "/generate", {}),
    ("generate_bad_json", "POST", "/generate", b"{not json"),
    ("generate_json_list", "POST", "/generate", [1, 2]),
    ("generate_wrong_type", "POST", "/generate", {"text": 5}),
    ("generate_unknown_field", "POST", "/generate", greedy("hello", 2, nonsense=1)),
    ("generate_zero_tokens", "POST", "/generate", greedy("hello", 0)),
    ("generate_too_long", "POST", "/generate", {"input_ids": [5] * 5000, "sampling_params": {"max_new_tokens": 4}}),
    ("generate_bad_sampling", "POST", "/generate", {"text": "a", "sampling_params": {"temperature": -1}}),
    ("completions", "POST", "/v1/completions", {"model": "x", "prompt": "hello", "max_tokens": 4, "temperature": 0}),
]

GATE: Sequence[Row] = [
    ("pause_empty", "POST", "/pause_generation", {}),
    ("pause_again", "POST", "/pause_generation", {}),
    ("ready_paused", "GET", "/ready"),
    ("ping_paused", "GET", "/ping"),
    ("loads_paused_abort", "GET", "/v1/loads"),
    ("model_info_paused", "GET", "/model_info"),
    ("server_info_paused", "GET", "/server_info"),
    ("continue_empty", "POST", "/continue_generation", {}),
    ("ready_continued", "GET", "/ready"),
    ("continue_not_paused", "POST", "/continue_generation", {}),
    ("continue_no_cache", "POST", "/continue_generation", {"torch_empty_cache": False}),
    ("pause_retract", "POST", "/pause_generation", {"mode": "retract"}),
    ("flush_paused_retract", "POST", "/flush_cache"),
    ("loads_paused_retract", "GET", "/v1/loads"),
    ("continue_after_retract", "POST", "/continue_generation", {}),
    ("pause_in_place", "POST", "/pause_generation", {"mode": "in_place"}),
    ("continue_after_in_place", "POST", "/continue_generation", {}),
    ("pause_no_body", "POST", "/pause_generation"),
    ("pause_bad_mode", "POST", "/pause_generation", {"mode": "nonsense"}),
    ("pause_bad_json", "POST", "/pause_generation", b"{not json"),
    ("pause_unknown_field", "POST", "/pause_generation", {"nonsense": 1}),
    ("continue_clean_up", "POST", "/continue_generation", {}),
    ("pause_get", "GET", "/pause_generation"),
    ("continue_get", "GET", "/continue_generation"),
    ("continue_no_body", "POST", "/continue_generation"),
    ("continue_wrong_type", "POST", "/continue_generation", {"torch_empty_cache": "perhaps"}),
]

FLUSH_AND_ABORT: Sequence[Row] = [
    ("flush_get", "GET", "/flush_cache"),
    ("flush_post", "POST", "/flush_cache"),
    ("flush_post_body", "POST", "/flush_cache", {"timeout": 1}),
    ("flush_timeout_2", "POST", "/flush_cache?timeout=2"),
    ("flush_timeout_negative", "POST", "/flush_cache?timeout=-1"),
    ("flush_timeout_word", "POST", "/flush_cache?timeout=abc"),
    ("flush_put", "PUT", "/flush_cache"),
    ("abort_unknown", "POST", "/abort_request", {"rid": "nobody"}),
    ("abort_all_idle", "POST", "/abort_request", {"abort_all": True}),
    ("abort_empty", "POST", "/abort_request", {}),
    ("abort_empty_rid", "POST", "/abort_request", {"rid": ""}),
    ("abort_no_body", "POST", "/abort_request"),
    ("abort_bad_json", "POST", "/abort_request", b"{not json"),
    ("abort_wrong_type", "POST", "/abort_request", {"rid": 5}),
    ("abort_get", "GET", "/abort_request"),
]

#: SGLang reads no tensor where no session is open, so that it does not come to the format, which loopback knows alone.
SAFE = {"load_format": "safetensors"}
NO_ABORT = {"new_version": "v2", "abort_all_requests": False}


def weights(first: str, second: str) -> Sequence[Row]:
    """The calls that move weights from the checkpoint `first` to `second` and back, and those that fail to."""
    update, tensor, begin, end = (
        "/update_weights_from_disk",
        "/update_weights_from_tensor",
        "/begin_weight_update",
        "/end_weight_update",
    )
    return [
        ("checker_default", "GET", "/weights_checker"),
        ("checker_post", "POST", "/weights_checker", {"action": "checksum"}),
        ("checker_bad_action", "POST", "/weights_checker", {"action": "nonsense"}),
        ("checker_target", "POST", "/weights_checker", {"selector": "target"}),
        ("checker_no_draft", "POST", "/weights_checker", {"selector": "draft"}),
        ("checker_no_draft_bad_action", "POST", "/weights_checker", {"selector": "draft", "action": "nonsense"}),
        ("checker_bad_selector", "POST", "/weights_checker", {"selector": "nonsense"}),
        ("checker_bad_json", "POST", "/weights_checker", b"{not json"),
        ("checker_compare_first", "POST", "/weights_checker", {"action": "compare"}),
        ("update_version", "POST", "/update_weight_version", {"new_version": "v1"}),
        ("update_version_again", "POST", "/update_weight_version", {"new_version": "v1"}),
        ("update_version_no_abort", "POST", "/update_weight_version", NO_ABORT),
        ("update_version_missing", "POST", "/update_weight_version", {}),
        ("update_version_get", "GET", "/update_weight_version"),
        ("model_info_versioned", "GET", "/model_info"),
        ("generate_versioned", "POST", "/generate", greedy("hello", 4)),
        ("update_missing_field", "POST", update, {}),
        ("update_no_body", "POST", update),
        ("update_get", "GET", update),
        ("update_bad_path", "POST", update, {"model_path": "/no/such/checkpoint"}),
        ("update_bad_path_labelled", "POST", update, {"model_path": "/no/such", "weight_version": "v9"}),
        ("update_wrong_type", "POST", update, {"model_path": 5}),
        ("begin_no_body", "POST", begin),
        ("begin_get", "GET", begin),
        ("begin_bad_selector", "POST", begin, {"selector": "nonsense"}),
        ("end_without_session", "POST", end, {}),
        ("tensor_without_session", "POST", tensor, {"serialized_named_tensors": ["AAAA"], **SAFE}),
        ("begin_update", "POST", begin, {}),
        ("begin_twice", "POST", begin, {}),
        ("update_within_session", "POST", update, {"model_path": first}),
        ("end_update", "POST", end, {}),
        ("end_twice", "POST", end, {}),
        ("begin_again", "POST", begin, {"selector": "target"}),
        ("end_again", "POST", end, {}),
        ("model_info_after_sessions", "GET", "/model_info"),
        ("generate_after_sessions", "POST", "/generate", greedy("hello", 4)),
        ("update_good", "POST", update, {"model_path": second, "weight_version": "v3"}),
        ("model_info_updated", "GET", "/model_info"),
        ("generate_updated", "POST", "/generate", greedy("hello")),
        ("checker_updated", "GET", "/weights_checker"),
        ("checker_snapshot", "POST", "/weights_checker", {"action": "snapshot"}),
        ("checker_reset", "POST", "/weights_checker", {"action": "reset_tensors"}),
        ("checker_after_reset", "GET", "/weights_checker"),
        ("update_back", "POST", update, {"model_path": first, "flush_cache": True, "abort_all_requests": True}),
        ("model_info_back", "GET", "/model_info"),
        ("generate_back", "POST", "/generate", greedy("hello")),
    ]


def memory(first: str) -> Sequence[Row]:
    """Release and resume as they should be called, and the wrong calls that do not kill."""
    return [
        ("release_no_body", "POST", RELEASE),
        ("resume_no_body", "POST", RESUME),
        ("release_wrong_type", "POST", RELEASE, {"tags": "weights"}),
        ("release_bad_json", "POST", RELEASE, b"{not json"),
        ("release_put", "PUT", RELEASE, {}),
        ("release_unknown_tag", "POST", RELEASE, {"tags": ["nonsense"]}),
        ("resume_unknown_tag", "POST", RESUME, {"tags": ["nonsense"]}),
        ("release_null_unpaused", "POST", RELEASE, {"tags": None}),
        ("resume_null_unpaused", "POST", RESUME, {"tags": None}),
        ("memory_pause", "POST", "/pause_generation", {"mode": "retract"}),
        ("memory_flush", "POST", "/flush_cache"),
        ("release_kv", "POST", RELEASE, {"tags": ["kv_cache"]}),
        ("release_weights", "POST", RELEASE, {"tags": ["weights"]}),
        ("server_info_released", "GET", "/server_info"),
        ("loads_released", "GET", "/v1/loads"),
        ("ready_released", "GET", "/ready"),
        ("checker_released", "GET", "/weights_checker"),
        ("resume_weights", "POST", RESUME, {"tags": ["weights"]}),
        ("checker_resumed", "GET", "/weights_checker"),
        ("memory_update", "POST", "/update_weights_from_disk", {"model_path": first}),
        ("checker_reloaded", "GET", "/weights_checker"),
        ("resume_kv_get", "GET", RESUME, {"tags": ["kv_cache"]}),
        ("memory_continue", "POST", "/continue_generation", {}),
        ("generate_after_memory", "POST", "/generate", greedy("hello")),
        ("health_after_memory", "GET", "/health"),
        ("ready_after_memory", "GET", "/ready"),
    ]


def frozen(mode: str) -> Sequence[Row]:
    """A pause that keeps requests, what can be asked during it, and its end."""
    return [
        (f"pause_{mode}_busy", "POST", "/pause_generation", {"mode": mode}),
        (f"server_info_{mode}_busy", "GET", "/server_info"),
        (f"loads_{mode}_busy", "GET", "/v1/loads"),
        (f"flush_{mode}_busy", "POST", "/flush_cache"),
        (f"flush_{mode}_busy_timeout", "POST", "/flush_cache?timeout=1"),
        (f"continue_{mode}_busy", "POST", "/continue_generation", {}),
    ]


BUSY: Sequence[Row] = [
    ("loads_busy", "GET", "/v1/loads?include=core,queues"),
    ("flush_busy", "POST", "/flush_cache"),
    ("flush_busy_timeout", "POST", "/flush_cache?timeout=0.2"),
    ("health_busy", "GET", "/health"),
    ("abort_one", "POST", "/abort_request", {"rid": "running-0"}),
]

ABORT_ALL: Sequence[Row] = [("abort_all_busy", "POST", "/abort_request", {"abort_all": True})]
PAUSE_ABORT: Sequence[Row] = [("pause_abort_busy", "POST", "/pause_generation", {})]

#: A pause by abort as the adapter asks for it.
RETRACT_ABORT: Sequence[Row] = [
    ("retract_abort_pause", "POST", "/pause_generation", {"mode": "retract"}),
    ("retract_abort_all", "POST", "/abort_request", {"abort_all": True}),
    ("retract_abort_flush", "POST", "/flush_cache"),
    ("retract_abort_flush_timeout", "POST", "/flush_cache?timeout=1"),
    ("retract_abort_loads", "GET", "/v1/loads"),
    ("retract_abort_ready", "GET", "/ready"),
    ("retract_abort_ping", "GET", "/ping"),
    ("retract_abort_again", "POST", "/pause_generation", {"mode": "retract"}),
    ("retract_abort_all_again", "POST", "/abort_request", {"abort_all": True}),
    ("retract_abort_own", "POST", "/pause_generation", {"mode": "abort"}),
]

# What kills a real server, one way a start. The last request of each gets no answer, some five seconds later.
KILLS: dict[str, Sequence[Row]] = {
    "resume_not_released": [("resume_not_released", "POST", RESUME, {"tags": ["weights"]})],
    "resume_all_of_some": [
        ("kill_release_kv", "POST", RELEASE, {"tags": ["kv_cache"]}),
        ("resume_all_of_some", "POST", RESUME, {}),
    ],
    # Without a memory saver the second release is answered like the first.
    "release_twice": [
        ("kill_release_weights", "POST", RELEASE, {"tags": ["weights"]}),
        ("release_twice", "POST", RELEASE, {"tags": ["weights"]}),
    ],
    "release_busy": [("release_busy", "POST", RELEASE, {"tags": ["kv_cache"]})],
    "bad_load_format": [
        ("bad_load_format", "POST", "/update_weights_from_disk", {"model_path": "x", "load_format": "nonsense"}),
    ],
}
