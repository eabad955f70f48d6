"""The commands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ..engine import Engine
from ..errors import ConfigurationError, FleetError, LifecycleError
from ..events import Transition
from ..fleet import Fleet
from ..plan import Goal
from ..states import RING, State
from ..weights import FromDisk
from . import FAILED, agent, code_of, config, doctor, env, told
from .dry import arrived, planned, towards
from .live import watching
from .options import (
    DEADLINE,
    DRY_RUN,
    ENGINES,
    GROUP,
    JSON,
    MODE,
    TAGS,
    THRESHOLD,
    URLS,
    VERSION,
    WEIGHTS,
    Chosen,
)
from .report import cycle_lines, record_of, status_lines, status_record

app = typer.Typer(
    name="lifecycle",
    help="Drives inference engines round serving -> paused -> drained -> released -> ... -> serving, on evidence.",
    epilog="Exit codes: 0 it holds; 1 an engine was touched and it does not hold; 2 usage or configuration; "
    "3 refused, and no engine was touched.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

#: What the parser raises; typer brings its own copy of click since 0.20, and no public name for this.
_UsageError: Any = typer.BadParameter.__bases__[0]

Act = Callable[[Fleet, list[Engine]], Awaitable[list[Transition]]]
Plan = Callable[[Engine], Sequence[Command]]


def run(arguments: Sequence[str]) -> int:
    """Runs one command; usage errors are told by the parser and end with 2."""
    try:
        result = app(args=list(arguments), standalone_mode=False)
    except _UsageError as error:
        error.show()
        return 2
    except typer.Abort:
        return 130
    return result if isinstance(result, int) else 0


def _go(chosen: Chosen, act: Act, plan: Plan) -> int:
    """Carries out one command on a fleet, or shows what it would send."""

    async def go() -> int:
        with watching(quiet=chosen.as_json or chosen.dry_run) as observers:
            async with chosen.fleet(observers) as fleet:
                participants = chosen.participants(fleet)
                if chosen.dry_run:
                    print("\n".join(line for each in participants for line in planned(each, plan(each))))
                    return 0
                left = [each for each in participants if not arrived(each, plan(each))]
                done = await act(fleet, left) if left or not participants else []
        if chosen.as_json:
            print(json.dumps({"ok": True, "done": [record_of(each) for each in done]}, indent=2))
        else:
            print("\n".join(cycle_lines(done, [each for each in participants if each not in left])))
        return 0

    return _told_as_json(go) if chosen.as_json else asyncio.run(go())


def _told_as_json(go: Callable[[], Any]) -> int:
    try:
        return int(asyncio.run(go()))
    except (LifecycleError, FleetError, ConfigurationError, KeyError) as error:
        done = [record_of(each) for each in getattr(error, "succeeded", ())]
        print(json.dumps({"ok": False, "error": told(error), "done": done}, indent=2))
        return code_of(error)


@app.command()
def engine() -> None:
    """Starts a loopback engine: a small real inference server with SGLang's endpoints (engine --help)."""


@app.command()
def demo(threshold_gib: Annotated[float, typer.Option(help="GiB that an engine may keep.")] = 0.25) -> int:
    """Four engines, eight clients, three cycles; exit 0 only if everything held."""
    from ..demo import run as run_demo

    return run_demo(threshold_gib=threshold_gib)


@app.command()
def status(urls: URLS, threshold_gib: THRESHOLD = None, as_json: JSON = False) -> int:
    """Where each engine is, observed now; nothing is changed. Exit 1 where one cannot be observed."""
    chosen = Chosen(urls, threshold_gib=threshold_gib, as_json=as_json)

    async def show() -> int:
        fleet = chosen.fleet(unprovable="warn")
        try:
            records = await asyncio.gather(*(status_record(each) for each in fleet))
        finally:
            await fleet.aclose()
        print(json.dumps(records, indent=2) if as_json else "\n".join(status_lines(records)))
        return FAILED if any(record["error"] for record in records) else 0

    return asyncio.run(show())


@app.command()
def pause(
    urls: URLS,
    mode: MODE = None,
    engines: ENGINES = None,
    group: GROUP = None,
    deadline: DEADLINE = None,
    dry_run: DRY_RUN = False,
    as_json: JSON = False,
) -> int:
    """The engines admit no requests."""
    chosen = Chosen(urls, engines, group, mode=mode, deadline_s=deadline, dry_run=dry_run, as_json=as_json)
    kind = chosen.pause_mode()
    return _go(
        chosen,
        lambda fleet, some: fleet.pause(kind, engines=some, deadline_s=deadline),
        lambda each: [Pause(kind or each.policy.pause_mode)],
    )


@app.command()
def drain(
    urls: URLS,
    engines: ENGINES = None,
    group: GROUP = None,
    deadline: DEADLINE = None,
    dry_run: DRY_RUN = False,
    as_json: JSON = False,
) -> int:
    """No request can run a step or hold device memory."""
    chosen = Chosen(urls, engines, group, deadline_s=deadline, dry_run=dry_run, as_json=as_json)
    return _go(
        chosen,
        lambda fleet, some: fleet.drain(engines=some, deadline_s=deadline),
        lambda _: [Drain()],
    )


@app.command()
def release(
    urls: URLS,
    tags: TAGS = None,
    weights: WEIGHTS = None,
    version: VERSION = None,
    engines: ENGINES = None,
    group: GROUP = None,
    deadline: DEADLINE = None,
    threshold_gib: THRESHOLD = None,
    dry_run: DRY_RUN = False,
    as_json: JSON = False,
) -> int:
    """The memory is back, measured. --weights says where the weights will come from."""
    chosen = Chosen(urls, engines, group, tags, None, deadline, threshold_gib, dry_run, as_json, weights, version)
    named, source = chosen.tag_names(), chosen.source()
    return _go(
        chosen,
        lambda fleet, some: fleet.release(named, weights=source, engines=some, deadline_s=deadline),
        lambda each: [Release(None if named is None else frozenset(named), source or each.fallback)],
    )


@app.command()
def restore(
    urls: URLS,
    only: Annotated[str | None, typer.Option(help="Only one stage: weights or kv.")] = None,
    weights: WEIGHTS = None,
    version: VERSION = None,
    engines: ENGINES = None,
    group: GROUP = None,
    deadline: DEADLINE = None,
    dry_run: DRY_RUN = False,
    as_json: JSON = False,
) -> int:
    """The memory is mapped again: weights, loaded where --weights names a checkpoint, then KV."""
    chosen = Chosen(urls, engines, group, None, None, deadline, None, dry_run, as_json, weights, version)
    if only not in (None, "weights", "kv"):
        raise ConfigurationError(f"--only {only!r}: weights or kv")
    source = chosen.source()
    update = source if isinstance(source, FromDisk) else None

    async def act(fleet: Fleet, some: list[Engine]) -> list[Transition]:
        done: list[Transition] = []
        if only != "kv":
            done = await fleet.restore_weights(engines=some, deadline_s=deadline)
            if update is not None:
                done = await fleet.update_weights(update, engines=some, deadline_s=deadline)
        return done if only == "weights" else await fleet.restore_kv(engines=some, deadline_s=deadline)

    def plan(_: Engine) -> list[Command]:
        stages: list[Command] = [] if only == "kv" else [RestoreWeights()]
        stages += [UpdateWeights(update)] if update is not None and only != "kv" else []
        return stages if only == "weights" else [*stages, RestoreKV()]

    return _go(chosen, act, plan)


@app.command()
def resume(
    urls: URLS,
    engines: ENGINES = None,
    group: GROUP = None,
    deadline: DEADLINE = None,
    threshold_gib: THRESHOLD = None,
    dry_run: DRY_RUN = False,
    as_json: JSON = False,
) -> int:
    """The engines admit requests again, and have generated a token."""
    chosen = Chosen(urls, engines, group, None, None, deadline, threshold_gib, dry_run, as_json)
    return _go(
        chosen,
        lambda fleet, some: fleet.resume(engines=some, deadline_s=deadline),
        lambda _: [Resume()],
    )


@app.command()
def offload(
    urls: URLS,
    tags: TAGS = None,
    weights: WEIGHTS = None,
    version: VERSION = None,
    mode: MODE = None,
    engines: ENGINES = None,
    group: GROUP = None,
    deadline: DEADLINE = None,
    threshold_gib: THRESHOLD = None,
    dry_run: DRY_RUN = False,
    as_json: JSON = False,
) -> int:
    """Pause, drain and release, each step on all engines before the next; on failure the others serve again."""
    chosen = Chosen(urls, engines, group, tags, mode, deadline, threshold_gib, dry_run, as_json, weights, version)
    named, source, kind = chosen.tag_names(), chosen.source(), chosen.pause_mode()
    return _go(
        chosen,
        lambda fleet, some: fleet.offload(named, weights=source, mode=kind, engines=some, deadline_s=deadline),
        lambda each: towards(each, [_away(each, chosen)]),
    )


@app.command()
def onload(
    urls: URLS,
    engines: ENGINES = None,
    group: GROUP = None,
    deadline: DEADLINE = None,
    dry_run: DRY_RUN = False,
    as_json: JSON = False,
) -> int:
    """Back to serving: weights from the source that was named at the release, KV, and admission."""
    chosen = Chosen(urls, engines, group, deadline_s=deadline, dry_run=dry_run, as_json=as_json)
    return _go(
        chosen,
        lambda fleet, some: fleet.onload(engines=some, deadline_s=deadline),
        lambda each: towards(each, [Goal(State.SERVING, weights=each.source)]),
    )


@app.command()
def cycle(
    urls: URLS,
    weights: WEIGHTS = None,
    version: VERSION = None,
    mode: MODE = None,
    tags: TAGS = None,
    times: Annotated[int, typer.Option(min=1, help="How many cycles.")] = 1,
    engines: ENGINES = None,
    group: GROUP = None,
    deadline: DEADLINE = None,
    threshold_gib: THRESHOLD = None,
    dry_run: DRY_RUN = False,
    as_json: JSON = False,
) -> int:
    """Once round the ring, or several times: offload, then onload, every engine's memory measured."""
    chosen = Chosen(urls, engines, group, tags, mode, deadline, threshold_gib, dry_run, as_json, weights, version)
    named, source, kind = chosen.tag_names(), chosen.source(), chosen.pause_mode()

    async def act(fleet: Fleet, some: list[Engine]) -> list[Transition]:
        done: list[Transition] = []
        for _ in range(times):
            window = fleet.offloaded(named, weights=source, mode=kind, engines=some, deadline_s=deadline)
            async with window as released:
                done += released
        return done

    def plan(each: Engine) -> list[Command]:
        return towards(each, [_away(each, chosen), Goal(State.SERVING, weights=source or each.fallback)])

    return _go(chosen, act, plan)


@app.command()
def recover(urls: URLS, engines: ENGINES = None, group: GROUP = None, as_json: JSON = False) -> int:
    """Looks where each engine is; one that admits requests without being worth serving is closed. Exit 1 if failed."""
    chosen = Chosen(urls, engines, group, as_json=as_json)

    async def look() -> int:
        async with chosen.fleet(unprovable="warn") as fleet:
            some = chosen.participants(fleet)
            states = {each.name: str(await each.recover()) for each in some}
        lines = [f"{name}  {state}" for name, state in states.items()]
        print(json.dumps(states, indent=2) if as_json else "\n".join(lines))
        return FAILED if str(State.FAILED) in states.values() else 0

    return asyncio.run(look())


@app.command()
def declare(
    state: Annotated[str, typer.Argument(help=f"One of {', '.join(RING)}.")],
    urls: URLS,
    by: Annotated[str, typer.Option(help="Who says so.")],
    reason: Annotated[str, typer.Option(help="Why it is so.")],
    engines: ENGINES = None,
) -> int:
    """Says where a failed engine is. Every fact is then only declared, and the next proof measures it."""
    if state not in list(RING):
        raise ConfigurationError(f"{state!r} cannot be declared; one of {', '.join(RING)}")
    chosen = Chosen(urls, engines)

    async def say() -> int:
        async with chosen.fleet(unprovable="warn") as fleet:
            for each in chosen.participants(fleet):
                print(each.declare(State(state), by=by, reason=reason).reason)
        return 0

    return asyncio.run(say())


@app.command()
def diagram(
    what: Annotated[str, typer.Option(help="ring: the stable states; full: every state.")] = "ring",
    form: Annotated[str, typer.Option("--format", help="mermaid, svg or table.")] = "mermaid",
    docs: Annotated[Path | None, typer.Option(help="Write the generated pages into this folder.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 where a page is out of date.")] = False,
) -> int:
    """The lifecycle, drawn from its table."""
    from ..diagram import draw
    from ..document import drift, write

    if docs is None:
        try:
            print(draw(what, form), end="")
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        return 0
    stale = drift(docs) if check else write(docs)
    for path in stale:
        print(f"{path} {'is out of date; run: lifecycle diagram --docs ' + str(docs) if check else 'written'}")
    return FAILED if stale and check else 0


def _away(each: Engine, chosen: Chosen) -> Goal:
    named = chosen.tag_names()
    return Goal(
        State.RELEASED,
        None if named is None else frozenset(named),
        chosen.source() or each.fallback,
        chosen.pause_mode() or each.policy.pause_mode,
    )


for module in (doctor, env, agent, config):
    module.register(app)
