"""The commands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.errors import ConfigurationError
from ..core.states import RING, State
from . import FAILED, agent, config, doctor, env, moving
from .options import ENGINES, URLS, Chosen, command, one_of
from .report import status_lines, status_record

app = typer.Typer(
    name="lifecycle",
    help="Drives inference engines round serving -> paused -> drained -> released -> ... -> serving, on evidence.",
    epilog="Exit codes: 0 it holds; 1 an engine was touched and it does not hold; 2 usage or configuration; "
    "3 refused, and no engine was touched; 4 doctor warns; 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

#: What the parser raises; typer brings its own copy of click since 0.20, and no public name for this.
_UsageError: Any = typer.BadParameter.__bases__[0]


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


@app.command()
def engine() -> None:
    """Starts a loopback engine: a small real inference server with SGLang's endpoints (engine --help)."""


@app.command()
def demo(threshold_gib: Annotated[float, typer.Option(help="GiB that an engine may keep.")] = 0.25) -> int:
    """Four engines, eight clients, three cycles; exit 0 only if everything held."""
    from ..demo import run as run_demo

    return run_demo(threshold_gib=threshold_gib)


@command(app, "urls", "threshold_gib", "as_json")
def status(chosen: Chosen) -> int:
    """Where each engine is, observed now; nothing is changed. Exit 1 where one cannot be observed."""

    async def show() -> int:
        fleet = chosen.fleet(unprovable="warn")
        try:
            records = await asyncio.gather(*(status_record(each) for each in fleet))
        finally:
            await fleet.aclose()
        print(json.dumps(records, indent=2) if chosen.as_json else "\n".join(status_lines(records)))
        return FAILED if any(record["error"] for record in records) else 0

    return asyncio.run(show())


moving.register(app)


@command(app, "urls", "engines", "group", "as_json")
def recover(chosen: Chosen) -> int:
    """Looks where each engine is; one that admits requests without being worth serving is closed. Exit 1 if failed."""

    async def look() -> int:
        async with chosen.fleet(unprovable="warn") as fleet:
            some = chosen.participants(fleet)
            states = {each.name: str(await each.recover()) for each in some}
        lines = [f"{name}  {state}" for name, state in states.items()]
        print(json.dumps(states, indent=2) if chosen.as_json else "\n".join(lines))
        return FAILED if str(State.FAILED) in states.values() else 0

    return asyncio.run(look())


@app.command()
def declare(
    state: Annotated[str, typer.Argument(help=f"One of {', '.join(RING)}.", autocompletion=one_of(*RING))],
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
    from ..render.diagram import draw
    from ..render.pages import drift, write

    if docs is None:
        try:
            print(draw(what, form), end="")
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        return 0
    try:
        stale = drift(docs) if check else write(docs)
    except OSError as error:
        raise ConfigurationError(f"--docs {docs}: {error.strerror or error}") from None
    for path in stale:
        print(f"{path} {'is out of date; run: lifecycle diagram --docs ' + str(docs) if check else 'written'}")
    return FAILED if stale and check else 0


for module in (doctor, env, agent, config):
    module.register(app)
