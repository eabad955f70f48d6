"""The pages generated from the table: docs/lifecycle.md and its two diagrams. `make check` fails where a file differs.

This storey imports core and rules alone. What a higher storey knows, the table of what happens when some engines fail
(lifecycle/fleet/failure_policy.py), is passed in by the caller as plain rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import cleandoc
from pathlib import Path

from ..core.policy import ACCEPT, DEADLINES_S, PAUSE_MODE, RESIDUAL_THRESHOLD_GIB
from ..rules.guards import Guard
from ..rules.proofs import Proof
from ..rules.table import CLAIMS, OPERATIONS
from .diagram import mermaid, svg, table

#: One row of the failure table: the words of each column, by its heading. Every row has the same headings.
FailureRow = Mapping[str, str]

_HEAD = """# The lifecycle

Generated from `lifecycle/rules/table.py` by `lifecycle diagram --docs docs`; do not edit.

![The ring of stable states](lifecycle-ring.svg)

## What each state claims

"""

_BEFORE_ROWS = """
A state is entered only on evidence: the proofs of its row hold, each at the grade that is asked for. Every transient
state may fail; every stable state may be contradicted by an observation. Both become `failed`, from where an
observation (or `override_state`, by an operator) leads on.

## The rows

"""

_FAILURE_HEAD = """
## When some engines fail

Generated from `lifecycle/fleet/failure_policy.py`. A move has phases; this is what becomes of its engines when a phase
fails for some of them, by `Policy.on_failure` (`on_failure` in fleet.toml, `LIFECYCLE_ON_FAILURE`; `restore` unless
set).

"""


def pages(failures: Sequence[FailureRow] = ()) -> dict[str, str]:
    """The contents of every generated file, by file name; `failures` as for `failure_table`."""
    return {
        "lifecycle.md": lifecycle_page(failures),
        "lifecycle-ring.svg": svg("ring"),
        "lifecycle-full.svg": svg("full"),
    }


def lifecycle_page(failures: Sequence[FailureRow] = ()) -> str:
    """docs/lifecycle.md as Markdown; without `failures` it has no section on failed moves."""
    guards = {guard.name: guard for row in OPERATIONS for guard in row.guards}
    proofs = {proof.name: proof for row in OPERATIONS for proof in row.proofs}
    return "".join(
        (
            _HEAD,
            "| state | claims |\n|---|---|\n",
            *(f"| {state} | {claim} |\n" for state, claim in CLAIMS.items()),
            _BEFORE_ROWS,
            table(),
            "\n## Guards: asked before any lifecycle call is sent\n\n",
            *(_entry(guard, _guard_note(guard)) for guard in guards.values()),
            "\n## Proofs: asked after the calls were answered\n\n",
            *(_entry(proof, f"Least grade unless set otherwise: {_least_grade(proof)}.") for proof in proofs.values()),
            *((_FAILURE_HEAD, failure_table(failures)) if failures else ()),
            "\n## Defaults\n\n",
            _defaults(DEADLINES_S),
            "\n## The full machine\n\n![The full machine](lifecycle-full.svg)\n\n```mermaid\n",
            mermaid("full"),
            "```\n\nThe ring alone:\n\n```mermaid\n",
            mermaid("ring"),
            "```\n",
        )
    )


def failure_table(rows: Sequence[FailureRow]) -> str:
    """What happens when some engines of a move fail, as a Markdown table with the headings of the first row.

    Raises ValueError where there is no row, or where one has other headings than the first.
    """
    if not rows:
        raise ValueError("a failure table needs at least one row")
    headings = tuple(rows[0])
    lines = [_table_line(headings), "|" + "---|" * len(headings)]
    for number, row in enumerate(rows, start=1):
        if set(row) != set(headings):
            raise ValueError(f"row {number} of the failure table has {', '.join(row)}, not {', '.join(headings)}")
        lines.append(_table_line([row[heading] for heading in headings]))
    return "\n".join(lines) + "\n"


def _table_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _entry(check: Guard | Proof, note: str) -> str:
    return f"- **{check.name}**: {' '.join(cleandoc(check.doc).split())} {note}\n"


def _guard_note(guard: Guard) -> str:
    if guard.static:
        return "Asked for a whole route before anything is sent."
    return f"Asks for fresh evidence: {', '.join(sorted(guard.needs))}." if guard.needs else "Asked of the facts."


def _least_grade(proof: Proof) -> str:
    return ACCEPT[proof.name].name.lower()


def _defaults(deadlines_s: Mapping[str, float]) -> str:
    rows = "".join(f"| {command} | {deadline_s:g} |\n" for command, deadline_s in deadlines_s.items())
    return (
        f"Pause mode `{PAUSE_MODE}`; residual threshold {RESIDUAL_THRESHOLD_GIB} GiB; on failure the others are "
        f"brought back (`restore`). Source: `lifecycle/core/policy.py`.\n\n"
        f"| command | deadline in seconds |\n|---|---|\n{rows}"
    )


def write(folder: Path, failures: Sequence[FailureRow] = ()) -> list[Path]:
    """Writes every generated file into `folder` and returns those that were out of date or missing."""
    stale = drift(folder, failures)
    for name, content in pages(failures).items():
        (folder / name).write_text(content)
    return stale


def drift(folder: Path, failures: Sequence[FailureRow] = ()) -> list[Path]:
    """The generated files in `folder` that differ from what `write` would write, or are missing."""
    return [
        folder / name
        for name, content in pages(failures).items()
        if not (folder / name).is_file() or (folder / name).read_text() != content
    ]
