"""The commands that talk to engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated, Any

import click
import typer

from ..config import RESIDUAL_THRESHOLD_GIB, Policy
from ..errors import ConfigurationError
from ..events import BaseObserver, Transition
from ..facts import PAUSE_MODES
from ..fleet import Fleet
from ..weights import FromDisk, Kept, Source
from .report import cycle_lines, phase_line, status_lines, status_record

app = typer.Typer(
    name="lifecycle",
    help="Drives inference engines round serving -> paused -> drained -> released -> ... -> serving, on evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

URLS = Annotated[
    list[str], typer.Argument(metavar="URL...", help="Engines, e.g. sglang://127.0.0.1:30000?group=decode")
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")]
THRESHOLD = Annotated[float, typer.Option(help="GiB that an engine may keep after a release.")]


def run(arguments: Sequence[str]) -> int:
    """Runs one command; usage errors are told by the parser and end with 2."""
    try:
        result = app(args=list(arguments), standalone_mode=False)
    except click.exceptions.UsageError as error:
        error.show()
        return 2
    except click.exceptions.Abort:
        return 130
    return result if isinstance(result, int) else 0


@app.command()
def engine() -> None:
    """Starts a loopback engine: a small real inference server with SGLang's endpoints (engine --help)."""


@app.command()
def demo(threshold_gib: THRESHOLD = 0.25) -> int:
    """Four engines, eight clients, three cycles; exit 0 only if everything held."""
    from ..demo import run as run_demo

    return run_demo(threshold_gib=threshold_gib)


@app.command()
def status(urls: URLS, as_json: JSON = False) -> int:
    """Where each engine is, observed now; nothing is changed."""

    async def show() -> int:
        async with Fleet.connect(urls, policy=Policy(unprovable="warn")) as fleet:
            records = [await status_record(engine) for engine in fleet]
        if as_json:
            print(json.dumps(records, indent=2))
        else:
            print("\n".join(status_lines(records)))
        return 0

    return asyncio.run(show())


@app.command()
def cycle(
    urls: URLS,
    weights: Annotated[str, typer.Option(help="Where weights come from: a checkpoint's path, or 'kept'.")] = "kept",
    version: Annotated[str | None, typer.Option(help="The label of the checkpoint's weights.")] = None,
    mode: Annotated[str, typer.Option(help=f"What becomes of requests in flight: {', '.join(PAUSE_MODES)}.")] = "abort",
    tags: Annotated[str | None, typer.Option(help="Tags to release, separated by commas (all).")] = None,
    times: Annotated[int, typer.Option(min=1, help="How many cycles.")] = 1,
    threshold_gib: THRESHOLD = RESIDUAL_THRESHOLD_GIB,
    deadline_s: Annotated[float | None, typer.Option(help="Seconds that each phase may take.")] = None,
    as_json: JSON = False,
) -> int:
    """Once round the ring: offload, then onload. Every engine's memory is measured."""
    chosen = _mode(mode)
    source = _source(weights, version)
    named = None if tags is None else [tag.strip() for tag in tags.split(",")]

    async def go() -> int:
        policy = Policy(residual_threshold_gib=threshold_gib)
        phases = PhasePrinter(quiet=as_json)
        told: list[dict[str, Any]] = []
        async with Fleet.connect(urls, policy=policy, observers=[phases]) as fleet:
            for _ in range(times):
                async with fleet.offloaded(named, weights=source, mode=chosen, deadline_s=deadline_s) as released:
                    told.append({"released": [_record(each) for each in released]})
                    if not as_json:
                        print("\n".join(cycle_lines(released)))
        if as_json:
            print(json.dumps(told, indent=2))
        return 0

    return asyncio.run(go())


class PhasePrinter(BaseObserver):
    """Prints a line for every state that an engine has entered."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def transition(self, record: Transition) -> None:
        """Prints the state that was entered."""
        if not self._quiet and record.dest.stable:
            print(phase_line(record), flush=True)


def _record(record: Transition) -> dict[str, Any]:
    return {
        "engine": record.engine,
        "state": str(record.dest),
        "returned_bytes": record.returned_bytes,
        "expected_bytes": record.expected_bytes,
        "duration_s": round(record.duration_s, 3),
    }


def _mode(name: str) -> Any:
    if name not in PAUSE_MODES:
        raise ConfigurationError(f"--mode {name!r}: one of {', '.join(PAUSE_MODES)}")
    return name


def _source(weights: str, version: str | None) -> Source:
    if weights == "kept":
        return Kept()
    if not version:
        raise ConfigurationError("--weights PATH needs --version LABEL: it is how weights are told apart")
    return FromDisk(weights, version)
