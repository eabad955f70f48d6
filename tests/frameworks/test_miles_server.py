"""miles' rollout server: tags, its words for pause modes, and slots that hold a handle once they are allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from frameworks.servers import Actors, Group, push

from lifecycle import ConfigurationError, Fleet, FleetError, Kept
from lifecycle.frameworks.miles import RolloutServer
from lifecycle.testing import CUDA_GRAPH, KV_CACHE, WEIGHTS


@dataclass
class ServerEngine:
    """A slot of miles'. Source: miles, ray/rollout/server_engine.py: actor_handle exists once it is allocated."""

    handle: str | None = None

    @property
    def is_allocated(self) -> bool:
        return self.handle is not None

    @property
    def actor_handle(self) -> str:
        assert self.handle is not None, "not allocated"
        return self.handle


def server_of(actors: Actors, *groups: Group, **options: Any) -> RolloutServer:
    return RolloutServer.of(groups, actors.engine_of, policy=actors.policy, **options)


@pytest.mark.parametrize(("mode", "ours"), [(None, "keep"), ("retract", "keep"), ("abort", "abort")])
async def test_requests_in_flight_are_retracted_unless_they_are_to_be_aborted(mode: Any, ours: str) -> None:
    actors = Actors()
    async with server_of(actors, Group(["a"]), **({} if mode is None else {"mode": mode})) as server:
        await server.offload()
    assert actors.calls()[0] == f"a: pause({ours})"


@pytest.mark.parametrize(("mode", "why"), [("in_place", "; requests that are frozen in place hold"), ("wait", "$")])
async def test_a_mode_in_which_nothing_can_be_released_is_refused(mode: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"mode must be one of retract, abort, got '{mode}'{why}"):
        server_of(Actors(), Group(["a"]), mode=mode)
    with pytest.raises(ConfigurationError, match="mode must be one of"):
        RolloutServer(Fleet([Actors().engine_of("a")]), mode=mode)


async def test_the_tags_that_are_named_go_and_come_back() -> None:
    actors = Actors(tags=(WEIGHTS, KV_CACHE, CUDA_GRAPH))
    async with server_of(actors, Group(["a", "b"])) as server:
        await server.offload(["kv_cache", "cuda_graph"], weights=Kept())
        assert actors.made["a"].facts.unmapped() == {"kv_cache", "cuda_graph"}
        await server.onload(["kv_cache", "cuda_graph"])
        assert actors.states == dict.fromkeys("ab", "serving")
        await server.offload()
        await server.onload(["weights"])
        assert actors.states == dict.fromkeys("ab", "weights_restored")
        async with server.updating_weights("v1") as engines:
            await push(engines)
        await server.onload(["kv_cache"])
        assert actors.states == dict.fromkeys("ab", "serving")


async def test_all_at_once_where_the_trainer_pushes_is_refused_after_the_weights() -> None:
    """Without a push between there is nothing to serve: `onload()` stops at weights_restored."""
    actors = Actors()
    async with server_of(actors, Group(["a"])) as server:
        await server.offload()
        with pytest.raises(FleetError, match="push them first"):
            await server.onload()
        assert actors.states == {"a": "weights_restored"}


async def test_slots_that_are_not_allocated_are_passed_over_and_one_with_a_new_handle_is_a_new_engine() -> None:
    actors, slots = Actors(), [ServerEngine("a"), ServerEngine()]
    async with server_of(actors, Group(slots), Group([ServerEngine("t")], needs_offload=False)) as server:
        assert len(await server.offload()) == 1
        await server.onload_weights()
        slots[1].handle = "b"
        assert len(await server.recover()) == 1
        assert actors.states == {"a": "weights_restored", "b": "weights_restored"}
        slots[1].handle = "c"
        assert len(await server.recover()) == 1
        assert "b: aclose" in map(str, actors.journal)
        assert [engine.name for engine in await server.engines()] == ["a", "c"]


async def test_over_a_fleet() -> None:
    actors = Actors()
    async with Fleet([actors.engine_of("a")]) as fleet:
        server = RolloutServer(fleet, update_weights=False)
        with pytest.raises(FleetError, match="weights_recoverable"):
            await server.offload()
        assert repr(server).startswith("<RolloutServer ")
