"""The commands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.encoding import encode
from ..core.errors import ConfigurationError
from ..core.states import RING, State
from . import FAILED, agent, config, doctor, env, journal, moving, signals, tenants, waiting
from .membership import say_differences
from .options import ENGINES, URLS, Options, command, one_of
from .output import say
from .report import recovery_lines, status_lines, status_record

app = typer.Typer(
    name="lifecycle",
    help="Moves inference engines through serving -> paused -> drained -> released -> ... -> serving. "
    "A state is entered only on evidence.",
    epilog="Exit codes: 0 what was asked for holds; 1 an engine was touched and it does not hold; "
    "2 usage or configuration; 3 refused, and no engine was touched; 4 doctor warns; "
    "130 interrupted (143 by SIGTERM, 129 by SIGHUP).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

#: What the parser raises; typer brings its own copy of click since 0.20, and no public name for this.
_UsageError: Any = typer.BadParameter.__bases__[0]


#: The columns of `failure_policy.all_rows` in docs/lifecycle.md.
_FAILURE_HEADINGS = ("policy", "move", "phase that failed", "the others", "the one that failed")


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code. The parser reports usage errors, whose code is 2."""
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
    """Start a loopback engine: a small real inference server with SGLang's endpoints or vLLM's (engine --help)."""


@app.command()
def demo(threshold_gib: Annotated[float, typer.Option(help="GiB that an engine may keep.")] = 0.25) -> int:
    """Run the demo: four engines, eight clients, three cycles. Exit 0 only if every claim held."""
    from ..demo import run as run_demo

    return run_demo(threshold_gib=threshold_gib)


@command(app, "urls", "threshold_gib", "as_json")
def status(options: Options) -> int:
    """Show the state of each engine, observed now. Changes nothing. Exit 1 if one is failed or cannot be observed."""

    async def show() -> int:
        fleet = options.fleet(accept_unprovable=True, reads_only=True)
        if options.of_file:
            say_differences(fleet, options.kept)
        try:
            records = await asyncio.gather(*(status_record(each) for each in fleet))
        finally:
            await fleet.aclose()
        if options.as_json:
            print(json.dumps(records, indent=2))
        else:
            say(status_lines(records))
        return FAILED if any(record["state"] in ("unknown", State.FAILED) for record in records) else 0

    return asyncio.run(show())


moving.register(app)


@command(
    app, "urls", "to", "weights", "version", "engines", "group", "deadline_s", "threshold_gib", "router", "as_json"
)
def recover(options: Options) -> int:
    """Observe each engine and enter its state; say why it is that one, and what leads on. Exit 1 if failed.

    Admission is closed where the weights are invalid. With --to those that live are then brought there: exit 1 unless
    all are.
    """
    to, weights = options.recover_to(), options.source()

    async def observe() -> int:
        described = options.fleet(accept_unprovable=to is None)
        if options.of_file:
            say_differences(described)
        async with described as fleet:
            chosen = options.participants(fleet)
            try:
                found = await fleet.recover(to=to, weights=weights, engines=chosen, deadline_s=options.deadline_s)
            except asyncio.CancelledError:
                raise await signals.interrupted(fleet, chosen) from None
        if options.as_json:
            print(json.dumps(encode(found), indent=2))
        else:
            say(recovery_lines(found, State(to or "serving")))
        there = [each.state is not State.FAILED if to is None else each.state == to for each in found.values()]
        return 0 if all(there) else FAILED

    return signals.run(observe)


@app.command()
def override(
    state: Annotated[str, typer.Argument(help=f"One of {', '.join(RING)}.", autocompletion=one_of(*RING))],
    urls: URLS,
    by: Annotated[str, typer.Option(help="Who says so: a name for the record.")],
    reason: Annotated[str, typer.Option(help="How that is known.")],
    engines: ENGINES = None,
    version: Annotated[str | None, typer.Option(help="The version of the weights that it holds.")] = None,
) -> int:
    """Say in which state a failed engine is. Its facts are only asserted then, until the next proof measures them."""
    if state not in list(RING):
        raise ConfigurationError(f"{state!r} cannot be asserted; one of {', '.join(RING)}")
    options = Options(urls, engines=engines)

    async def enter() -> int:
        async with options.fleet(accept_unprovable=True) as fleet:
            for each in options.participants(fleet):
                try:
                    overridden = each.override_state(State(state), version=version, by=by, reason=reason)
                except ValueError as wrong:
                    raise ConfigurationError(str(wrong)) from None
                say([overridden.reason])
        return 0

    return asyncio.run(enter())


@app.command(hidden=True, deprecated=True)
def declare(
    state: Annotated[str, typer.Argument(help=f"One of {', '.join(RING)}.", autocompletion=one_of(*RING))],
    urls: URLS,
    by: Annotated[str, typer.Option(help="Who says so: a name for the record.")],
    reason: Annotated[str, typer.Option(help="How that is known.")],
    engines: ENGINES = None,
) -> int:
    """Deprecated name of `override`."""
    return override(state, urls, by, reason, engines)


@app.command()
def diagram(
    what: Annotated[str, typer.Option(help="ring: the stable states; full: every state.")] = "ring",
    form: Annotated[str, typer.Option("--format", help="mermaid, svg or table.")] = "mermaid",
    docs: Annotated[Path | None, typer.Option(help="Write the generated pages into this folder.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 where a page is out of date.")] = False,
) -> int:
    """Draw the lifecycle from its table."""
    from ..fleet.failure_policy import all_rows
    from ..render.diagram import draw
    from ..render.pages import drift, write

    if docs is None:
        try:
            print(draw(what, form), end="")
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        return 0
    try:
        failures = [dict(zip(_FAILURE_HEADINGS, row, strict=True)) for row in all_rows()]
        stale = drift(docs, failures) if check else write(docs, failures)
    except OSError as error:
        raise ConfigurationError(f"--docs {docs}: {error.strerror or error}") from None
    for path in stale:
        print(f"{path} {'is out of date; run: lifecycle diagram --docs ' + str(docs) if check else 'written'}")
    return FAILED if stale and check else 0


for module in (waiting, doctor, env, agent, config, journal, tenants):
    module.register(app)
