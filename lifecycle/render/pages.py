"""docs/lifecycle.md, written from the table; `make check` fails where the file differs from what is written here."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import cleandoc
from pathlib import Path

from ..core.policy import ACCEPT, DEADLINES_S, PAUSE_MODE, RESIDUAL_THRESHOLD_GIB
from ..rules.guards import Guard
from ..rules.proofs import Proof
from ..rules.table import CLAIMS, OPERATIONS
from .diagram import mermaid, svg, table

_HEAD = """# The lifecycle

Generated from `lifecycle/rules/table.py` by `lifecycle diagram --docs docs`; do not edit.

![The ring of stable states](lifecycle-ring.svg)

## What each state claims

"""

_BETWEEN = """
A state is entered only on evidence: the proofs of its row hold, each at the grade that is asked for. Every transient
state may fail; every stable one may be contradicted by an observation: both become `failed`, from where an observation
(or an operator's declaration) leads on.

## The rows

"""


def pages() -> dict[str, str]:
    """File names and contents of everything that is generated."""
    return {"lifecycle.md": text(), "lifecycle-ring.svg": svg("ring"), "lifecycle-full.svg": svg("full")}


def text() -> str:
    """The page."""
    guards = {guard.name: guard for row in OPERATIONS for guard in row.guards}
    proofs = {proof.name: proof for row in OPERATIONS for proof in row.proofs}
    return "".join(
        (
            _HEAD,
            "| state | claims |\n|---|---|\n",
            *(f"| {state} | {claim} |\n" for state, claim in CLAIMS.items()),
            _BETWEEN,
            table(),
            "\n## Guards: asked before the engine is touched\n\n",
            *(_entry(guard, _guard_note(guard)) for guard in guards.values()),
            "\n## Proofs: seen after the calls were answered\n\n",
            *(_entry(proof, f"Least grade unless set otherwise: {_least(proof)}.") for proof in proofs.values()),
            "\n## Defaults\n\n",
            _defaults(DEADLINES_S),
            "\n## The full machine\n\n![The full machine](lifecycle-full.svg)\n\n```mermaid\n",
            mermaid("full"),
            "```\n\nThe ring alone:\n\n```mermaid\n",
            mermaid("ring"),
            "```\n",
        )
    )


def _entry(each: Guard | Proof, note: str) -> str:
    return f"- **{each.name}**: {' '.join(cleandoc(each.doc).split())} {note}\n"


def _guard_note(guard: Guard) -> str:
    if guard.static:
        return "Asked for a whole route before anything is sent."
    return f"Asks for fresh evidence: {', '.join(sorted(guard.needs))}." if guard.needs else "Asked of the facts."


def _least(proof: Proof) -> str:
    return ACCEPT[proof.name].name.lower()


def _defaults(deadlines_s: Mapping[str, float]) -> str:
    rows = "".join(f"| {command} | {deadline_s:g} |\n" for command, deadline_s in deadlines_s.items())
    return (
        f"Pause mode `{PAUSE_MODE}`; residual threshold {RESIDUAL_THRESHOLD_GIB} GiB; on failure the others are "
        f"brought back (`restore`). Source: `lifecycle/core/policy.py`.\n\n"
        f"| command | deadline in seconds |\n|---|---|\n{rows}"
    )


def write(folder: Path) -> list[Path]:
    """Every generated file is as it should be; returns those that were not."""
    stale = drift(folder)
    for name, content in pages().items():
        (folder / name).write_text(content)
    return stale


def drift(folder: Path) -> list[Path]:
    """The generated files that differ from the table, or are missing."""
    return [
        folder / name
        for name, content in pages().items()
        if not (folder / name).is_file() or (folder / name).read_text() != content
    ]
