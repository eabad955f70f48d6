"""The points of a cycle: each effect on each engine, before it, between it and its reply, and after its reply.

Nothing is listed here: a cycle is run once, and what its adapters were asked is the list.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lifecycle import Engine, Fleet
from lifecycle.core.calls import Call
from lifecycle.core.sources import Kept, Source

#: `before`: its intent is committed, and nothing was sent. `sent`: the request has left, and no reply was read.
#: `replied`: the reply was read, and its record is not committed.
Boundary = Literal["before", "sent", "replied"]
BOUNDARIES: tuple[Boundary, ...] = ("before", "sent", "replied")

#: Who is hit there: the driver is killed; an engine; both; or nobody, and a second driver comes.
Hit = Literal["driver", "engine", "driver and engine", "second driver"]
HITS: tuple[Hit, ...] = ("driver", "engine", "driver and engine", "second driver")

#: How the cycle is driven.
Drive = Literal["moves", "commands"]
DRIVES: tuple[Drive, ...] = ("moves", "commands")


@dataclass(frozen=True, slots=True)
class Effect:
    """What an adapter was asked that acts on its engine, the n-th time (of 1, 2...) in this command."""

    engine: int
    command: str
    what: str
    nth: int

    def __str__(self) -> str:
        return f"{self.command}: {self.what}" + (f" ({self.nth})" if self.nth > 1 else "")


@dataclass(frozen=True, slots=True)
class Point:
    """Where somebody is hit."""

    effect: Effect
    boundary: Boundary

    def __str__(self) -> str:
        return f"e{self.effect.engine}, {self.effect}, {self.boundary}"


@dataclass(slots=True)
class Trace:
    """The effects of a cycle in the order in which they began, and how long each command took at most."""

    effects: list[Effect] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def points(self) -> list[Point]:
        """Every point of it."""
        return [Point(effect, boundary) for effect in self.effects for boundary in BOUNDARIES]


class Counted:
    """Names what adapters are asked, as it begins. Of a proof that is asked until it holds, only the first time."""

    def __init__(self, fleet: Fleet) -> None:
        self._counts: Counter[tuple[int, str, str]] = Counter()
        self._fleet = fleet

    def begins(self, engine: Engine, what: str, *, polled: bool) -> Effect | None:
        """The effect that begins now; None where it is a proof that was asked before."""
        index, command = self._fleet.engines.index(engine), engine._session.busy or "no command"
        self._counts[index, command, what] += 1
        nth = self._counts[index, command, what]
        return None if polled and nth > 1 else Effect(index, command, what, nth)


Within = Callable[[Effect, Callable[[], Coroutine[Any, Any, Any]]], Coroutine[Any, Any, Any]]


def hooked(fleet: Fleet, within: Within) -> None:
    """Every effect on an engine of the fleet goes through `within`, which is given what does it."""
    counted = Counted(fleet)
    for engine in fleet:
        _hook(engine, counted, within)


def _hook(engine: Engine, counted: Counted, within: Within) -> None:
    adapter: Any = engine.adapter
    send, answers = adapter.send, adapter.answers
    prove_idle, idle_within = adapter.prove_idle, getattr(adapter, "idle_within", None)

    async def through(what: str, polled: bool, act: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        effect = counted.begins(engine, what, polled=polled)
        return await (act() if effect is None else within(effect, act))

    async def hooked_send(call: Call, *, deadline_s: float) -> Any:
        tags = "".join(f" {tag}" for tag in call.args.get("tags", ()))
        return await through(call.name + tags, False, lambda: send(call, deadline_s=deadline_s))

    async def hooked_prove_idle(facts: Any, *, deadline_s: float) -> Any:
        return await through("proof that it is idle", True, lambda: prove_idle(facts, deadline_s=deadline_s))

    async def hooked_idle_within(facts: Any, *, wait_s: float, deadline_s: float) -> Any:
        wait = {"wait_s": wait_s, "deadline_s": deadline_s}
        return await through("proof that it is idle", True, lambda: idle_within(facts, **wait))

    async def hooked_answers(probe: Any, *, deadline_s: float) -> Any:
        return await through("proof that it answers", True, lambda: answers(probe, deadline_s=deadline_s))

    adapter.send, adapter.answers = hooked_send, hooked_answers
    adapter.prove_idle = hooked_prove_idle
    if idle_within is not None:
        adapter.idle_within = hooked_idle_within


async def cycle(fleet: Fleet, source: Source, drive: Drive) -> None:
    """Offload to onload, by the two moves or command by command."""
    if drive == "moves":
        await fleet.offload(weights=source)
        await fleet.onload()
        return
    await fleet.pause()
    await fleet.drain()
    await fleet.release(weights=source)
    await fleet.restore_weights()
    if not isinstance(source, Kept):
        await fleet.update_weights(source)
    await fleet.restore_kv()
    await fleet.resume()


async def traced(fleet: Fleet, source: Source, drive: Drive) -> Trace:
    """What a whole cycle asks of the engines."""
    trace, began = Trace(), dict[str, float]()

    async def within(effect: Effect, act: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        trace.effects.append(effect)
        began.setdefault(effect.command, time.monotonic())
        try:
            return await act()
        finally:
            trace.seconds[effect.command] = time.monotonic() - began[effect.command]

    hooked(fleet, within)
    await cycle(fleet, source, drive)
    return trace


@dataclass(frozen=True, slots=True)
class Case:
    """A point, who is hit there, how the cycle is driven, and where the recovery goes first."""

    point: Point
    hit: Hit
    drive: Drive
    through_released: bool
    fresh: bool

    def __str__(self) -> str:
        way = "released, then serving" if self.through_released else "serving"
        folder = "of this cycle alone" if self.fresh else "of cycles before too"
        return f"{self.hit} hit at [{self.point}] of a cycle by {self.drive}; recovered to {way}; records {folder}"


def cases(traces: dict[Drive, Trace], offset: int) -> list[Case]:
    """Every point with everybody who may be hit there. Ways to drive and to recover take turns from one to the next."""
    by_drive = {drive: trace.points() for drive, trace in traces.items()}
    every = sorted(dict.fromkeys(point for drive in DRIVES for point in by_drive[drive]), key=str)
    found = []
    for number, point in enumerate(every):
        for turn, hit in enumerate(HITS, start=number + offset):
            drive = DRIVES[turn % 2]
            if point not in by_drive[drive]:
                drive = next(each for each in DRIVES if point in by_drive[each])
            found.append(Case(point, hit, drive, through_released=turn // 2 % 2 == 1, fresh=turn // 4 % 2 == 0))
    return found


def whole(every: Sequence[Case], offset: int) -> list[Case]:
    """All cases in which the driver alone is killed; of the others each point on one engine, which take turns."""
    kinds = {kind: number for number, kind in enumerate(dict.fromkeys(_kind(case) for case in every))}
    return [
        case for case in every if case.hit == "driver" or (kinds[_kind(case)] + offset) % 3 == case.point.effect.engine
    ]


def _kind(case: Case) -> tuple[str, str, str]:
    return str(case.point.effect), case.point.boundary, case.hit


def spread(every: Sequence[Case], count: int, *, seed: int, part: int) -> list[Case]:
    """So many of the cases, from this seed: over commands, boundaries and those who are hit. `part` is which of several
    such choices from one seed this is: together they are spread too."""
    order = random.Random(seed)
    commands = _shuffled(order, dict.fromkeys(case.point.effect.command for case in every))
    boundaries, hits = _shuffled(order, BOUNDARIES), _shuffled(order, HITS)
    draw, chosen = random.Random(f"{seed} {part}"), list[Case]()
    for number in range(part * count, (part + 1) * count):
        turn = number + number // len(commands)
        command = commands[number % len(commands)]
        hit, boundary = hits[turn % len(hits)], boundaries[turn % len(boundaries)]
        left = [case for case in every if case not in chosen]
        for wanted in (hit, command, boundary):  # a wish that none fulfils is left out
            left = [
                case for case in left if wanted in (case.hit, case.point.effect.command, case.point.boundary)
            ] or left
        chosen.append(draw.choice(left))
    return chosen


def _shuffled(order: random.Random, given: Iterable[Any]) -> list[Any]:
    return order.sample(found := sorted(given), len(found))
