"""The steps of the ring that send a call: the state before each, its command, and its calls."""

from __future__ import annotations

from typing import Literal, get_args

from ...core.calls import Call
from ...core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ...core.states import State
from ...core.transition import Transition
from ...engine.engine import Engine
from .bench import Bench
from .fault_injector import fault_injector

Step = Literal["pause", "drain", "release", "restore_weights", "update_weights", "restore_kv", "resume"]
STEPS: tuple[Step, ...] = get_args(Step)

_SOURCE: dict[Step, State] = {
    "pause": State.SERVING,
    "drain": State.PAUSED,
    "release": State.DRAINED,
    "restore_weights": State.RELEASED,
    "update_weights": State.WEIGHTS_RESTORED,
    "restore_kv": State.WEIGHTS_RESTORED,
    "resume": State.KV_RESTORED,
}


async def engine_before(bench: Bench, step: Step) -> Engine:
    """Returns a newly attached engine in which this step succeeds."""
    engine = await bench.engine_in(_SOURCE[step])
    if step == "restore_kv" and engine.weights_refusal() is not None:
        await engine.update_weights(bench.home)
    return engine


def command_of(bench: Bench, step: Step) -> Command:
    """Returns the command of this step."""
    commands: dict[Step, Command] = {
        "pause": Pause(bench.policy.pause_mode),
        "drain": Drain(),
        "release": Release(None, bench.source),
        "restore_weights": RestoreWeights(),
        "update_weights": UpdateWeights(bench.home, force=True),
        "restore_kv": RestoreKV(),
        "resume": Resume(),
    }
    return commands[step]


def calls_of(bench: Bench, engine: Engine, step: Step) -> tuple[Call, ...]:
    """Returns the calls that the step will send; none where it is an update that the engine cannot do."""
    if step == "update_weights" and "disk" not in engine.capabilities.update:
        return ()
    return fault_injector(engine).plan(command_of(bench, step), engine.facts)


async def execute_step(bench: Bench, engine: Engine, step: Step, *, deadline_s: float | None = None) -> Transition:
    """Executes the step's command."""
    return await engine.execute(command_of(bench, step), deadline_s=deadline_s)
