"""The scenarios: who acts on which engines, and what else may happen."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dead_ends import DeadEnd
from explore import Scenario
from invariants import check, hand_over
from parts import DEADLINE_S, Host, Offloading
from truth import TrueEngine
from world import Deed, Violation, World

from lifecycle import Engine, Fleet, FromDisk, State
from lifecycle.core.facts import TagSpec
from lifecycle.core.states import UNCLAIMED
from lifecycle.core.units import GIB
from lifecycle.testing import KV_CACHE, WEIGHTS, capabilities

#: Tags that hold the same, so that what is resident does not tell which of them is mapped.
ALIKE = (WEIGHTS, TagSpec("kv_cache", "kv", "discarded", WEIGHTS.expected_bytes))

#: A driver is given one engine twice.
TWO_NAMES = "one engine under two names"

#: The trainer's step while the engines are released.
TRAINING_S = 1.0

V1 = FromDisk("/models/step-1", "v1")

Program = Callable[[Host, str, Fleet], Coroutine[Any, Any, None]]
Deeds = Callable[[Host], dict[str, Deed]]


# what a driver does


async def offload(host: Host, who: str, fleet: Fleet) -> None:
    """The memory of every engine is the trainer's."""
    host.offloading[who] = Offloading()
    try:
        await fleet.offload(weights=V1, deadline_s=DEADLINE_S)
        hand_over(host.world, who, host.offloading[who].read)
    finally:
        del host.offloading[who]


async def cycle(host: Host, who: str, fleet: Fleet) -> None:
    """Offload, and onload with new weights."""
    await offload(host, who, fleet)
    await asyncio.sleep(TRAINING_S)
    await fleet.onload(deadline_s=DEADLINE_S)


async def overlapping(host: Host, who: str, fleet: Fleet) -> None:
    """Offload, and onload with new weights, each engine at its own pace."""
    await offload(host, who, fleet)
    await asyncio.sleep(TRAINING_S)
    await fleet.onload(overlap=True, deadline_s=DEADLINE_S)


async def offload_twice(host: Host, who: str, fleet: Fleet) -> None:
    """Offload, and later make sure of it: the second one finds every engine released already."""
    await offload(host, who, fleet)
    await asyncio.sleep(TRAINING_S)
    await offload(host, who, fleet)


async def home(host: Host, who: str, fleet: Fleet) -> None:
    """Whatever was left is brought to serving."""
    found = await fleet.recover(to="serving", weights=V1, deadline_s=DEADLINE_S)
    for name, each in found.items():
        host.world.story.append(f"  {who} is told that {name} is {each.state}: {each.reason}")
    left = [engine for engine in fleet if engine.state not in (*UNCLAIMED, State.SERVING)]
    if left:
        await fleet.onload(weights=V1, engines=left, deadline_s=DEADLINE_S)


async def drives(host: Host, who: str, program: Program, *, own_store: bool = False) -> None:
    """A driver runs the program. Where that fails, or its caller gives up, the same driver brings its engines home."""
    try:
        async with Fleet(host.engines(who, own_store=own_store)) as fleet:
            try:
                await program(host, who, fleet)
            except Violation as found:
                host.world.wrong.append(str(found))
            except (Exception, asyncio.CancelledError) as error:
                host.world.story.append(f"  {who} gets {error!r}")
                if host.world.unread_alone:
                    host.world.wrong.append(f"a reading that could not be made once ended what {who} was about")
                await home(host, who, fleet)
    except Exception as error:
        host.world.story.append(f"  {who} ends with {error!r}")


def begins(host: Host, who: str, program: Program, *, own_store: bool = False) -> None:
    """Such a driver begins."""
    host.world.begin(who, drives(host, who, program, own_store=own_store))


# what else may happen


def driver_is_killed(host: Host) -> dict[str, Deed]:
    """The first driver is killed; what it has sent is lost, takes effect at once, or later."""
    world = host.world

    def runs(sent: bool) -> bool:
        return world.drivers["a"].runs and sent is any(each.who == "a" and each.call for each in world.pending)

    found = {"a is killed": Deed(partial(world.kill, "a"), partial(runs, False))}
    for what in ("is lost", "is done", "comes later"):
        found[f"a is killed, and what it sent {what}"] = Deed(partial(world.kill, "a", what), partial(runs, True))
    return found


def caller_gives_up(host: Host) -> dict[str, Deed]:
    """The caller of the first driver gives up."""
    driver = host.world.drivers["a"]

    def give_up() -> None:
        assert driver.task is not None
        driver.task.cancel()

    return {"the caller of a gives up": Deed(give_up, lambda: driver.runs)}


def another_driver(own_store: bool, host: Host) -> dict[str, Deed]:
    """A second driver, of the same host, goes through a cycle too."""
    words = f"b begins, with {'a' if own_store else 'the same'} store{' of its own' if own_store else ''}"
    return {words: Deed(partial(begins, host, "b", cycle, own_store=own_store))}


def engines_end(host: Host) -> dict[str, Deed]:
    """A process ends, or is replaced by another one."""
    found: dict[str, Deed] = {}
    for name, model in host.world.truth.engines.items():
        acts: dict[str, Callable[[TrueEngine], object]] = {
            "is killed": lambda model: model.die("it was killed"),
            "is started again": lambda model: model.restart(),
        }
        alive = lambda model=model: model.alive  # noqa: E731
        for what, act in acts.items():
            may = alive if what == "is killed" else lambda: True
            found[f"{name} {what}"] = Deed(partial(host.world.somebody_else, name, act), may)
    return found


@dataclass(frozen=True, slots=True)
class Else:
    """What somebody else does to an engine, where it may be done without ending its process."""

    act: Callable[[TrueEngine], object]
    may: Callable[[TrueEngine], bool]


def _is_mapped(model: TrueEngine) -> bool:
    return model.alive and not model.unmapped


def _releases(model: TrueEngine) -> None:
    model.apply("pause", {"mode": "abort"})
    model.apply("release", {"tags": sorted(set(model.sizes) - model.unmapped)})


def _restores(model: TrueEngine) -> None:
    model.apply("restore", {"tags": sorted(model.unmapped)})


def _round_trip(model: TrueEngine) -> None:
    _releases(model)
    _restores(model)


SOMEBODY_ELSE = {
    "pauses": Else(lambda model: model.apply("pause", {"mode": "abort"}), lambda model: model.admission == "open"),
    "continues": Else(
        lambda model: model.apply("resume", {}), lambda model: _is_mapped(model) and model.admission == "closed"
    ),
    "releases": Else(_releases, _is_mapped),
    "restores": Else(_restores, lambda model: model.alive and bool(model.unmapped) and model.admission == "closed"),
    "releases and restores": Else(_round_trip, _is_mapped),
}


def somebody_else(host: Host) -> dict[str, Deed]:
    """Somebody who is no driver of the library pauses an engine, continues it, releases or restores its memory."""
    found: dict[str, Deed] = {}
    for name, model in host.world.truth.engines.items():
        for what, does in SOMEBODY_ELSE.items():
            may = lambda model=model, does=does: model.alive and does.may(model)  # noqa: E731
            found[f"somebody else {what} {name}"] = Deed(partial(host.world.somebody_else, name, does.act), may)
    return found


# a scenario


def scenario(
    name: str,
    *deeds: Deeds,
    program: Program = cycle,
    tags: Sequence[TagSpec] = (WEIGHTS, KV_CACHE),
    engines: int = 1,
    also: Mapping[str, str] | None = None,
    budget: int,
) -> Scenario:
    """A driver runs a program while these deeds may happen; then another brings home what lives.

    `also` are further names of engines, by which drivers have them a second time.
    """

    async def play(world: World) -> list[DeadEnd]:
        caps = capabilities(*tags)
        for number in range(engines):
            world.truth.engines[f"e{number}"] = TrueEngine(f"e{number}", caps)
        host = world.host = Host(world, caps, also or {})
        begins(host, "a", program)
        for each in deeds:
            world.deeds |= each(host)
        await world.until_all_ended()
        world.deeds.clear()
        world.left = 0  # from here on nothing fails
        for who in list(world.drivers):
            world.kill(who)
        begins(host, "z", home)
        await world.until_all_ended()
        lost = [each for each in host.known["z"] if each.state is not State.SERVING]
        return [_dead_end(world, each) for each in lost if world.truth.engines[host.truly(each)].alive]

    return Scenario(f"{name}, {engines} engines, {budget} deviations", play, check, budget)


def _dead_end(world: World, engine: Engine) -> DeadEnd:
    """What is known of the engine, and what an observation and a reading show of it; and what is true."""
    model = world.truth.engines[world.host.truly(engine)]
    seen = f"{model.admission}, {model.running} run, {sum(model.resident.values()) // GIB} GiB, label {model.label}"
    truth = f"unmapped {sorted(model.unmapped)}, {', '.join(map(str, model.contents.values()))}"
    name = re.sub(r"e\d+-boot-\d+", "its boot", f"{engine.state}: {engine.reason}")
    return DeadEnd(name, f"{engine.facts}; {seen}; {name}", truth, world.told())


def all_of(engines: int, budget: int) -> dict[str, Scenario]:
    """Every scenario, by its name."""
    alike = "tags of one size: "
    deeds: dict[str, tuple[Program, tuple[Deeds, ...]]] = {
        "faults of calls": (cycle, ()),
        "a driver is killed": (cycle, (driver_is_killed,)),
        "a caller gives up": (cycle, (caller_gives_up,)),
        "two drivers": (cycle, (partial(another_driver, False),)),
        "two drivers, two stores": (cycle, (partial(another_driver, True),)),
        "engines end": (cycle, (engines_end,)),
        "somebody else acts": (cycle, (somebody_else,)),
        "a second look": (offload_twice, (somebody_else, engines_end)),
        f"{alike}a driver is killed": (cycle, (driver_is_killed,)),
        TWO_NAMES: (cycle, ()),
    }
    if engines > 1:
        deeds["restores at their own pace"] = (overlapping, ())
    return {
        name: scenario(
            name,
            *each,
            program=program,
            tags=ALIKE if name.startswith(alike) else (WEIGHTS, KV_CACHE),
            also={"e0 again": "e0"} if name == TWO_NAMES else {},
            engines=engines,
            budget=0 if name == TWO_NAMES else budget,  # what the other name does is another driver's doing
        )
        for name, (program, each) in deeds.items()
    }
