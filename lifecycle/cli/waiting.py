"""`lifecycle wait`: until engines are somewhere, observed and not moved, as `kubectl wait` does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import typer

from ..core.deadline import Deadline, growing
from ..core.errors import ConfigurationError, EngineHeld
from ..core.policy import positive
from ..core.states import RING, State
from ..engine.engine import Engine
from ..store.leases import Leases
from ..store.sqlite import Store
from . import FAILED, OK, signals
from .options import Options, command
from .output import say

#: What can be waited for: what a driver brings about, and the end of a process.
AWAITED = (*RING, State.GONE)
#: Seconds, unless the caller says. Source: kubectl wait.
DEADLINE_S = 30.0
#: Seconds between two observations, once the first few have found an engine elsewhere.
POLL_S = 1.0
#: Seconds that an observation may take at least: one that is cut short says nothing of the engine.
LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Seen:
    """Where an engine was seen last; `why` it is not there, empty where it is."""

    state: str
    why: str


def wait(options: Options) -> int:
    """Wait until each engine is in the state of --for, on evidence. Observes, sends nothing. Exit 1 at the deadline."""
    to = _state_of(options.wanted)
    limit_s = positive("--deadline-s", DEADLINE_S if options.deadline_s is None else options.deadline_s)

    async def observe() -> int:
        deadline = Deadline(limit_s)
        for pause_s in growing(POLL_S):
            found = await _seen(options, to, deadline)
            if not (away := [name for name, seen in found.items() if seen.why]) or not deadline.left_s:
                break
            await asyncio.sleep(min(pause_s, deadline.left_s))
        if options.as_json:
            print(
                json.dumps({"ok": not away, "engines": {name: asdict(each) for name, each in found.items()}}, indent=2)
            )
        else:
            say(_lines(found, len(away), to, limit_s))
        return FAILED if away else OK

    return signals.run(observe)


def register(app: typer.Typer) -> None:
    """`lifecycle wait` is a command of `app`."""
    command(app, "urls", "wanted", "engines", "group", "deadline_s", "threshold_gib", "as_json")(wait)


def _state_of(wanted: str) -> State:
    key, _, state = wanted.partition("=")
    if key != "state" or state not in AWAITED:
        raise ConfigurationError(f"--for {wanted!r}: state=STATE, with one of {', '.join(AWAITED)}")
    return State(state)


async def _seen(options: Options, to: State, deadline: Deadline) -> dict[str, Seen]:
    """Where the engines are now, all at once, by name.

    What drivers keep of them is read anew each time. Nothing is written: the journal gets no entry for an observation.
    """
    fleet = options.fleet(accept_unprovable=True, kept=(Store(reads_only=True), Leases(reads_only=True)))
    try:
        engines = options.participants(fleet)
        seen = await asyncio.gather(*(_look(engine, to, deadline) for engine in engines))
    finally:
        await fleet.aclose()
    return dict(zip((engine.name for engine in engines), seen, strict=True))


async def _look(engine: Engine, to: State, deadline: Deadline) -> Seen:
    try:
        await engine.connect(deadline_s=max(LOOK_S, deadline.left_s))
    except (ConfigurationError, EngineHeld) as error:
        return Seen("unknown", str(error))
    why = engine.missing(to)
    lost = engine.state in (State.FAILED, State.GONE)
    return Seen(str(engine.state), "" if why is None else f"{why}: {engine.reason}" if lost else why)


def _lines(found: Mapping[str, Seen], away: int, to: State, limit_s: float) -> Sequence[str]:
    lines = [f"{name}  {seen.state}" + (f": {seen.why}" if seen.why else "") for name, seen in found.items()]
    return [*lines, f"{away} of {len(found)} engines not {to} after {limit_s:g} s"] if away else lines
