"""docs/measured/peers.md: what each loop did with each fault, what a user adds, what ran, and what stood in."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

_NO_CODE = frozenset(
    {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
)

FAULTS = {
    "none": "none",
    "lies": "the first engine answers 200 to a release and frees nothing",
    "dies": "the first engine dies while tensors are pushed to it",
}


def code_lines(path: Path) -> set[int]:
    """The numbers of the lines of a module that have code, without imports, docstrings and comments."""
    text = path.read_text()
    found = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            found |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom) or _is_docstring(node):
            found -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def _is_docstring(node: ast.AST) -> TypeGuard[ast.Expr]:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def shims() -> dict[str, int]:
    """The lines of code of each shim, by its path."""
    found = sorted((ROOT / "examples").glob("*_shim.py"))
    return {str(path.relative_to(ROOT)): len(code_lines(path)) for path in found}


def stand_ins(peer: str) -> dict[str, int]:
    """The lines of code of each class and function that stands in for something, by name."""
    path = HERE / f"{peer}_stand_ins.py"
    counted = code_lines(path)
    return {
        node.name: len(counted & set(range(node.lineno, (node.end_lineno or 0) + 1)))
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }


def page(found: Mapping[str, Mapping[str, Any]], facts: Mapping[str, str]) -> str:
    """The whole page."""
    parts = [
        "# Released loops of peers: with their own code, and over this library\n\n",
        "Written by `make peers` (`tests/peers/record_peers.py`); do not edit. Each loop is the released package,\n"
        "installed without its requirements and not changed; the engines are loopback processes. What an engine\n"
        "holds is read from its processes, what it serves from its tokens, and neither is asked of the loop.\n\n",
        "| | |\n|---|---|\n",
        *(f"| {name} | {value} |\n" for name, value in facts.items()),
        "\n## Loop by fault\n\n",
        "Two steps each. What is held is in MiB beyond a bare process, by engine (the one with the fault first), at\n"
        "the begin of each training: 128 is everything. An engine is silent where it does not generate: it sleeps, or\n"
        "is kept from serving.\n",
        *(part for peer in found for part in _outcomes(found[peer])),
        "\n## Lines that a user adds\n\nWithout imports, docstrings and blank lines.\n\n| shim | lines |\n|---|---:|\n",
        *(f"| [{path}](../../{path}) | {count} |\n" for path, count in shims().items()),
        *(part for peer in found for part in _what_ran(peer, found[peer])),
    ]
    return "".join(parts)


def _outcomes(found: Mapping[str, Any]) -> Iterator[str]:
    cells = {(each["loop"], each["fault"], each["code"]): each for each in found["outcomes"]}
    for loop in dict.fromkeys(each["loop"] for each in found["outcomes"]):
        yield f"\n### {found['release'].replace('==', ' ')}, {loop}\n\n"
        yield "| fault | their own code | over the shim |\n|---|---|---|\n"
        for fault, words in FAULTS.items():
            if (loop, fault, "theirs") in cells:
                yield f"| {words} | {_cell(cells[loop, fault, 'theirs'])} | {_cell(cells[loop, fault, 'ours'])} |\n"


def _cell(outcome: Mapping[str, Any]) -> str:
    ended = outcome["ended"].replace("|", "\\|")
    ended = f"{ended[:220]}..." if len(ended) > 220 else ended
    held = "; ".join(", ".join(map(str, each)) for each in outcome["held_mib"])
    none = "**training did not begin**" if outcome["loop"] == "colocated" else "trains on other devices"
    trained = f"held {held} when training began" if held else none
    rollout = f"generated with the {outcome['rollout']} weights" if outcome["rollout"] else "generated nothing"
    engines = ", ".join(outcome["engines"])
    known = f"<br>known to be: {', '.join(outcome['known'])}" if outcome["known"] else ""
    return f"{ended} ({outcome['after_s']} s)<br>{trained}<br>{rollout}<br>afterwards: {engines}{known}"


def _what_ran(peer: str, found: Mapping[str, Any]) -> Iterator[str]:
    functions: Sequence[Mapping[str, Any]] = found["functions"]
    lines, ran = (sum(each[key] for each in functions) for key in ("lines", "ran"))
    yield f"\n## {found['release'].replace('==', ' ')}: what ran of it\n\n"
    yield f"{len(functions)} functions, {ran} of their {lines} lines of code, in a step without a fault.\n\n"
    yield "| module | function | ran | lines |\n|---|---|---:|---:|\n"
    yield from (f"| {each['module']} | {each['name']} | {each['ran']} | {each['lines']} |\n" for each in functions)
    standing = stand_ins(peer)
    yield f"\nIn place of what it requires, {sum(standing.values())} lines:\n\n| stand-in | lines |\n|---|---:|\n"
    yield from (f"| {name} | {count} |\n" for name, count in standing.items())
    hollow = sorted({name.partition(".")[0] for name in found["hollow"]})
    yield f"\nImported and empty but for these ({len(found['hollow'])} modules): {', '.join(hollow)}.\n"
