"""What `vllm_record.py` asks a server that speaks vLLM's dialect: rows as in `questions.py`.

They are for vLLM 0.32.0 on a CPU, where sleep frees nothing, and for `lifecycle engine --dialect vllm:0.32 --cpu-like
--load-tracking`. A sequence leaves the server serving, unless it says otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from questions import Row

COMPLETIONS, CHAT, RPC = "/v1/completions", "/v1/chat/completions", "/collective_rpc"


def greedy(prompt: str | list[str], tokens: int = 8, **more: Any) -> dict[str, Any]:
    """The body of a completion whose answer is the same every time."""
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}


def said(text: str, tokens: int = 4, **more: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0, **more}


def reload(path: str | None = None) -> dict[str, Any]:
    """The body of a reload in place."""
    return {"method": "reload_weights", "kwargs": {"weights_path": path} if path else {}}


OBSERVE: Sequence[Row] = [
    ("health", "GET", "/health"),
    ("ping", "GET", "/ping"),
    ("ping_post", "POST", "/ping"),
    ("version", "GET", "/version"),
    ("load", "GET", "/load"),
    ("is_paused", "GET", "/is_paused"),
    ("is_sleeping", "GET", "/is_sleeping"),
    ("weight_info", "GET", "/weight_info"),
    ("world_size", "GET", "/get_world_size"),
    ("world_size_without_dp", "GET", "/get_world_size?include_dp=false"),
    ("world_size_bad", "GET", "/get_world_size?include_dp=perhaps"),
    ("server_info", "GET", "/server_info"),
    ("server_info_json", "GET", "/server_info?config_format=json"),
    ("server_info_bad", "GET", "/server_info?config_format=xml"),
    ("models", "GET", "/v1/models"),
    ("metrics", "GET", "/metrics"),
    ("unknown_path", "GET", "/no/such/path"),
    ("no_fault_tolerance", "GET", "/fault_tolerance/status"),
    ("no_pause_of_sglang", "POST", "/pause_generation", {}),
]

#: Asked without a key of a server that has one.
WITHOUT_KEY: Sequence[Row] = [
    ("no_key_models", "GET", "/v1/models"),
    ("no_key_completion", "POST", COMPLETIONS, greedy("hello")),
    ("no_key_chat", "POST", CHAT, said("hello")),
    ("no_key_unknown", "GET", "/v1/no/such/path"),
    ("no_key_health", "GET", "/health"),
    ("no_key_is_paused", "GET", "/is_paused"),
    ("no_key_pause", "POST", "/pause"),
    ("no_key_resume", "POST", "/resume"),
    ("no_key_load", "GET", "/load"),
    ("no_key_weight_info", "GET", "/weight_info"),
]

GENERATE: Sequence[Row] = [
    ("completion", "POST", COMPLETIONS, greedy("hello")),
    ("completion_several", "POST", COMPLETIONS, greedy(["hello", "zebra"], 4)),
    ("completion_ids", "POST", COMPLETIONS, {"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0}),
    ("completion_stream", "POST", COMPLETIONS, greedy("hello", 6, stream=True)),
    ("completion_usage", "POST", COMPLETIONS, greedy("hello", 3, stream=True, stream_options={"include_usage": True})),
    ("completion_no_body", "POST", COMPLETIONS),
    ("completion_empty", "POST", COMPLETIONS, {}),
    ("completion_bad_json", "POST", COMPLETIONS, b"{not json"),
    ("completion_wrong_type", "POST", COMPLETIONS, {"prompt": 5}),
    ("completion_zero_tokens", "POST", COMPLETIONS, greedy("hello", 0)),
    ("completion_too_long", "POST", COMPLETIONS, greedy("hello", 1_000_000)),
    ("completion_bad_sampling", "POST", COMPLETIONS, {"prompt": "a", "temperature": -1}),
    ("completion_bad_model", "POST", COMPLETIONS, greedy("hello", 2, model="no-such-model")),
    ("completion_unknown_field", "POST", COMPLETIONS, greedy("hello", 2, nonsense=1)),
    ("completion_get", "GET", COMPLETIONS),
    ("chat", "POST", CHAT, said("hello")),
    ("chat_stream", "POST", CHAT, said("hello", stream=True)),
    ("chat_empty", "POST", CHAT, {}),
]

PAUSE: Sequence[Row] = [
    ("pause", "POST", "/pause"),
    ("pause_again_keep", "POST", "/pause?mode=keep"),
    ("pause_again_wait", "POST", "/pause?mode=wait"),
    ("is_paused_paused", "GET", "/is_paused"),
    ("is_sleeping_paused", "GET", "/is_sleeping"),
    ("health_paused", "GET", "/health"),
    ("reset_prefix_cache_paused", "POST", "/reset_prefix_cache"),
    ("wake_up_bad_tag_paused", "POST", "/wake_up?tags=bogus"),
    ("is_paused_after_bad_tag", "GET", "/is_paused"),
    ("resume_not_paused", "POST", "/resume"),
    ("pause_no_clear", "POST", "/pause?mode=keep&clear_cache=false"),
    ("resume", "POST", "/resume"),
    ("pause_repeated", "POST", "/pause?mode=keep&mode=abort"),
    ("pause_body", "POST", "/pause", {"mode": "bogus"}),
    ("resume_after_body", "POST", "/resume"),
    ("pause_bad_mode", "POST", "/pause?mode=bogus"),
    ("pause_bad_clear", "POST", "/pause?clear_cache=zzz"),
    ("is_paused_after_bad", "GET", "/is_paused"),
    ("pause_get", "GET", "/pause"),
    ("resume_get", "GET", "/resume"),
    ("pause_slash", "POST", "/pause/"),
    ("abort_nobody", "POST", "/abort_requests", {}),
    ("abort_unknown", "POST", "/abort_requests", {"request_ids": ["nope"]}),
    ("abort_no_body", "POST", "/abort_requests"),
    ("abort_bad_json", "POST", "/abort_requests", b"{not json"),
    ("abort_list", "POST", "/abort_requests", [1, 2]),
    ("no_abort", "POST", "/abort", {}),
    ("reset_prefix_cache", "POST", "/reset_prefix_cache"),
    ("reset_prefix_cache_all", "POST", "/reset_prefix_cache?reset_running_requests=true&reset_external=true"),
    ("reset_prefix_cache_bad", "POST", "/reset_prefix_cache?reset_running_requests=perhaps"),
    ("reset_mm_cache", "POST", "/reset_mm_cache"),
    ("reset_encoder_cache", "POST", "/reset_encoder_cache"),
]

SLEEP: Sequence[Row] = [
    ("wake_up_awake", "POST", "/wake_up"),
    ("sleep_0", "POST", "/sleep?level=0"),
    ("wake_up_scheduling", "POST", "/wake_up?tags=scheduling"),
    ("sleep_1", "POST", "/sleep"),
    ("sleep_asleep", "POST", "/sleep?level=2"),
    ("is_sleeping_asleep", "GET", "/is_sleeping"),
    ("is_paused_asleep", "GET", "/is_paused"),
    ("metrics_asleep", "GET", "/metrics"),
    ("wake_up_bogus", "POST", "/wake_up?tags=bogus"),
    ("wake_up_comma", "POST", "/wake_up?tags=weights,kv_cache"),
    ("wake_up_empty", "POST", "/wake_up?tags="),
    ("wake_up_one_is_bad", "POST", "/wake_up?tags=weights&tags=bogus"),
    ("wake_up_scheduling_asleep", "POST", "/wake_up?tags=scheduling"),
    ("release_kv_asleep", "POST", "/release_kv_cache_memory"),
    ("wake_up_weights", "POST", "/wake_up?tags=weights"),
    ("wake_up_weights_again", "POST", "/wake_up?tags=weights"),
    ("wake_up_kv", "POST", "/wake_up?tags=kv_cache"),
    ("is_paused_awake", "GET", "/is_paused"),
    ("sleep_2_wait", "POST", "/sleep?level=2&mode=wait"),
    ("wake_up_body", "POST", "/wake_up", {"tags": ["weights"]}),
    ("sleep_3", "POST", "/sleep?level=3"),
    ("sleep_below_0", "POST", "/sleep?level=-1"),
    ("sleep_word", "POST", "/sleep?level=abc"),
    ("sleep_bad_mode", "POST", "/sleep?mode=bogus"),
    ("is_sleeping_after_bad", "GET", "/is_sleeping"),
    ("sleep_twice_named", "POST", "/sleep"),
    ("wake_up_named_twice", "POST", "/wake_up?tags=weights&tags=weights"),
    ("wake_up_the_rest", "POST", "/wake_up?tags=kv_cache"),
    ("release_kv_serving", "POST", "/release_kv_cache_memory"),
    ("release_kv_pause", "POST", "/pause"),
    ("release_kv", "POST", "/release_kv_cache_memory"),
    ("release_kv_wake_up", "POST", "/wake_up"),
    ("resume_asleep_sleep", "POST", "/sleep"),
    ("resume_asleep", "POST", "/resume"),
    ("is_paused_resumed_asleep", "GET", "/is_paused"),
    ("is_sleeping_resumed_asleep", "GET", "/is_sleeping"),
    ("completion_asleep", "POST", COMPLETIONS, greedy("hello")),
    ("wake_up_last", "POST", "/wake_up"),
    ("completion_awake", "POST", COMPLETIONS, greedy("hello")),
]


def weights(first: str, second: str) -> Sequence[Row]:
    """The calls that move weights from the checkpoint `first` to `second` and back, and those that fail to."""
    return [
        ("reload", "POST", RPC, reload()),
        ("reload_second", "POST", RPC, reload(second)),
        ("reload_reset", "POST", "/reset_prefix_cache"),
        ("completion_second", "POST", COMPLETIONS, greedy("hello")),
        ("reload_first", "POST", RPC, reload(first)),
        ("rpc_unknown", "POST", RPC, {"method": "no_such_method"}),
        ("rpc_no_method", "POST", RPC, {}),
        ("rpc_no_body", "POST", RPC),
        ("rpc_bad_json", "POST", RPC, b"{not json"),
        ("rpc_get", "GET", RPC),
        ("label", "POST", "/update_weight_version", {"new_version": "v7"}),
        ("weight_info_labelled", "GET", "/weight_info"),
        ("label_missing", "POST", "/update_weight_version", {}),
        ("label_wrong_type", "POST", "/update_weight_version", {"new_version": 7}),
        ("label_back", "POST", "/update_weight_version", {"new_version": "default"}),
        ("checksum", "POST", "/weight_checker", {"action": "checksum"}),
        ("compare_without", "POST", "/weight_checker", {"action": "compare"}),
        ("compare_empty", "POST", "/weight_checker", {"action": "compare", "baseline": {}}),
        ("checker_bad_action", "POST", "/weight_checker", {"action": "nonsense"}),
        ("start_update", "POST", "/start_weight_update"),
        ("start_draft_update", "POST", "/start_draft_weight_update"),
        ("update", "POST", "/update_weights", {"update_info": {}}),
        ("update_missing", "POST", "/update_weights", {}),
        ("finish_update", "POST", "/finish_weight_update"),
        ("init_transfer", "POST", "/init_weight_transfer_engine", {"init_info": {}}),
        ("init_transfer_missing", "POST", "/init_weight_transfer_engine", {}),
        ("shutdown_transfer", "POST", "/shutdown_weight_transfer_engine"),
        ("reload_asleep_sleep", "POST", "/sleep?level=2"),
        ("reload_asleep", "POST", RPC, reload(first)),
        ("reload_wake_weights", "POST", "/wake_up?tags=weights"),
        ("reload_half_awake", "POST", RPC, reload(first)),
        ("reload_wake_up", "POST", "/wake_up?tags=kv_cache"),
        ("completion_reloaded", "POST", COMPLETIONS, greedy("hello")),
    ]


#: Asked while streams and one call that is no stream are in flight. Each ends with what lets the server serve again.
BUSY: dict[str, Sequence[Row]] = {
    "abort": [("pause_abort_busy", "POST", "/pause"), ("load_abort_busy", "GET", "/load")],
    "keep": [
        ("pause_keep_busy", "POST", "/pause?mode=keep"),
        ("reset_keep_busy", "POST", "/reset_prefix_cache"),
        ("metrics_keep_busy", "GET", "/metrics"),
    ],
    "freeze": [
        ("pause_freeze_busy", "POST", "/pause?mode=keep&clear_cache=false"),
        ("reset_freeze_busy", "POST", "/reset_prefix_cache"),
        ("release_kv_freeze_busy", "POST", "/release_kv_cache_memory"),
    ],
    "wait": [("pause_wait_busy", "POST", "/pause?mode=wait")],
    "slept": [("sleep_keep_busy", "POST", "/sleep?mode=keep"), ("is_sleeping_slept_busy", "GET", "/is_sleeping")],
    "abort_requests": [("abort_requests_busy", "POST", "/abort_requests", {})],
}

#: What ends the engine core.
KILL: Sequence[Row] = [
    ("reload_bad_path", "POST", RPC, reload("/no/such/checkpoint")),
    ("health_after_bad_reload", "GET", "/health"),
    ("completion_on_meta", "POST", COMPLETIONS, greedy("hello")),
]
