"""What differs between the releases of vLLM, as far as its lifecycle endpoints are concerned.

Source: the released packages, of each range those that it names; 0.32.0 was also run. Files of 0.32.0:
entrypoints/serve/dev/sleep/api_router.py, entrypoints/rl/online/api_router.py, v1/engine/core.py (pause_scheduler,
sleep, wake_up, release_kv_cache_memory), v1/executor/abstract.py (sleep, wake_up, discard).

Of all of them: the pause modes abort, wait and keep, the sleep levels 0, 1 and 2, the tags weights and kv_cache; all
parameters are in the query, and a body is ignored; a tag that is none is answered with 200; the wake that leaves
nothing asleep resumes the scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..versions import VersionRange, VersionTable


@dataclass(frozen=True, slots=True)
class Effects:
    """What a release of vLLM has and does. Each default is that of the oldest.

    - `refuses_new`: a request that comes while it is paused by abort or wait gets 503 `engine_paused`; else it queues.
    - `answers_status`: `/sleep` and `/wake_up` answer with what they did; else with an empty 200.
    - `sleeps_half_awake`: `/sleep` acts while KV alone is asleep; else it is answered and does nothing.
    - `releases_kv`: `/release_kv_cache_memory` exists.
    - `labels`: `/update_weight_version` and `/weight_info` exist, and `/finish_weight_update` takes a version.
    - `says_reset`: `/reset_prefix_cache` says whether it did; else it is answered with 200 whatever came of it.
    - `start_needs_body`: `/start_weight_update` is refused without a JSON body.
    - `checks_weights`: `/weight_checker` exists.
    - `compares_ranks`: `/is_paused` is refused where data-parallel ranks differ; else it tells of the first alone.
    - `fault_status`: `/fault_tolerance/status` exists where it was started with --enable-fault-tolerance.
    """

    refuses_new: bool = False
    answers_status: bool = False
    sleeps_half_awake: bool = False
    releases_kv: bool = False
    labels: bool = False
    says_reset: bool = False
    start_needs_body: bool = False
    checks_weights: bool = False
    compares_ranks: bool = False
    fault_status: bool = False


_V22 = Effects(start_needs_body=True)
_V25 = Effects()
_V26 = replace(_V25, says_reset=True)
_V27 = replace(_V26, labels=True, fault_status=True)
_V31 = replace(_V27, releases_kv=True, sleeps_half_awake=True)
_V32 = replace(_V31, answers_status=True, checks_weights=True, compares_ranks=True)
_V33 = replace(_V32, refuses_new=True)

VERSIONS = VersionTable(
    "vLLM",
    (
        VersionRange("0.22", "0.25", _V22, "read in 0.22.1, 0.23.0, 0.24.0"),
        VersionRange("0.25", "0.26", _V25, "read in 0.25.1"),
        VersionRange("0.26", "0.27", _V26, "read in 0.26.0"),
        VersionRange("0.27", "0.31", _V27, "read in 0.27.1, 0.28.0, 0.29.0, 0.30.0"),
        VersionRange("0.31", "0.32", _V31, "read in 0.31.0"),
        VersionRange("0.32", "0.33", _V32, "measured on 0.32.0"),
        VersionRange("0.33", "0.34", _V33, "read in 0.33.0"),
    ),
)
