"""The variables that an engine needs reach its processes, however its actor was created.

The processes are asked by /proc, and not the actor.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray_actors import until

from lifecycle.launch.runtime_env import EVERY_GPU, runtime_env
from lifecycle.nodes.process_env import environ_of

pytestmark = pytest.mark.slow

#: A library that every process can preload.
LIBRARY = "libm.so.6"

MADE = runtime_env(
    "sglang",
    "preload",
    None,
    base={"env_vars": {"LD_PRELOAD": LIBRARY, "PYTHONPATH": str(Path(__file__).parent)}},
    threshold_gib=2.5,
    every_gpu=True,
)
NEEDED = MADE["env_vars"]


class Starter:
    """An actor that starts a process, as those of engines do."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def pids(self) -> tuple[int, int]:
        """Its own, and that of the process, which ends with it."""
        return os.getpid(), self.process.pid

    def create(self, **options: Any) -> tuple[int, int]:
        """The pids of another such actor that is created in this one."""
        import ray

        self.other = ray.remote(num_cpus=0)(Starter).options(**options).remote()
        pids: tuple[int, int] = ray.get(self.other.pids.remote())
        return pids

    def options_of_python(self) -> dict[str, Any]:
        return dict(sys._xoptions)

    def end(self) -> None:
        os._exit(1)


def create_in_a_task() -> Any:
    """An actor that is created in a task, and outlives it."""
    import ray

    actor = ray.remote(num_cpus=0)(Starter).options(name="of a task", lifetime="detached").remote()
    ray.get(actor.pids.remote())
    return actor


def must_have_all(pids: tuple[int, int], **others: str) -> None:
    """The actor's process, and that which it started, have all that is needed, and these."""
    for pid in pids:
        environ = environ_of(pid)
        assert {name: environ.get(name) for name in NEEDED} == NEEDED
        assert {name: environ.get(name) for name in others} == others
    assert LIBRARY in Path(f"/proc/{pids[1]}/maps").read_text(), "it was preloaded"


async def test_an_actor_with_it(ray: Any, actor_of: Callable[..., Any]) -> None:
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundles = placement_group([{"CPU": 1}])
    await bundles.ready()
    inside = {"scheduling_strategy": PlacementGroupSchedulingStrategy(bundles, 0), "num_cpus": 0.5}
    for options in ({}, {"name": "fixed", "lifetime": "detached"}, inside):
        must_have_all(await actor_of(Starter, options={**options, "runtime_env": MADE}).pids.remote())
    remove_placement_group(bundles)


async def test_actors_that_such_an_actor_creates(ray: Any, actor_of: Callable[..., Any]) -> None:
    """They inherit it, also where they have variables of their own."""
    actor = actor_of(Starter, options={"runtime_env": MADE})
    must_have_all(await actor.create.remote())
    must_have_all(await actor.create.remote(runtime_env={"env_vars": {"OWN": "1"}}), OWN="1")


async def test_an_actor_that_a_task_creates(ray: Any, actor_of: Callable[..., Any]) -> None:
    actor = await ray.remote(num_cpus=0)(create_in_a_task).options(runtime_env=MADE).remote()
    try:
        must_have_all(await actor.pids.remote())
    finally:
        ray.kill(actor)


async def test_an_actor_that_ray_has_restarted(ray: Any, actor_of: Callable[..., Any]) -> None:
    actor = actor_of(Starter, options={"runtime_env": MADE, "max_restarts": 1})
    before = await actor.pids.remote()
    must_have_all(before)
    with pytest.raises(ray.exceptions.RayActorError):
        await actor.end.remote()
    await until(lambda: not Path(f"/proc/{before[0]}").exists())
    after = await actor.pids.options(max_task_retries=-1).remote()
    assert after[0] != before[0]
    must_have_all(after)


async def test_the_executable_of_a_runtime_env_is_kept(ray: Any, actor_of: Callable[..., Any]) -> None:
    base = {"py_executable": f"{sys.executable} -X utf8", "env_vars": NEEDED}
    made = runtime_env("sglang", "preload", None, base=base)
    actor = actor_of(Starter, options={"runtime_env": made})
    pids = await actor.pids.remote()
    assert await actor.options_of_python.remote() == {"utf8": True}
    must_have_all(pids)


async def test_no_other_actor_has_it(ray: Any, actor_of: Callable[..., Any]) -> None:
    """The tests above would not fail where Ray's own processes had these variables from elsewhere."""
    pids = await actor_of(Starter).pids.remote()
    assert EVERY_GPU not in environ_of(pids[1])
    assert "NCCL_GRAPH_REGISTER" not in environ_of(pids[1])
