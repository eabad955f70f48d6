"""`lifecycle doctor`: what is wrong with an engine, checked without moving it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict

import typer

from ..core.ports import RoutesToWorkers
from ..doctor import Finding, examine, examine_router, worst
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
    command(app, "urls", "threshold_gib", "router", "as_json")(doctor)


async def _examine_all(options: Options) -> list[tuple[str, list[Finding]]]:
    """The findings on each engine, by its name, and after them those on the router, by its URL."""
    fleet = options.fleet(accept_unprovable=True, reads_only=True)
    try:
        found = await asyncio.gather(*(examine(engine) for engine in fleet))
        named = [(engine.name, findings) for engine, findings in zip(fleet, found, strict=True)]
        if isinstance(fleet.router, RoutesToWorkers):
            named.append((fleet.router.url, await examine_router(fleet.router, list(fleet))))
    finally:
        await fleet.aclose()
    return named


def _lines(found: Sequence[tuple[str, list[Finding]]]) -> list[str]:
    return [line for name, findings in found for line in (name, *(f"  {each}" for each in findings))]


def _as_json(found: Sequence[tuple[str, list[Finding]]]) -> str:
    records = [
        {"engine": name, "worst": worst(findings), "findings": [asdict(each) for each in findings]}
        for name, findings in found
    ]
    return json.dumps(records, indent=2)
