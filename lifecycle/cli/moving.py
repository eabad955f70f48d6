"""The verbs: commands that send something to engines. Each states what it asks once, as an `Action`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import wraps
from typing import Any

import typer

from ..core.commands import Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ..core.errors import ConfigurationError
from ..core.sources import FromDisk
from ..core.states import State
from ..core.transition import Transition
from ..core.verdicts import Verdict
from ..engine.engine import Engine
from ..fleet.fleet import Fleet
from ..rules.dry_run import Step, dry_run
from ..rules.planner import Goal
from . import FAILED, OK, REPORTED_ERRORS, code_of, message_of, signals
from .actions import Action, arrived
from .live import watching
from .options import Options, command
from .output import say
from .parity import Parity
from .report import cycle_lines, dry_run_lines, quarantine_lines, record_of

Verb = Callable[[Options], Action]
_VERBS: list[tuple[Verb, tuple[str, ...]]] = []
_COMMON = ("urls", "engines", "group", "deadline_s", "threshold_gib", "router", "dry_run", "as_json")


def _verb(*options: str) -> Callable[[Verb], Verb]:
    """The decorated function becomes a command, which takes these options beside the common ones."""

    def register_verb(verb: Verb) -> Verb:
        _VERBS.append((verb, options))
        return verb

    return register_verb


def register(app: typer.Typer) -> None:
    """Every verb is a command of `app`."""
    for verb, options in _VERBS:
        command(app, *_COMMON, *options)(_run_of(verb))


def _run_of(verb: Verb) -> Callable[[Options], int]:
    @wraps(verb)
    def run(options: Options) -> int:
        return _run(options, verb(options))

    return run


@_verb("mode")
def pause(options: Options) -> Action:
    """Stop admitting requests."""
    return Action((Pause(options.pause_mode()),))


@_verb()
def drain(options: Options) -> Action:
    """Wait until no request can run a step or hold device memory."""
    return Action((Drain(),))


@_verb("tags", "weights", "version")
def release(options: Options) -> Action:
    """Release device memory, measured. --weights says where the weights come from afterwards."""
    return Action((Release(options.tag_names(), options.source()),))


@_verb("only", "weights", "version")
def restore(options: Options) -> Action:
    """Map the memory again: first the weights, loaded where --weights names a checkpoint, then the KV cache."""
    only, source = options.only, options.source()
    if only not in (None, "weights", "kv"):
        raise ConfigurationError(f"--only {only!r}: weights or kv")
    if only == "kv" and source is not None:
        raise ConfigurationError("--only kv leaves the weights alone; leave out --weights")
    steps: list[Step] = [] if only == "kv" else [RestoreWeights()]
    if isinstance(source, FromDisk):
        steps.append(UpdateWeights(source))
    return Action((*steps,) if only == "weights" else (*steps, RestoreKV()))


@_verb("weights", "version", "force")
def update(options: Options) -> Action:
    """Load weights from disk into engines that are paused, drained or have their weights mapped again."""
    source = options.source()
    if not isinstance(source, FromDisk):
        raise ConfigurationError("update loads a checkpoint: give --weights PATH and --version LABEL")
    return Action((UpdateWeights(source, options.force),))


@_verb()
def resume(options: Options) -> Action:
    """Admit requests again. A generated token proves it."""
    return Action((Resume(),))


@_verb("tags", "weights", "version", "mode")
def offload(options: Options) -> Action:
    """Pause, drain and release: each step on all engines before the next. If some fail, the others serve again."""
    return Action((_released(options),))


@_verb("weights", "version")
def onload(options: Options) -> Action:
    """Serve again: restore the weights from --weights or the source named before, then the KV cache, then resume."""
    return Action((Goal(State.SERVING, weights=options.source()),))


@_verb("tags", "weights", "version", "mode", "times", "parity")
def cycle(options: Options) -> Action:
    """Offload, then onload, once or several times; the memory that every engine returns is measured."""
    parity = Parity() if options.parity else None
    return Action((_released(options), Goal(State.SERVING)), times=options.times, parity=parity)


def _released(options: Options) -> Goal:
    return Goal(State.RELEASED, options.tag_names(), options.source(), options.pause_mode())


def _run(options: Options, action: Action) -> int:
    """Runs the action on the fleet, or prints what it would send."""

    async def run() -> int:
        with watching(quiet=options.as_json or options.dry_run) as observers:
            async with options.fleet(observers) as fleet:
                engines = options.participants(fleet)
                if options.dry_run:
                    say(_planned(action, [each for each in engines if each.quarantined is None]))
                    return OK
                there = [each for each in engines if arrived(each, action.commands(each))]
                done = await _perform(options, action, fleet, engines, there)
                quarantined = fleet.quarantined
        return _reported(options, action, done, there, quarantined)

    return _with_errors_as_json(run) if options.as_json else signals.run(run)


def _planned(action: Action, engines: Sequence[Engine]) -> list[str]:
    planned = [(each, dry_run(each.facts, action.commands(each), each.adapter.plan)) for each in engines]
    return [line for engine, commands in planned for line in dry_run_lines(engine, commands)]


async def _perform(
    options: Options, action: Action, fleet: Fleet, engines: Sequence[Engine], there: Sequence[Engine]
) -> list[Transition]:
    """The action has ended on the engines, without those that are there already where it finds nothing to do."""
    rest = engines if action.asks_all else [each for each in engines if each not in there]
    if engines and not rest:
        return []
    try:
        return await action.run(fleet, rest, options.deadline_s)
    except asyncio.CancelledError:
        raise await signals.interrupted(fleet, rest) from None


def _reported(
    options: Options,
    action: Action,
    done: Sequence[Transition],
    there: Sequence[Engine],
    quarantined: Mapping[str, Verdict],
) -> int:
    parity = action.parity or Parity()
    if options.as_json:
        compared = {"parity": parity.found} if action.parity else {}
        records = [record_of(each) for each in done]
        out = {"quarantined": {name: why.reason for name, why in quarantined.items()}} if quarantined else {}
        print(json.dumps({"ok": not parity.broken, "done": records, **out, **compared}, indent=2))
    else:
        found = (f"{name}: parity {result}" for name, result in parity.found.items())
        say([*cycle_lines(done, there), *found, *quarantine_lines(quarantined)])
    return FAILED if parity.broken else OK


def _with_errors_as_json(run: Callable[[], Coroutine[Any, Any, int]]) -> int:
    try:
        return signals.run(run)
    except REPORTED_ERRORS as error:
        done = [record_of(each) for each in getattr(error, "succeeded", ())]
        print(json.dumps({"ok": False, "error": message_of(error), "done": done}, indent=2))
        return code_of(error)
