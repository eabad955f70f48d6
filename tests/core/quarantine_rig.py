"""What the tests of quarantine share: of three engines `a` fails.

It is killed, or it lives on a device of its own, or on one that `b` is on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from rig import V1, believing, new_engine, states

from lifecycle import BaseObserver, Engine, Fleet, Group, Refuted
from lifecycle.core.observer import Observers
from lifecycle.core.policy import OnFailure
from lifecycle.fleet.failure_policy import Phase, Step
from lifecycle.testing import LOST_AFTER, QUICK, REJECTED, Journal, ScriptedRouter

ABC = ("a", "b", "c")
OWN = ("gpu-9",)
SHARED = ("gpu-0",)
HERE = {"b": "released", "c": "released"}
SERVE = {"b": "serving", "c": "serving"}


class Heard(BaseObserver):
    """Keeps what it hears of engines in quarantine."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def quarantined(self, engine: str, error: Exception, reason: str) -> None:
        self.heard.append((engine, type(error).__name__))


async def fleet_with(
    devices: tuple[str, ...] = SHARED,
    *,
    router: bool = True,
    on_failure: OnFailure = "quarantine",
    groups: dict[str, Group] | None = None,
    of: dict[str, str] | None = None,
    heard: BaseObserver | None = None,
) -> Fleet:
    """A connected fleet of a, b and c; `a` is on these devices, the others on gpu-0. `of`: their groups."""
    journal, policy = Journal(), replace(QUICK, on_failure=on_failure)
    engines = [
        new_engine(
            name,
            journal=journal,
            has_router=router,
            policy=policy,
            devices=devices if name == "a" else SHARED,
            group=(of or {}).get(name, "default"),
        )
        for name in ABC
    ]
    for engine in engines if heard else ():
        engine._session.observers = Observers([heard])
    fleet = Fleet(engines, groups=groups, policy=policy, router=ScriptedRouter(journal) if router else None)
    return await fleet.__aenter__()


Prepare = Callable[[Fleet], Awaitable[None]]


async def paused_stale(fleet: Fleet, mode: Any = "freeze") -> None:
    await fleet.pause(mode)
    for engine in fleet:
        believing(engine, cache_fresh=None)


async def serving(fleet: Fleet) -> None:
    pass


async def released(fleet: Fleet) -> None:
    await fleet.offload(weights=V1)


#: What precedes each phase, the call of it that ends the process of `a`, and how `a` fails in it and lives.
PHASES: dict[Step, tuple[Prepare, str, Callable[[Engine], None]]] = {
    ("offload", Phase.PAUSE): (serving, "pause", lambda a: a.adapter.script("pause", REJECTED)),
    ("offload", Phase.DRAIN): (serving, "prove_idle", lambda a: setattr(a.adapter.engine, "stubborn", -1)),
    ("offload", Phase.RELEASE): (serving, "release", lambda a: setattr(a.adapter.engine, "frees", False)),
    ("onload", Phase.PAUSE): (paused_stale, "pause", lambda a: a.adapter.script("pause", REJECTED)),
    ("onload", Phase.DRAIN): (
        lambda fleet: paused_stale(fleet, "abort"),
        "prove_idle",
        lambda a: setattr(a.adapter.engine, "stubborn", -1),
    ),
    ("onload", Phase.RESTORE_WEIGHTS): (released, "restore", lambda a: a.adapter.script("restore", LOST_AFTER)),
    ("onload", Phase.UPDATE_WEIGHTS): (released, "load", lambda a: a.adapter.script("load", REJECTED)),
    ("onload", Phase.RESTORE_KV): (released, "flush", lambda a: a.adapter.script("flush", REJECTED)),
    ("onload", Phase.RESTORE): (released, "load", lambda a: a.adapter.script("load", REJECTED)),
    ("onload", Phase.RESUME): (released, "resume", lambda a: a.adapter.always("answers", Refuted(reason="no token"))),
}


async def moved(fleet: Fleet, step: Step) -> list[str]:
    """The engines of which the move returned a result."""
    if step[0] == "offload":
        return [transition.engine for transition in await fleet.offload(weights=V1, deadline_s=0.3)]
    done = await fleet.onload(overlap=step[1] is Phase.RESTORE, deadline_s=0.3)
    return [transition.engine for transition in done]


def where(fleet: Fleet) -> dict[str, str]:
    return {name: state for name, state in states(fleet).items() if name != "a"}


def ends(step: Step) -> dict[str, str]:
    return HERE if step[0] == "offload" else SERVE
