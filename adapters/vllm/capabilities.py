"""Reads a vLLM server's capabilities and identity from the configuration in its `/server_info`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lifecycle.core.capabilities import Capabilities, PauseTraits
from lifecycle.core.facts import Grade, PauseMode, SizeGrade, Tag, TagSpec
from lifecycle.core.sources import FromDisk

from .answers import whole
from .versions import Effects

#: The label of the weights of a server that nobody loaded any into. Source: vllm 0.27.1 and later, v1/engine/core.py.
LAUNCH_VERSION = "default"

Way = Literal["disk", "push", "live"]

TAGS: tuple[Tag, ...] = ("weights", "kv_cache")

PAUSE_MODES: Mapping[PauseMode, PauseTraits] = {
    "abort": PauseTraits(drains=True),
    "wait": PauseTraits(drains=True),
    "keep": PauseTraits(drains=True, keeps_requests=True),
    "freeze": PauseTraits(drains=False, keeps_requests=True, keeps_kv=True, live_update=True),
}


def capabilities_of(
    config: Mapping[str, Any],
    version: str,
    effects: Effects,
    *,
    sizes: Mapping[str, int] | None = None,
    label: str | None = None,
    notes: tuple[str, ...] = (),
) -> Capabilities:
    """What this server can do.

    It tells nothing of how many bytes its tags hold: `sizes` gives them, else the first proved release does. `label` is
    that of its weights at connect.
    """
    device, saves = _device(config), _saves(config)
    # vLLM's own on a CPU refuses, and has KV down as asleep from then on; measured.
    releases_kv = effects.releases_kv and not (device == "cpu" and saves is None)
    releasable = {frozenset(TAGS)} | ({frozenset({"kv_cache"})} if releases_kv else set())
    update: frozenset[Way] = frozenset({"disk", "live"})
    if config.get("weight_transfer_config"):
        update |= {"push"}
    return Capabilities(
        engine="vLLM",
        version=version[:80],
        tags=(
            TagSpec("weights", "weights", "as_wanted", (sizes or {}).get("weights"), SizeGrade.TENSORS),
            TagSpec("kv_cache", "kv", "discarded", (sizes or {}).get("kv_cache"), SizeGrade.TENSORS),
        ),
        pause=PAUSE_MODES,
        releasable=frozenset(releasable),
        memory_saver=saves,
        saver="cumem",
        saver_option="--enable-sleep-mode",
        update=update,
        device=device,
        ranks=_ranks(config),
        evidence={
            "idle": Grade.REPORTED,
            "weights_match": Grade.REPORTED if effects.labels else Grade.ACKNOWLEDGED,
            "answers": Grade.MEASURED,
        },
        launch_source=_launch_source(config, label),
        notes=(*notes, *_notes(saves, device, push="push" in update), *_ranks_notes(config, effects)),
    )


def boot_of(config: Mapping[str, Any]) -> str:
    """The identity of the server process: the time of its start in nanoseconds, or five random hexadecimal digits.

    Source: vllm 0.22.1 to 0.33.0, config/vllm.py; the time was measured on 0.32.0. Random digits are the same in one of
    a million restarts: a driver on the engine's host joins them with pid and start time.
    """
    return str(config["instance_id"])[:80]


def counts_requests_alone(config: Mapping[str, Any]) -> bool:
    """Whether a server whose `wait` is not answered says thereby that requests run, and not that KV is transferred.

    Source: vllm 0.32.0, v1/core/sched/scheduler.py, `has_requests`; read.
    """
    return not config.get("kv_transfer_config") and not config.get("ec_transfer_config")


def one_front_end(config: Mapping[str, Any]) -> bool:
    """Whether one API server alone counts the requests of `/load`. Source: vllm 0.32.0, config/parallel.py."""
    return (whole(_part(config, "parallel_config").get("_api_process_count")) or 1) == 1


def own_cores(config: Mapping[str, Any]) -> int:
    """The data-parallel ranks behind this server: one behind an external balancer, else those of its node, or all.

    Source: vllm 0.32.0, config/parallel.py (local_engines_only), v1/engine/core_client.py (engine_ranks_managed).
    """
    parallel = _part(config, "parallel_config")
    if parallel.get("data_parallel_external_lb") is True:
        return 1
    local = parallel.get("data_parallel_hybrid_lb") is True
    return whole(parallel.get("data_parallel_size_local" if local else "data_parallel_size")) or 1


def first_core_speaks(config: Mapping[str, Any], effects: Effects) -> bool:
    """Whether `/is_paused` tells of the first of several data-parallel ranks alone. A pause is sent to all of them.

    Source: vllm 0.30.0, v1/engine/core_client.py (DPLBAsyncMPClient.call_utility_async).
    """
    return own_cores(config) > 1 and not effects.compares_ranks


def tells_faults(config: Mapping[str, Any], effects: Effects) -> bool:
    """Whether `/fault_tolerance/status` exists. Source: vllm 0.32.0, entrypoints/launchers/api_server/routers.py."""
    return effects.fault_status and _part(config, "parallel_config").get("enable_fault_tolerance") is True


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _device(config: Mapping[str, Any]) -> Literal["cuda", "cpu"] | None:
    """What it runs on. Over HTTP `device_config` has `device` and no `device_type`; measured on 0.32.0."""
    part = _part(config, "device_config")
    device = str(part.get("device") or part.get("device_type")).partition(":")[0]
    return "cpu" if device == "cpu" else "cuda" if device == "cuda" else None


def _saves(config: Mapping[str, Any]) -> bool | None:
    """Whether a sleep can free memory; None where only a release can tell.

    On CUDA memory comes from pools that can be unmapped only with `enable_cumem_allocator`, which --enable-sleep-mode
    turns on. On the CPU a sleep frees nothing and is answered all the same: its release measures that.
    Source: vllm 0.32.0, config/model.py, v1/worker/gpu_worker.py, v1/worker/cpu_worker.py.
    """
    model = _part(config, "model_config")
    switches = [model.get("enable_cumem_allocator"), model.get("enable_sleep_mode")]
    if True in switches:
        return True
    return None if _device(config) == "cpu" or False not in switches else False


def _ranks(config: Mapping[str, Any]) -> int:
    parallel = _part(config, "parallel_config")
    ranks = own_cores(config)
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        ranks *= whole(parallel.get(name)) or 1
    return ranks


def _launch_source(config: Mapping[str, Any], label: str | None) -> FromDisk | None:
    """The checkpoint of the launch; None where something may have been loaded since, under a label or without one."""
    path = _part(config, "model_config").get("model")
    return FromDisk(path, label) if isinstance(path, str) and path and label == LAUNCH_VERSION else None


def _notes(saves: bool | None, device: str | None, *, push: bool) -> tuple[str, ...]:
    notes = []
    if saves is False:
        notes.append("started without --enable-sleep-mode: a sleep would answer 200 and free nothing")
    if saves is None and device == "cpu":
        notes.append("on the CPU: vLLM's own sleep frees nothing there, and answers 200")
    if not push:
        notes.append("started without --weight-transfer-config: it takes no push")
    return tuple(notes)


def _ranks_notes(config: Mapping[str, Any], effects: Effects) -> tuple[str, ...]:
    if not first_core_speaks(config, effects):
        return ()
    said = "several data-parallel ranks, of which this version says only whether the first is paused"
    return (f"{said}: that all are closed is known of a pause of this driver alone",)
