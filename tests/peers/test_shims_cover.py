"""What the shims of SkyRL and verl do not cover is refused at the first call, before any engine is asked anything.

The peers' modules are empty here, since nothing of them is called before that.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Manager:
    """verl's, as far as the shim asks it."""

    def __init__(self, backend: str, *replicas: Any) -> None:
        self.backend, self.replicas = backend, list(replicas)


def served_as_adapter(model_config: Any) -> bool:
    """As verl 0.9.1 says it, of FSDP's settings."""
    return model_config.lora_rank > 0 and not model_config.lora.get("merge", False)


SKYRL = "skyrl.backends.skyrl_train"
MODULES: dict[str, dict[str, Any]] = {
    f"{SKYRL}.inference_servers.remote_inference_client": {"RemoteInferenceClient": type("Client", (), {})},
    f"{SKYRL}.weight_sync.control_plane": {"SkyrlWeightSyncClient": object},
    f"{SKYRL}.workers.worker_dispatch": {"WorkerDispatch": type("Dispatch", (), {})},
    "ray": {},
    "requests": {},
    "verl.checkpoint_engine.base": {"CheckpointEngineManager": Manager},
    "verl.utils.ray_utils": {"auto_await": lambda method: method},
    "verl.workers.rollout.sglang_rollout.utils": {"lora_served_as_adapter": served_as_adapter},
}


class Reached(Exception):
    """The shim went on to its engines."""


def reached(*given: Any, **options: Any) -> Any:
    raise Reached


def shim(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the shim, over empty modules of its peer."""
    for path, has in MODULES.items():
        module = ModuleType(path)
        module.__dict__.update(has)
        monkeypatch.setitem(sys.modules, path, module)
    spec = importlib.util.spec_from_file_location(f"{name}_over_nothing", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    monkeypatch.setattr(loaded.Fleet, "connect", reached)
    return loaded


def client(monkeypatch: pytest.MonkeyPatch, *, lora: bool = False) -> Any:
    """SkyRL's client over the shim."""
    made = shim("skyrl_shim", monkeypatch).ManagedClient()
    made.uses_lora_weight_sync, made.server_urls, made.weight_version = lora, ["http://127.0.0.1:9"], 0
    return made


def test_skyrl_sleeps_where_all_weights_are_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Reached):
        asyncio.run(client(monkeypatch).sleep())


@pytest.mark.parametrize(
    ("options", "lora"),
    [({"level": 1}, False), ({"tags": ["kv_cache"]}, False), ({}, True), ({"level": 1}, True)],
    ids=["level 1", "tags", "lora", "lora at level 1"],
)
def test_skyrl_does_not_sleep_where_weights_would_be_lost(
    options: dict[str, Any], lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SkyRL itself sleeps with level 1 then, which keeps the base weights on the host."""
    with pytest.raises(NotImplementedError, match="only level 2 of all tags is covered here"):
        asyncio.run(client(monkeypatch, lora=lora).sleep(**options))


def test_skyrl_wakes_and_pushes_nothing_that_did_not_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an adapter alone is synced, to engines that are awake."""
    made = client(monkeypatch)
    with pytest.raises(NotImplementedError, match="were not put to sleep before"):
        asyncio.run(made.wake_up(["weights"]))
    dispatch = sys.modules[f"{SKYRL}.workers.worker_dispatch"].__dict__["WorkerDispatch"]
    managed = next(each for each in dispatch.__subclasses__() if each.__module__ == type(made).__module__)
    with pytest.raises(NotImplementedError, match="were not put to sleep before"):
        managed()._broadcast_to_inference_engines(made)


def test_skyrl_wakes_weights_and_then_kv_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    made = client(monkeypatch)
    made.fleet = SimpleNamespace(restore_weights=reached, onload=reached)
    with pytest.raises(NotImplementedError, match=r"wake_up\(tags=\['lora'\]\)"):
        asyncio.run(made.wake_up(["lora"]))
    for tags in (["weights"], ["kv_cache"], None):
        with pytest.raises(Reached):
            asyncio.run(made.wake_up(tags))


def replica(*, rank: int = 0, merge: bool = False, wakes: bool = False) -> Any:
    """One of verl's, with what its settings say."""
    model = SimpleNamespace(lora_rank=rank, lora={"merge": merge})
    return SimpleNamespace(
        model_config=model, config=SimpleNamespace(free_cache_engine=wakes), server_address="127.0.0.1:9"
    )


@pytest.mark.parametrize("given", [replica(), replica(rank=8, merge=True)], ids=["full weights", "merged"])
def test_verl_sleeps_where_all_weights_are_pushed(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = shim("verl_shim", monkeypatch).ManagedCheckpointEngineManager("naive", given)
    with pytest.raises(Reached):
        asyncio.run(manager.sleep_replicas())


@pytest.mark.parametrize(
    ("backend", "given", "why"),
    [
        ("nccl", replica(), "only 'naive' is covered"),
        ("naive", replica(rank=8), r"set model\.lora\.merge=True"),
        ("naive", replica(wakes=True), r"set rollout\.free_cache_engine=False"),
    ],
    ids=["another backend", "lora", "verl wakes them too"],
)
def test_verl_does_not_sleep_where_it_is_not_covered(
    backend: str, given: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = shim("verl_shim", monkeypatch).ManagedCheckpointEngineManager(backend, replica(), given)
    with pytest.raises(NotImplementedError, match=why):
        asyncio.run(manager.sleep_replicas())


def test_verl_pushes_to_nothing_that_did_not_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = shim("verl_shim", monkeypatch).ManagedCheckpointEngineManager("naive", replica())
    with pytest.raises(NotImplementedError, match=r"sleep_replicas\(\) comes before"):
        asyncio.run(manager.update_weights(1))
