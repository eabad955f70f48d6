"""The commands that move engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import typer

from ..core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ..core.errors import ConfigurationError
from ..core.sources import FromDisk
from ..core.states import State
from ..core.transition import Transition
from ..engine.engine import Engine
from ..fleet.fleet import Fleet
from ..rules.desired import source_after_release
from ..rules.planner import Goal
from . import FAILED, OK, TOLD, Interrupted, code_of, told
from .dry import arrived, planned, towards
from .live import watching
from .options import Chosen, command
from .parity import Parity
from .report import cycle_lines, record_of


@dataclass(frozen=True, slots=True)
class Doing:
    """What a command does with a fleet, and what it would send to one engine.

    With `at_once` it is also given the engines that are there already: the library itself finds nothing to do for them.
    """

    act: Callable[[Fleet, list[Engine]], Awaitable[list[Transition]]]
    plan: Callable[[Engine], Sequence[Command]]
    at_once: bool = False
    #: Filled by `act` where it was asked for.
    parity: Parity | None = None


Make = Callable[[Chosen], Doing]
_COMMANDS: list[tuple[Make, tuple[str, ...]]] = []
_ALL_HAVE = ("urls", "engines", "group", "deadline_s", "threshold_gib", "dry_run", "as_json")


def _moving(*options: str) -> Callable[[Make], Make]:
    """What the function makes is carried out by a command of its name, which takes these options beside the usual."""

    def known(make: Make) -> Make:
        _COMMANDS.append((make, options))
        return make

    return known


def register(app: typer.Typer) -> None:
    """Each is a command of `app`."""
    for make, options in _COMMANDS:
        command(app, *_ALL_HAVE, *options)(_carried_out(make))


def _carried_out(make: Make) -> Callable[[Chosen], int]:
    @wraps(make)
    def carry_out(chosen: Chosen) -> int:
        return _go(chosen, make(chosen))

    return carry_out


@_moving("mode")
def pause(chosen: Chosen) -> Doing:
    """The engines admit no requests."""
    mode = chosen.pause_mode()
    return Doing(
        lambda fleet, some: fleet.pause(mode, engines=some, deadline_s=chosen.deadline_s),
        lambda each: [Pause(mode or each.policy.pause_mode)],
    )


@_moving()
def drain(chosen: Chosen) -> Doing:
    """No request can run a step or hold device memory."""
    return Doing(
        lambda fleet, some: fleet.drain(engines=some, deadline_s=chosen.deadline_s),
        lambda _: [Drain()],
    )


@_moving("tags", "weights", "version")
def release(chosen: Chosen) -> Doing:
    """The memory is back, measured. --weights says where the weights will come from."""
    tags, source, deadline_s = chosen.tag_names(), chosen.source(), chosen.deadline_s

    async def act(fleet: Fleet, some: list[Engine]) -> list[Transition]:
        there = [each for each in some if each.state is State.RELEASED]
        await fleet.offload(tags, weights=source, engines=there, deadline_s=deadline_s)  # sends nothing, or refuses
        rest = [each for each in some if each not in there]
        return await fleet.release(tags, weights=source, engines=rest, deadline_s=deadline_s)

    return Doing(act, lambda each: [Release(tags, source or each.desired.rollback_source)], at_once=True)


@_moving("only", "weights", "version")
def restore(chosen: Chosen) -> Doing:
    """The memory is mapped again: weights, loaded where --weights names a checkpoint, then KV."""
    only, deadline_s, source = chosen.only, chosen.deadline_s, chosen.source()
    if only not in (None, "weights", "kv"):
        raise ConfigurationError(f"--only {only!r}: weights or kv")
    if only == "kv" and source is not None:
        raise ConfigurationError("--only kv leaves the weights alone; leave out --weights")
    update = source if isinstance(source, FromDisk) else None

    async def act(fleet: Fleet, some: list[Engine]) -> list[Transition]:
        done: list[Transition] = []
        if only != "kv":
            unmapped = [each for each in some if each.state is not State.WEIGHTS_RESTORED]
            done = await fleet.restore_weights(engines=unmapped, deadline_s=deadline_s)
        if update is not None:
            done = await fleet.update_weights(update, engines=some, deadline_s=deadline_s)
        return done if only == "weights" else await fleet.restore_kv(engines=some, deadline_s=deadline_s)

    def plan(_: Engine) -> list[Command]:
        stages: list[Command] = [] if only == "kv" else [RestoreWeights()]
        stages += [UpdateWeights(update)] if update is not None else []
        return stages if only == "weights" else [*stages, RestoreKV()]

    return Doing(act, plan)


@_moving()
def resume(chosen: Chosen) -> Doing:
    """The engines admit requests again, and have generated a token."""
    return Doing(
        lambda fleet, some: fleet.resume(engines=some, deadline_s=chosen.deadline_s),
        lambda _: [Resume()],
    )


@_moving("tags", "weights", "version", "mode")
def offload(chosen: Chosen) -> Doing:
    """Pause, drain and release, each step on all engines before the next; on failure the others serve again."""
    tags, source, mode = chosen.tag_names(), chosen.source(), chosen.pause_mode()
    return Doing(
        lambda fleet, some: fleet.offload(tags, weights=source, mode=mode, engines=some, deadline_s=chosen.deadline_s),
        lambda each: towards(each, [_away(each, chosen)]),
        at_once=True,
    )


@_moving()
def onload(chosen: Chosen) -> Doing:
    """Back to serving: weights from the source that was named at the release, KV, and admission."""
    return Doing(
        lambda fleet, some: fleet.onload(engines=some, deadline_s=chosen.deadline_s),
        lambda each: towards(each, [_home(each)]),
        at_once=True,
    )


@_moving("tags", "weights", "version", "mode", "times", "parity")
def cycle(chosen: Chosen) -> Doing:
    """Once round the ring, or several times: offload, then onload, every engine's memory measured."""
    tags, source, mode = chosen.tag_names(), chosen.source(), chosen.pause_mode()
    parity = Parity() if chosen.parity else None

    async def act(fleet: Fleet, some: list[Engine]) -> list[Transition]:
        done: list[Transition] = []
        if parity is not None:
            await parity.meet(some)
        for _ in range(chosen.times):
            window = fleet.offloaded(tags, weights=source, mode=mode, engines=some, deadline_s=chosen.deadline_s)
            async with window as released:
                done += released
        if parity is not None:
            await parity.compare(some)
        return done

    def plan(each: Engine) -> list[Command]:
        away = _away(each, chosen)
        return towards(each, [away, Goal(State.SERVING, weights=away.weights)])

    return Doing(act, plan, at_once=True, parity=parity)


def _away(each: Engine, chosen: Chosen) -> Goal:
    mode = chosen.pause_mode() or each.policy.pause_mode
    return Goal(State.RELEASED, chosen.tag_names(), source_after_release(each.record, chosen.source()), mode)


def _home(each: Engine) -> Goal:
    return Goal(State.SERVING, weights=each.desired.source)


def _go(chosen: Chosen, doing: Doing) -> int:
    """Carries out one command on a fleet, or shows what it would send."""

    async def go() -> int:
        with watching(quiet=chosen.as_json or chosen.dry_run) as observers:
            async with chosen.fleet(observers) as fleet:
                participants = chosen.participants(fleet)
                if chosen.dry_run:
                    print("\n".join(line for each in participants for line in planned(each, doing.plan(each))))
                    return 0
                there = [each for each in participants if arrived(each, doing.plan(each))]
                some = participants if doing.at_once else [each for each in participants if each not in there]
                try:
                    done = await doing.act(fleet, some) if some or not participants else []
                except asyncio.CancelledError:
                    raise Interrupted(_where(some)) from None
        parity = doing.parity or Parity()
        if chosen.as_json:
            records = [record_of(each) for each in done]
            compared = {"parity": parity.found} if doing.parity else {}
            print(json.dumps({"ok": not parity.broken, "done": records, **compared}, indent=2))
        else:
            lines = cycle_lines(done, there)
            print("\n".join([*lines, *(f"{name}: parity {told}" for name, told in parity.found.items())]))
        return FAILED if parity.broken else OK

    return _told_as_json(go) if chosen.as_json else asyncio.run(go())


def _where(engines: Sequence[Engine]) -> str:
    where = ", ".join(f"{each.name} is {each.state}" for each in engines)
    home = all(each.state is State.SERVING for each in engines)
    return f"interrupted; {where}{'' if home else '. `lifecycle onload` brings back what can serve'}"


def _told_as_json(go: Callable[[], Coroutine[Any, Any, int]]) -> int:
    try:
        return asyncio.run(go())
    except TOLD as error:
        done = [record_of(each) for each in getattr(error, "succeeded", ())]
        print(json.dumps({"ok": False, "error": told(error), "done": done}, indent=2))
        return code_of(error)
