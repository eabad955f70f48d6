"""The steps of the ring that send something: how to come before each, what each sends, and how it is taken."""

from __future__ import annotations

from typing import Literal, get_args

from ..core.calls import Call
from ..core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ..core.states import State
from ..core.transition import Transition
from ..engine.engine import Engine
from .conformance_bench import Bench, meddled

Step = Literal["pause", "drain", "release", "restore_weights", "update_weights", "restore_kv", "resume"]
STEPS: tuple[Step, ...] = get_args(Step)

_BEFORE: dict[Step, State] = {
    "pause": State.SERVING,
    "drain": State.PAUSED,
    "release": State.DRAINED,
    "restore_weights": State.RELEASED,
    "update_weights": State.WEIGHTS_RESTORED,
    "restore_kv": State.WEIGHTS_RESTORED,
    "resume": State.KV_RESTORED,
}


async def before(bench: Bench, step: Step) -> Engine:
    """A newly attached engine that can take this step next."""
    engine = await bench.engine_in(_BEFORE[step])
    if step == "restore_kv" and engine.weights_refusal() is not None:
        await engine.update_weights(bench.home)
    return engine


def command_of(bench: Bench, step: Step) -> Command:
    """The command that takes this step."""
    commands: dict[Step, Command] = {
        "pause": Pause("abort"),
        "drain": Drain(),
        "release": Release(None, bench.source),
        "restore_weights": RestoreWeights(),
        "update_weights": UpdateWeights(bench.home, force=True),
        "restore_kv": RestoreKV(),
        "resume": Resume(),
    }
    return commands[step]


def calls_of(bench: Bench, engine: Engine, step: Step) -> tuple[Call, ...]:
    """What the step will send."""
    return meddled(engine).plan(command_of(bench, step), engine.facts)


async def take(bench: Bench, engine: Engine, step: Step, *, deadline_s: float | None = None) -> Transition:
    """The step was taken."""
    return await engine.execute(command_of(bench, step), deadline_s=deadline_s)
