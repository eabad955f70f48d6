"""What must be so in every state, by the truth and not by the table.

A driver is excused only by `truth.Truth`: where it was given the answers that it would have been given had nobody else
acted, and its call or claim would be right then. Beside that, a driver is not held to what it says of an engine on
which another driver of the library has acted since it looked: it finds out once it takes the lease. What it sends is
held against it all the same. Nothing else is excused.

- No call of a driver ends a process, or makes it serve garbage weights or from a stale cache.
- What a driver says of an engine (its state, `memory_is_free`) is so.
- The next tenant is let in where no engine holds memory, and never on a reading from before the offload.
- No two drivers are inside a command of one engine.
- No participant of an offload is sent the first call of its release before all are drained, as far as the driver was
  shown them (`parts.Host.sends`). What is found of one once the releases have begun keeps no other from going on.
- The request of an engine's client runs, is parked or waits at the gate, for as long as the process lives.
- A reading of memory that could not be made says nothing: it ends no command by itself, and is made again.
- A command ends within its deadline. One that is given up before anything was sent leaves the engine where it was.
"""

from __future__ import annotations

from judge import false_claim, fit_to_serve, still_held
from parts import DEADLINE_S
from truth import TrueEngine
from world import Violation, World

from lifecycle import Engine, State
from lifecycle.core.deadline import LOOK_S
from lifecycle.core.states import UNCLAIMED
from lifecycle.engine.gather import LEAST_READ_S

#: What sends nothing that changes an engine, before its lease is taken.
LOOKING = frozenset({"connect", "verify"})

#: A look is given LOOK_S even where the deadline has passed, and a reading LEAST_READ_S: five looks settle an engine.
GRACE_S = 5 * LOOK_S + LEAST_READ_S


def check(world: World) -> None:
    """Raises Violation where something must not be so."""
    if world.wrong:
        raise Violation("; ".join(world.wrong))
    for model in world.truth.engines.values():
        if model.alive and sum(model.requests().values()) != 1:
            raise Violation(f"{model.name}: the request of its client was lost")
    commanding: dict[str, str] = {}
    for who, engine in world.host.living():
        if engine.busy is not None and engine.busy not in LOOKING:
            other = commanding.setdefault(engine.name, who)
            if other != who:
                raise Violation(f"{other} and {who} are inside a command of {engine.name}")
        wrong = _false(world, who, engine)
        if wrong is not None:
            raise Violation(f"{who} says of {engine.name}: {wrong}")
    for (who, name), begun_s in world.host.begun.items():
        if world.drivers[who].alive and world.loop.now_s > begun_s + DEADLINE_S + GRACE_S:
            raise Violation(f"a command of {who} on {name} has run for {world.loop.now_s - begun_s:.1f} s")


def _false(world: World, who: str, engine: Engine) -> str | None:
    """What this driver claims and is not so, unless it is excused."""
    truth, name = world.truth, world.host.truly(engine)
    finding = truth.finding_out(who, name)
    if (who, name) in truth.missed or (finding is not None and finding.before is None):
        return None
    wrong = claims_falsely(engine, truth.engines[name])
    if wrong is None:
        return None
    return wrong if all(claims_falsely(engine, each) for each in truth.claimable(who, name)) else None


def claims_falsely(engine: Engine, model: TrueEngine) -> str | None:
    """What is claimed of the engine and is not so of this one."""
    if engine.state is State.GONE:
        return f"it is gone, and {model.boot} lives" if model.alive and engine.facts.boot == model.boot else None
    if not engine.state.stable or engine.state in UNCLAIMED:
        return None
    if not model.alive or engine.facts.boot != model.boot:
        return f"{engine.facts.boot} is {engine.state}; it is {model}"
    wrong = false_claim(engine.state, model)
    if wrong is None and engine.state is State.SERVING:
        wrong = fit_to_serve(model, None, None)
    if wrong is not None:
        return f"it is {engine.state}; {wrong}"
    return not_free(engine, model) if engine.memory_is_free else None


def not_free(engine: Engine, model: TrueEngine) -> str | None:
    """What the engine holds of memory that is said to be free."""
    held = still_held(engine, model) if model.alive else None
    return None if held is None else f"its memory is free; {held}"


def hand_over(world: World, who: str, read: set[str]) -> None:
    """The next tenant is let in. Raises Violation where an engine holds memory that was not proved to be back.

    Who has not read its memory since the offload began (`read`: of which engines it has) is not excused.
    """
    for engine in world.host.known[who]:
        name = world.host.truly(engine)
        model = world.truth.engines[name]
        shown = world.truth.shown_to(who, name) if name in read else []
        if _holds(model) and all(map(_holds, shown)):
            raise Violation(f"{who} lets the next tenant in, and {model}")


def _holds(model: TrueEngine) -> bool:
    return model.alive and any(model.resident.values())
