"""What is wrong with handles, maps of methods, actors and Ray itself is said before anything is called."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lifecycle.adapters.ray import MILES, SLIME, Method, RayActors, actor_named
from ray_actors import MilesEngine, SlimeEngine
from test_ray_failures import PLAIN, Rank

from lifecycle import ConfigurationError, Engine, Fleet, Policy
from lifecycle.core.calls import Call
from lifecycle.core.errors import NothingListens

pytestmark = pytest.mark.slow


def printed(code: str) -> str:
    """What this prints in a process of its own."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return ran.stdout + ran.stderr


NOT_INITIALISED = """
import ray
from lifecycle.adapters.ray import SLIME, RayActors
try:
    RayActors([], SLIME)
except Exception as error:
    print(type(error).__name__, error)
print("initialised" if ray.is_initialized() else "left alone")
"""


def test_ray_that_is_not_initialised(ray: Any) -> None:
    """Ray would start a cluster of its own, unasked."""
    said = printed(NOT_INITIALISED)
    assert "ConfigurationError" in said
    assert "Ray is not initialised in this process; call ray.init() first" in said
    assert "left alone" in said


AFTER_SHUTDOWN = """
import asyncio, os
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
from lifecycle.core.calls import Call
from lifecycle.adapters.ray import Method, Methods, RayActors

class Rank:
    def go(self, tags=None): ...

PLAIN = Methods(pause={"abort": "go"}, resume="go", release=Method(name="go", effects={"weights": "discarded"}),
                restore=Method(name="go", effects={"weights": "resident"}))

def started():
    ray.init(num_cpus=1, object_store_memory=80 << 20, include_dashboard=False, logging_level="ERROR")

started()
adapter = RayActors(ray.remote(num_cpus=0)(Rank).remote(), PLAIN)
ray.shutdown()
for start in (None, started):
    if start:
        start()
    reply = asyncio.run(adapter.send(Call("pause_abort"), deadline_s=5))
    print(reply.outcome, reply.refused, reply.detail)
    if not start:
        print("initialised" if ray.is_initialized() else "left alone")
ray.shutdown()
"""


def test_handles_of_a_ray_that_was_shut_down(ray: Any) -> None:
    said = printed(AFTER_SHUTDOWN)
    assert "lost True it was not called" in said
    assert "Ray is not initialised in this process" in said
    assert "left alone" in said
    assert said.count("lost True it was not called") == 2, said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "an engine needs a handle of at least one actor; an empty slot is no engine"),
        (None, "a handle of an actor is needed, got None"),
        ("engine-0", r"'engine-0' is the name of an actor, and no handle; give actor_named\('engine-0'\)"),
        (["twice", "twice"], "stands twice among the ranks of an engine"),
    ],
    ids=str,
)
def test_what_is_no_handle(ray: Any, actor_of: Callable[..., Any], given: Any, said: str) -> None:
    if given == ["twice", "twice"]:
        given = [actor_of(Rank)] * 2
    with pytest.raises(ConfigurationError, match=said):
        RayActors(given, PLAIN)


def test_a_class_of_actors_is_no_handle(ray: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"is a class of actors, and no handle; give what its .remote\(\)"):
        RayActors(ray.remote(Rank), PLAIN)


def test_missing_methods_are_named(ray: Any, actor_of: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        RayActors(actor_of(Rank), SLIME)
    said = str(wrong.value)
    assert "its actor has no method pause_generation (pause), continue_generation (resume)" in said
    assert "release_memory_occupation (release)" in said
    assert "get_url or get_server_host with get_server_port (url)" in said
    assert "; it has other, release. Name them by a map" in said


def test_arguments_that_a_method_does_not_take(ray: Any, actor_of: Callable[..., Any], tmp_path: Path) -> None:
    slime = actor_of(SlimeEngine, str(tmp_path), starts=False)
    with pytest.raises(ConfigurationError, match=r"pause_generation\(\) takes no 'mode', which it is to be given"):
        RayActors(slime, replace(MILES, load=None, push_begins=None, push_ends=None, url=SLIME.url))
    with pytest.raises(ConfigurationError, match=r"update_weights_from_disk\(\) needs 'model_path' \(load\)"):
        RayActors(actor_of(MilesEngine, str(tmp_path), starts=False), replace(MILES, load=Method(name=MILES.load.name)))


async def test_an_argument_that_cannot_be_pickled(ray: Any, actor_of: Callable[..., Any], tmp_path: Path) -> None:
    adapter = RayActors(actor_of(SlimeEngine, str(tmp_path), starts=False), SLIME)
    call = Call("update_weights_from_tensor", {"serialized_named_tensors": [threading.Lock()]})
    reply = await adapter.send(call, deadline_s=5)
    assert (reply.outcome, reply.refused) == ("lost", True)
    assert "it was not called: Could not serialize the argument" in reply.detail
    assert "every argument of update_weights_from_tensor() must be one that can be pickled" in reply.detail


async def test_an_actor_that_was_adopted_under_another_name(
    ray: Any, actor_of: Callable[..., Any], tmp_path: Path
) -> None:
    actor = actor_of(SlimeEngine, str(tmp_path), options={"name": "engine-0", "namespace": "adopted"})
    told = await actor.about.remote()
    again = actor_named("engine-0", "adopted")
    with pytest.raises(ConfigurationError, match=r"URL ray:\w+ stands twice in the fleet"):
        Fleet([Engine(RayActors(actor, SLIME), name="a"), Engine(RayActors(again, SLIME), name="b")])
    other = actor_of(SlimeEngine, str(tmp_path), 1, starts=False)
    policy = Policy(residual_threshold_gib=0.5)
    engines = [
        Engine(RayActors(actor, SLIME), name="a", policy=policy, lease=None),
        Engine(RayActors(other, SLIME, url=told["url"]), name="b", policy=policy, lease=None),
    ]
    with pytest.raises(
        ConfigurationError, match=r"a \(ray:\w+\) and b \(ray:\w+\) are one engine: they share the boot"
    ):
        async with Fleet(engines):
            pass


def test_a_name_that_no_actor_has(ray: Any, actor_of: Callable[..., Any]) -> None:
    kept = actor_of(Rank, options={"name": "engine-7"})
    with pytest.raises(ConfigurationError, match=r"no actor 'engine-9' lives in .*lifecycle-tests/engine-7"):
        actor_named("engine-9")
    assert actor_named("engine-7") == kept


async def test_a_placement_group_that_is_gone(ray: Any, actor_of: Callable[..., Any], tmp_path: Path) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundles = placement_group([{"CPU": 1}])
    await bundles.ready()
    actor = actor_of(Rank, options={"scheduling_strategy": PlacementGroupSchedulingStrategy(bundles, 0)})
    adapter = RayActors(actor, PLAIN)
    engine = Engine(adapter, name="e", lease=None)
    await adapter.connect(deadline_s=20)
    remove_placement_group(bundles)
    with pytest.raises(
        NothingListens, match="its placement group is gone: create that again, and then create the actor"
    ):
        while True:  # until Ray has removed it
            try:
                await adapter.connect(deadline_s=20)
            except NothingListens:
                raise
            except ConfigurationError as early:  # its process has ended, and Ray does not say so yet
                if "no process of it was found" not in str(early):
                    raise
    with pytest.raises(ConfigurationError, match="placement group is gone"):
        await engine.connect()


async def test_an_actor_that_is_never_started(ray: Any, actor_of: Callable[..., Any]) -> None:
    adapter = RayActors(actor_of(Rank, options={"resources": {"nowhere": 1}}), PLAIN)
    with pytest.raises(ConfigurationError, match=r"has not started the actor of rank 0 in 0\.5 s .*PENDING_CREATION"):
        await adapter.connect(deadline_s=0.5)


@pytest.mark.parametrize("said", [None, 7, "nonsense:", {"url": None}, "https://10.0.0.1:1"], ids=str)
async def test_an_actor_that_says_no_address(ray: Any, actor_of: Callable[..., Any], said: Any) -> None:
    methods = replace(PLAIN, url=("release",), server="sglang")
    adapter = RayActors(actor_of(Rank, answer=said), methods)
    with pytest.raises(ConfigurationError, match="its server listens at no address that can be read"):
        await adapter.connect(deadline_s=10)


async def test_a_server_that_does_not_listen(ray: Any, actor_of: Callable[..., Any]) -> None:
    adapter = RayActors(actor_of(Rank), replace(PLAIN, server="sglang"), url="http://127.0.0.1:1")
    with pytest.raises(NothingListens, match=r"ray:\w+: .*nothing listens there"):
        await adapter.connect(deadline_s=10)
    with pytest.raises(ConfigurationError, match=r"url='127.0.0.1:1' says where, and Methods\(server=\) does not what"):
        RayActors(actor_of(Rank), PLAIN, url="127.0.0.1:1")


async def test_the_error_of_a_dead_actor_says_what_to_do(ray: Any, actor_of: Callable[..., Any]) -> None:
    actor = actor_of(Rank)
    adapter = RayActors(actor, PLAIN)
    await adapter.connect(deadline_s=10)
    ray.kill(actor)
    with pytest.raises(
        NothingListens, match=r"dead; create the actor again, and give the new handle \(The actor is dead"
    ):
        await adapter.connect(deadline_s=10)
