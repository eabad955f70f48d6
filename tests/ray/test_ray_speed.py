"""What a phase over many actors costs beside a bare `ray.get` of the same calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
from lifecycle.adapters.declared import About
from lifecycle.adapters.ray import Method, Methods, RayActors

from lifecycle import Engine, Fleet, Grade, Policy, State

pytestmark = pytest.mark.slow

ACTORS = 16
ROUNDS = 12

#: A phase may take this many times as long as `ray.get` of the same calls.
MOST = 1.2


class Timed:
    """An actor whose `work` takes so many seconds."""

    call_s = 0.0

    def set_call_s(self, call_s: float) -> None:
        self.call_s = call_s

    def work(self, tags: Any = None) -> None:
        if self.call_s:
            time.sleep(self.call_s)

    def token(self) -> list[int]:
        return [1]


METHODS = Methods(
    pause={"abort": Method(name="work", repeatable=True)},
    resume="work",
    release=Method(name="work", effects={"weights": "discarded"}),
    restore=Method(name="work", effects={"weights": "resident"}),
    answer="token",
)
CLAIMS = ("admission_closed", "idle", "memory_returned")
POLICY = Policy(unprovable="warn", accept=dict.fromkeys(CLAIMS, Grade.ACKNOWLEDGED))


async def measured(ray: Any, actors: list[Any]) -> tuple[list[float], list[float]]:
    """Seconds of a bare `ray.get` of one call of each actor, and of a pause of a fleet of them, in turn."""
    engines = [
        Engine(RayActors(actor, METHODS, about=About(device="cpu")), name=f"e{number}", policy=POLICY, lease=None)
        for number, actor in enumerate(actors)
    ]
    bare: list[float] = []
    phases: list[float] = []
    async with Fleet(engines, policy=POLICY) as fleet:
        for engine in fleet:
            engine.override_state(State.SERVING, by="the test", reason="they were started just now")
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            ray.get([actor.work.remote() for actor in actors])
            bare.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            await fleet.pause()
            phases.append(time.perf_counter() - begun)
            await fleet.resume()
    return bare[2:], phases[2:]


async def test_a_phase_of_16_actors(
    ray: Any, actor_of: Callable[..., Any], record_property: Callable[..., None]
) -> None:
    """Of calls that take 50 ms a phase takes hardly longer than they do; the figure of null actors is reported."""
    actors = [actor_of(Timed) for _ in range(ACTORS)]
    for call_s in (0.05, 0.0):
        ray.get([each.set_call_s.remote(call_s) for each in actors])
        bare, phases = await measured(ray, actors)
        figures = f"ray.get {median(bare) * 1e3:.1f} ms, pause {median(phases) * 1e3:.1f} ms, {len(bare)} times"
        record_property("report", f"{ACTORS} actors whose calls take {call_s * 1e3:.0f} ms: {figures}, medians")
        if call_s:
            assert min(phases) <= MOST * min(bare), figures
