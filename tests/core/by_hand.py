"""The table once more, written by hand: the tests judge the real one by it, and nothing in it is derived."""

from __future__ import annotations

#: Written by hand: (state, command) -> (under way in, leads to). What does not stand here is illegal.
LEGAL = {
    ("serving", "pause"): ("pausing", "paused"),
    ("paused", "pause"): ("repausing", "paused"),
    ("paused", "drain"): ("draining", "drained"),
    ("paused", "update_weights"): ("updating_live", "paused"),
    ("paused", "resume"): ("resuming", "serving"),
    ("drained", "release"): ("releasing", "released"),
    ("drained", "update_weights"): ("updating_in_place", "drained"),
    ("drained", "resume"): ("resuming", "serving"),
    ("released", "restore_weights"): ("restoring_weights", "weights_restored"),
    ("weights_restored", "release"): ("releasing", "released"),
    ("weights_restored", "update_weights"): ("updating_weights", "weights_restored"),
    ("weights_restored", "restore_kv"): ("restoring_kv", "kv_restored"),
    ("kv_restored", "release"): ("releasing", "released"),
    ("kv_restored", "resume"): ("resuming", "serving"),
}

#: Written by hand: what each row asks before, and sees after.
_RELEASE = (
    "still_idle memory_saver_enabled hook_mode_safe tags_releasable weights_recoverable bytes_visible host_has_room "
    "mapping_borne_out",
    "tags_unmapped memory_returned",
)
_RESUME = ("all_mapped mapping_borne_out weights_valid cache_fresh", "answers")
CHECKS = {
    ("serving", "pause"): ("mode_supported derouted", "admission_closed"),
    ("paused", "pause"): ("mode_change_safe", "admission_closed"),
    ("paused", "drain"): ("mode_drains", "admission_closed idle"),
    ("drained", "release"): _RELEASE,
    ("weights_restored", "release"): _RELEASE,
    ("kv_restored", "release"): _RELEASE,
    ("released", "restore_weights"): (
        "cotenants_within_budget device_has_room mapping_borne_out",
        "weights_mapped admission_closed",
    ),
    ("weights_restored", "update_weights"): ("source_ready mapping_borne_out", "weights_match admission_closed"),
    ("drained", "update_weights"): ("source_ready mapping_borne_out", "weights_match cache_fresh admission_closed"),
    ("paused", "update_weights"): (
        "live_update_supported source_ready mapping_borne_out",
        "weights_match admission_closed",
    ),
    ("weights_restored", "restore_kv"): (
        "weights_valid cotenants_within_budget device_has_room mapping_borne_out",
        "kv_mapped cache_fresh admission_closed",
    ),
    ("kv_restored", "resume"): _RESUME,
    ("drained", "resume"): _RESUME,
    ("paused", "resume"): _RESUME,
}
