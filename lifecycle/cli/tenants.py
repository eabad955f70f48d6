"""`lifecycle tenants`: who may hold memory of which device, as the ledger of this user has it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from ..core.encoding import encode
from ..core.errors import ConfigurationError
from ..core.lease import clock
from ..core.tenants import Tenancy
from ..core.units import mib
from ..store.tenants import Tenants
from .output import say


def tenants(
    file: Annotated[Path | None, typer.Option("--file", help="A ledger other than this user's.")] = None,
    forget: Annotated[
        str | None, typer.Option(metavar="NAME", help="Take one out whose processes cannot be seen from here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Show who may hold memory of which device, and how much at most. Tenants whose processes have ended hold none."""
    ledger = Tenants(file)
    if not ledger.path.exists():  # to look makes none: it would bind every command from then on
        if forget is not None:
            raise ConfigurationError(f"{ledger.path}: there is no ledger, so no tenant {forget!r}")
        print(json.dumps({"budgets": {}, "tenants": []}) if as_json else "no tenant is known")
        return 0
    if forget is not None:
        gone = ledger.forget(forget)
        say(f"{each.tenant.who}: it holds nothing of {each.device} any more, because you say so" for each in gone)
        return 0
    found, budgets = ledger.tenancies(), ledger.budgets()
    if as_json:
        print(json.dumps({"budgets": budgets, "tenants": encode(found)}, indent=2))
    else:
        say(_lines(found, budgets) if found else ["no tenant is known"])
    return 0


def _lines(found: Sequence[Tenancy], budgets: dict[str, int]) -> Iterator[str]:
    for device, there in groupby(found, key=lambda each: each.device):
        yield f"{device}{f', budget {mib(budgets[device])}' if device in budgets else ''}"
        for each in there:
            size = "an unknown part" if each.size_bytes is None else f"at most {mib(each.size_bytes)}"
            left = ", what was left when it gave its memory back" if each.given_back else ""
            yield f"  {each.tenant.name}  {size}{left}  since {clock(each.since_s)}  {each.tenant.who}"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(tenants)
