"""What `tokenspeed_record.py` asks tokenspeed's control plane, real and loopback's: rows as in `questions.py`.

A sequence leaves the server serving.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from questions import Row

PAUSE, CONTINUE, ABORT = "/pause_generation", "/continue_generation", "/abort_request"
RELEASE, RESTORE = "/release_memory_occupation", "/resume_memory_occupation"
MOONCAKE, DISTRIBUTED = "/update_weights_from_mooncake", "/update_weights_from_distributed"


def greedy(rid: str, text: str, tokens: int = 8) -> dict[str, Any]:
    """The body of a generation of so many tokens."""
    return {
        "rid": rid,
        "text": text,
        "sampling_params": {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True},
    }


#: Asked without a key of a server that has one, and then with a wrong one.
WITHOUT_KEY: Sequence[Row] = [
    ("no_key_pause", "POST", PAUSE, {}),
    ("no_key_version", "GET", "/get_weight_version"),
    ("no_key_health", "GET", "/health_generate"),
    ("no_key_loads", "GET", "/v1/loads"),
]

OBSERVE: Sequence[Row] = [
    ("health_generate", "GET", "/health_generate"),
    ("weight_version", "GET", "/get_weight_version"),
    ("model_info", "GET", "/model_info"),
    ("loads", "GET", "/v1/loads"),
    ("flush_get", "GET", "/flush_cache"),
    ("flush_post", "POST", "/flush_cache"),
    ("generate", "POST", "/generate", greedy("g-1", "hello")),
    ("unknown_path", "GET", "/no/such/path"),
    ("pause_get", "GET", PAUSE),
    ("release_get", "GET", RELEASE),
]

GATE: Sequence[Row] = [
    ("pause_without_body", "POST", PAUSE),
    ("pause_again", "POST", PAUSE, {"mode": "wait"}),
    ("loads_paused", "GET", "/v1/loads"),
    ("health_generate_paused", "GET", "/health_generate"),
    ("flush_paused", "GET", "/flush_cache"),
    ("pause_keep", "POST", PAUSE, {"mode": "keep"}),
    ("pause_abort", "POST", PAUSE, {"mode": "abort"}),
    ("pause_bad_mode", "POST", PAUSE, {"mode": "retract"}),
    ("pause_number", "POST", PAUSE, {"mode": 5}),
    ("pause_bad_json", "POST", PAUSE, b"{not json"),
    ("pause_list", "POST", PAUSE, [1]),
    ("continue", "POST", CONTINUE),
    ("continue_not_paused", "POST", CONTINUE, {}),
    ("generate_continued", "POST", "/generate", greedy("g-2", "hello")),
    ("abort_unknown", "POST", ABORT, {"rid": "nobody"}),
    ("abort_nothing", "POST", ABORT, {}),
    ("abort_without_body", "POST", ABORT),
    ("abort_all_idle", "POST", ABORT, {"abort_all": True}),
    ("pause_before_abort_all", "POST", PAUSE, {}),
    ("abort_all_paused", "POST", ABORT, {"abort_all": True}),
    ("generate_after_abort_all", "POST", "/generate", greedy("g-3", "hello")),
]

MEMORY: Sequence[Row] = [
    ("release_bad_tag", "POST", RELEASE, {"tags": ["cuda_graph"]}),
    ("release_word", "POST", RELEASE, {"tags": "weights"}),
    ("release_bad_json", "POST", RELEASE, b"{not json"),
    ("resume_not_released", "POST", RESTORE, {"tags": ["weights"]}),
    ("resume_bad_tag", "POST", RESTORE, {"tags": ["weights", "bogus"]}),
    ("pause_to_release", "POST", PAUSE, {}),
    ("release_all", "POST", RELEASE),
    ("release_again", "POST", RELEASE, {"tags": ["weights", "kv_cache"]}),
    ("release_kv_again", "POST", RELEASE, {"tags": ["kv_cache"]}),
    ("continue_released", "POST", CONTINUE, {}),
    ("pause_released", "POST", PAUSE, {}),
    ("abort_all_released", "POST", ABORT, {"abort_all": True}),
    ("loads_released", "GET", "/v1/loads"),
    ("resume_weights", "POST", RESTORE, {"tags": ["weights"]}),
    ("resume_weights_again", "POST", RESTORE, {"tags": ["weights"]}),
    ("resume_both_again", "POST", RESTORE, {"tags": ["kv_cache", "weights"]}),
    ("continue_half_released", "POST", CONTINUE, {}),
    ("release_weights_of_half", "POST", RELEASE, {"tags": ["weights"]}),
    ("resume_what_is_released", "POST", RESTORE),
    ("continue_restored", "POST", CONTINUE, {}),
    ("generate_restored", "POST", "/generate", greedy("g-4", "hello")),
    ("release_without_pause", "POST", RELEASE, {"tags": ["kv_cache"]}),
    ("resume_without_pause", "POST", RESTORE, {"tags": ["kv_cache"]}),
    ("generate_without_pause", "POST", "/generate", greedy("g-5", "hello")),
    ("release_none", "POST", RELEASE, {"tags": []}),
    ("continue_frozen", "POST", CONTINUE, {}),
    ("resume_none", "POST", RESTORE, {"tags": []}),
    ("continue_thawed", "POST", CONTINUE, {}),
    ("pause_to_resume_none", "POST", PAUSE, {}),
    ("resume_none_paused", "POST", RESTORE, {"tags": []}),
    ("continue_resumed_none", "POST", CONTINUE, {}),
    ("generate_thawed", "POST", "/generate", greedy("g-6", "hello")),
]

WEIGHTS: Sequence[Row] = [
    ("from_disk", "POST", "/update_weights_from_disk", {"model_path": "/w"}),
    ("from_tensor", "POST", "/update_weights_from_tensor", {"serialized_named_tensors": []}),
    ("distributed_missing", "POST", DISTRIBUTED, {}),
    ("distributed_uneven", "POST", DISTRIBUTED, {"names": ["a"], "dtypes": [], "shapes": []}),
    ("distributed_no_group", "POST", DISTRIBUTED, {"names": ["a"], "dtypes": ["float32"], "shapes": [[1]]}),
    ("init_missing", "POST", "/init_weights_update_group", {"master_address": "127.0.0.1"}),
    ("destroy", "POST", "/destroy_weights_update_group"),
    ("mooncake_missing", "POST", MOONCAKE, {}),
    ("mooncake_truth", "POST", MOONCAKE, {"version": True}),
    ("mooncake_word", "POST", MOONCAKE, {"version": "3"}),
    ("mooncake_no_store", "POST", MOONCAKE, {"version": 3}),
    ("label", "POST", "/update_weight_version", {"new_version": "v2"}),
    ("label_missing", "POST", "/update_weight_version", {}),
    ("weight_version_after", "GET", "/get_weight_version"),
    ("rebalance", "POST", "/rebalance_experts"),
]

#: While requests run: each is answered once they have ended.
WAIT: Sequence[Row] = [("wait", "POST", PAUSE, {"mode": "wait"}), ("continue_after_wait", "POST", CONTINUE, {})]
ABORTED: Sequence[Row] = [("abort", "POST", PAUSE, {"mode": "abort"}), ("continue_after_abort", "POST", CONTINUE, {})]
RELEASED: Sequence[Row] = [
    ("release", "POST", RELEASE, {"tags": ["weights", "kv_cache"]}),
    ("resume_after_release", "POST", RESTORE, {"tags": ["weights", "kv_cache"]}),
    ("continue_after_release", "POST", CONTINUE, {}),
]
ABORT_ALL: Sequence[Row] = [("abort_all", "POST", ABORT, {"abort_all": True})]
#: While a pause waits.
BEHIND_A_PAUSE: Sequence[Row] = [
    ("release_behind_a_pause", "POST", RELEASE, {"tags": ["kv_cache"]}),
    ("resume_behind_a_pause", "POST", RESTORE, {"tags": []}),
    ("continue_before_it", "POST", CONTINUE, {}),
]
#: While a release waits.
BEHIND_A_RELEASE: Sequence[Row] = [
    ("pause_behind_a_release", "POST", PAUSE, {"mode": "keep"}),
    ("continue_before_the_release", "POST", CONTINUE, {}),
]
