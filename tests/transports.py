"""How tests transport an engine round the ring: into the source state of a row of the table, and back to serving."""

from __future__ import annotations

from collections.abc import Sequence

from judge import Judge
from observed_engine import ObservedAdapter

from lifecycle import Engine, FromDisk, Policy, Pushed, State
from lifecycle.rules.planner import Goal, next_command
from lifecycle.rules.table import Operation
from lifecycle.testing import KV_CACHE, WEIGHTS, capabilities, scripted

POLICY = Policy(settle_s=1.0, poll_s=0.2)
V1 = FromDisk("/models/step-1", "v1")
V2 = FromDisk("/models/step-2", "v2")


async def push(engines: Sequence[Engine]) -> None:
    """The trainer sends its weights to every engine."""
    for engine in engines:
        await engine.push("tensor")


async def new_engine(name: str = "e", *, cancellable: bool = True) -> Engine:
    """Returns a serving engine whose calls are checked by a judge of its own (`engine.adapter.judge`)."""
    adapter = ObservedAdapter(name, capabilities(WEIGHTS, KV_CACHE, cancellable=cancellable), Judge())
    engine = scripted(adapter, policy=POLICY)
    adapter.wanted = lambda: engine.desired.version
    return await engine.connect()


async def ready(row: Operation, *, cancellable: bool = True) -> Engine:
    """Returns an engine in which the row's command succeeds."""
    engine = await new_engine(cancellable=cancellable)
    if row.command == "update_weights" and row.source is State.PAUSED:
        await engine.pause("freeze")
        return engine
    verbs = iter(RING)
    while engine.state is not row.source or (row.command == "restore_kv" and engine.weights_refusal()):
        await VERBS[next(verbs)](engine)
    return engine


RING = ("pause", "drain", "release", "restore_weights", "update_weights", "restore_kv")
VERBS = {
    "pause": lambda engine: engine.pause(),
    "drain": lambda engine: engine.drain(),
    "release": lambda engine: engine.release(weights=V1),
    "restore_weights": lambda engine: engine.restore_weights(),
    "update_weights": lambda engine: engine.update_weights(V1),
    "update by a push": lambda engine: engine.update_weights(Pushed(push, "v3")),
    "restore_kv": lambda engine: engine.restore_kv(),
    "resume": lambda engine: engine.resume(),
}


async def serve_again(engine: Engine) -> None:
    """Executes the planner's commands until the engine serves."""
    for _ in range(10):
        command = next_command(engine.view(), Goal(State.SERVING, weights=V1))
        if command is None:
            break
        await engine.execute(command)
    assert engine.state is State.SERVING, repr(engine)
