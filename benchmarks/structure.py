"""Measures the shape of the source: length of functions, docstrings, comments, longest file; beside other codebases.

    python benchmarks/structure.py                    # prints the table and writes docs/measured/structure.md
    python benchmarks/structure.py --stdout PATH ...  # measures these folders too, and writes nothing

A function's length is in lines, from `def` to its last line, docstring included, nested functions counted by
themselves. A public name is a module's or class's function or class without a leading underscore. Comments are counted
per 100 lines of the file, blank lines included.
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "measured" / "structure.md"
OURS = ("lifecycle", "adapters")
HEADINGS = ("code", "files", "functions: median", "p90", "max", "comments per 100 lines", "docstrings", "longest file")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Shape:
    """The figures of one codebase; None where none was taken. Lengths in lines, docstrings in percent."""

    name: str
    files: int | None
    median: float
    p90: int
    longest_function: int
    comments: float | None
    docstrings: float | None
    longest_file: int


#: The models, as measured when the storeys were drawn (docs/adr/0011-the-house.md).
MODELS = (
    Shape("h11", None, 7, 39, 64, 26.9, 26, 659),
    Shape("httpcore", None, 7, 28, 103, 7.1, 10, 592),
    Shape("dramatiq", None, 7, 25, 185, None, 53, 708),
    Shape("mini-sglang", None, 5, 26, 215, 3.3, 7, 501),
    Shape("kopf", None, 9, 49, 223, 8.0, 35, 968),
)


def public(body: Sequence[ast.stmt]) -> Iterator[ast.ClassDef | Function]:
    """The public classes and functions of a module or class, and those of its public classes."""
    for each in body:
        if isinstance(each, ast.ClassDef | Function) and not each.name.startswith("_"):
            yield each
            if isinstance(each, ast.ClassDef):
                yield from public(each.body)


def comments(text: str) -> int:
    """How many comments there are, beside code or on lines of their own."""
    return sum(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(text).readline))


def measure(folder: Path) -> Shape:
    """The shape of every Python file below this folder; ValueError where it has no function."""
    texts = [path.read_text() for path in sorted(folder.rglob("*.py"))]
    trees = [ast.parse(text) for text in texts]
    functions = [each for tree in trees for each in ast.walk(tree) if isinstance(each, Function)]
    if not functions:
        raise ValueError(f"no Python function below {folder}")
    lengths = sorted((each.end_lineno or each.lineno) - each.lineno + 1 for each in functions)
    lines = [len(text.splitlines()) for text in texts]
    documented = [ast.get_docstring(each) is not None for tree in trees for each in public(tree.body)]
    return Shape(
        name=folder.name,
        files=len(texts),
        median=statistics.median(lengths),
        p90=lengths[int(0.9 * len(lengths))],
        longest_function=lengths[-1],
        comments=100 * sum(map(comments, texts)) / sum(lines),
        docstrings=100 * sum(documented) / len(documented) if documented else None,
        longest_file=max(lines),
    )


def table(shapes: Sequence[Shape]) -> str:
    """The shapes as a Markdown table."""

    def cell(value: float | None, form: str = ",.0f") -> str:
        return "" if value is None else format(value, form)

    rows = [
        (
            each.name,
            cell(each.files),
            cell(each.median, "g"),
            cell(each.p90),
            cell(each.longest_function),
            cell(each.comments, ".1f"),
            "" if each.docstrings is None else f"{each.docstrings:.0f} %",
            cell(each.longest_file),
        )
        for each in shapes
    ]
    lines = [HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(shapes: Sequence[Shape]) -> str:
    """docs/measured/structure.md."""
    git = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return (
        "# The shape of the source\n\n"
        "Written by `python benchmarks/structure.py`; do not edit. Lengths in lines; docstrings on public names. The\n"
        "other codebases are the models that this one is compared with, as measured when its storeys were drawn.\n\n"
        f"Commit {git.stdout.strip() or 'unknown'}, {datetime.now(UTC):%Y-%m-%d}.\n\n{table([*shapes, *MODELS])}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; without folders of others and --stdout, writes the page."""
    parser = argparse.ArgumentParser(description="Measure the shape of the source.")
    parser.add_argument("folders", nargs="*", type=Path, help="other codebases to measure too")
    parser.add_argument("--stdout", action="store_true", help="write no page")
    chosen = parser.parse_args(arguments)
    ours = [measure(ROOT / name) for name in OURS]
    shapes = [*ours, *map(measure, chosen.folders)]
    print(table([*shapes, *MODELS]), end="")
    if not chosen.stdout and not chosen.folders:
        PAGE.write_text(page(ours))
        print(f"written: {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
