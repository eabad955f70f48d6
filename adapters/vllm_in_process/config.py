"""What the configuration of a vLLM in this process says, in the form in which a server tells its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import psutil

from lifecycle.core.errors import ConfigurationError
from lifecycle.core.readings import Process
from lifecycle.nodes.processes import by_pid

#: The parts of the configuration from which capabilities are read, with their attributes.
_PARTS: Mapping[str, tuple[str, ...]] = {
    "model_config": ("model", "enable_cumem_allocator", "enable_sleep_mode"),
    "device_config": ("device", "device_type"),
    "parallel_config": ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
}

#: What may be there or not; only that counts.
_CONNECTORS = ("kv_transfer_config", "ec_transfer_config", "weight_transfer_config")


def config_of(vllm_config: Any) -> dict[str, Any]:
    """The parts of `/server_info` from which capabilities are read, of an engine's `vllm_config`."""
    config: dict[str, Any] = {"instance_id": str(vllm_config.instance_id)}
    for part, names in _PARTS.items():
        found = getattr(vllm_config, part, None)
        config[part] = {name: getattr(found, name, None) for name in names}
    config["device_config"]["device"] = str(config["device_config"]["device"] or "") or None
    for name in _CONNECTORS:
        config[name] = getattr(vllm_config, name, None) is not None or None
    return config


def engine_processes(core_client: Any) -> tuple[Process, ...] | None:
    """The processes in which the engine runs: its cores', or this one where its core is in it.

    None where they are not children of this process (Ray's actors), so that nothing here can measure them.
    """
    resources = getattr(core_client, "resources", None)
    if resources is None:
        return (by_pid(os.getpid()),)
    manager = getattr(resources, "engine_manager", None)
    cores = getattr(manager, "processes", None)
    if not cores:
        return None
    try:
        return tuple(by_pid(core.pid) for core in cores)
    except psutil.NoSuchProcess as ended:
        raise ConfigurationError(
            f"its engine core has ended ({ended}); start it again, and connect that one"
        ) from ended
