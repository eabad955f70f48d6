"""How a scripted engine is brought to a message: the cases that `test_advice` walks from, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import rig
from rig import V1, V2

from lifecycle import Engine, Fleet, FromDisk, State
from lifecycle.core.commands import (
    Command,
    Drain,
    Pause,
    Release,
    RestoreKV,
    RestoreWeights,
    Resume,
    UpdateWeights,
)
from lifecycle.core.errors import FleetError, LifecycleError
from lifecycle.testing import (
    DIE,
    DIE_AFTER,
    HANG,
    HANG_AFTER,
    HANG_LATE,
    LATE,
    LIE,
    LOST,
    LOST_AFTER,
    QUICK,
    REJECTED,
    REJECTED_AFTER,
    RESTART,
    RESTART_AFTER,
    Act,
)

#: Polls are rare on a clock that jumps: a drain would ask a hundred thousand times.
POLICY = replace(QUICK, poll_s=0.5)
BAD = FromDisk("/models/bad", "v9")
RING = [State.SERVING, State.PAUSED, State.DRAINED, State.RELEASED, State.WEIGHTS_RESTORED, State.KV_RESTORED]

engine_in, new_engine = partial(rig.engine_in, policy=POLICY), partial(rig.new_engine, policy=POLICY)

COMMAND: dict[str, Command] = {
    "pause": Pause(),
    "drain": Drain(),
    "release": Release(None, V1),
    "restore_weights": RestoreWeights(),
    "update_weights": UpdateWeights(V2),
    "restore_kv": RestoreKV(),
    "resume": Resume(),
}
ACTS = {
    "rejected": REJECTED,
    "rejected after": REJECTED_AFTER,
    "lost": LOST,
    "lost after": LOST_AFTER,
    "late": LATE,
    "hangs": HANG,
    "hangs after": HANG_AFTER,
    "hangs, late": HANG_LATE,
    "dies": DIE,
    "dies after": DIE_AFTER,
    "restarts": RESTART,
    "restarts after": RESTART_AFTER,
    "a false reply": LIE,
}


@dataclass
class Met:
    """A message that was met, and what would make its cause go away."""

    fleet: Fleet
    engine: Engine
    message: str
    heal: Callable[[], object] = lambda: None
    under_way: asyncio.Task[Any] | None = None


Case = Callable[[], Awaitable[Met]]
CASES: dict[str, Case] = {}


def case(make: Case) -> Case:
    CASES[make.__name__.replace("_", " ")] = make
    return make


async def met(engine: Engine, doing: Awaitable[Any], *, heal: Any = None, fleet: Fleet | None = None) -> Met:
    """The message with which `doing` fails."""
    fleet = fleet or Fleet([engine], policy=engine.policy)
    with pytest.raises((LifecycleError, FleetError)) as raised:
        await doing
    errors = raised.value.exceptions if isinstance(raised.value, FleetError) else [raised.value]
    mine = next(each for each in errors if getattr(each, "engine", "") == engine.name)
    return Met(fleet, engine, str(mine), heal or (lambda: None))


def given(state: State, command: Command) -> Case:
    """A command that has no row in this state."""

    async def make() -> Met:
        engine = await engine_in(state if state in RING or state is State.FAILED else State.DRAINED)
        if state is State.GONE:
            engine.adapter.engine.die("killed")
            await engine.verify()
        assert engine.state is state
        return await met(engine, engine.execute(command))

    return make


def failing(state: State, command: Command, call: str, act: Act) -> Case:
    """A command one of whose calls, or questions, is answered in this way."""

    async def make() -> Met:
        engine = await engine_in(state)
        engine.adapter.script(call, act)
        return await met(engine, engine.execute(command, deadline_s=2.0))

    return make
