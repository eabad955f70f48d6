"""`lifecycle doctor`: what is wrong with an engine, checked without moving it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict

import typer

from ..doctor import Finding, examine, worst
from ..engine.engine import Engine
from . import FAILED, OK
from .options import Options, command
from .output import say

#: The exit code where there are warnings and no failure.
WARNED = 4

CODES = {"ok": OK, "warning": WARNED, "failure": FAILED}


def doctor(options: Options) -> int:
    """Run every check that needs no transition, one line each. Exit 0: all ok; 4: a warning; 1: a failure."""
    found = asyncio.run(_examine_all(options))
    if options.as_json:
        print(_as_json(found))
    else:
        say(_lines(found))
    return CODES[worst(finding for _, findings in found for finding in findings)]


def register(app: typer.Typer) -> None:
    """`lifecycle doctor` is a command of `app`."""
    command(app, "urls", "threshold_gib", "as_json")(doctor)


async def _examine_all(options: Options) -> list[tuple[Engine, list[Finding]]]:
    fleet = options.fleet(accept_unprovable=True)
    try:
        found = await asyncio.gather(*(examine(engine) for engine in fleet))
    finally:
        await fleet.aclose()
    return list(zip(fleet, found, strict=True))


def _lines(found: Sequence[tuple[Engine, list[Finding]]]) -> list[str]:
    return [line for engine, findings in found for line in (engine.name, *(f"  {each}" for each in findings))]


def _as_json(found: Sequence[tuple[Engine, list[Finding]]]) -> str:
    records = [
        {"engine": engine.name, "worst": worst(findings), "findings": [asdict(each) for each in findings]}
        for engine, findings in found
    ]
    return json.dumps(records, indent=2)
