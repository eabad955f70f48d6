"""docs/structure.md has one line for every module, under its storey, and no other line.

`python tests/core/test_structure_page.py --missing` prints the lines to add, made of the modules' docstrings, and the
lines to delete.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "structure.md"
LINE = re.compile(r"^- `([\w/]+\.py)`: \S.*$")


def modules() -> set[str]:
    """Every module under lifecycle/ and adapters/ but the `__init__` files, as a path from the root."""
    found = [path for package in ("lifecycle", "adapters") for path in (ROOT / package).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix() for path in found if path.name != "__init__.py"}


def listed() -> Iterator[tuple[tuple[str, ...], str]]:
    """Each list line of the page: the names in its storey's heading, and its path ("" where it has none)."""
    storey: tuple[str, ...] = ()
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            storey = tuple(re.findall(r"`(\w+)`", line))
        elif line.startswith("- "):
            match = LINE.match(line)
            yield storey, match.group(1) if match else ""


def layer(path: str) -> str:
    """The unit of a module in the contract of the storeys; `__main__` is the command line, adapters are one unit."""
    parts = path.removesuffix(".py").split("/")
    if parts[0] == "adapters":
        return "adapters"
    return "cli" if parts[1] == "__main__" else parts[1]


def test_every_module_has_exactly_one_line() -> None:
    counts = Counter(path for _, path in listed())
    assert sorted(modules() - set(counts)) == [], "run: python tests/core/test_structure_page.py --missing"
    assert [path for path, count in counts.items() if count > 1] == []


def test_every_line_names_a_module() -> None:
    assert sorted(path for _, path in listed() if path not in modules()) == []


def test_every_line_stands_under_its_storey() -> None:
    assert [path for storey, path in listed() if layer(path) not in storey] == []


def test_the_storeys_stand_in_the_order_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["id"] == "storeys")
    height = {name: index for index, names in enumerate(layers) for name in re.findall(r"\w+", names)}
    storeys = dict.fromkeys(storey for storey, _ in listed())
    order = [height[name] for storey in storeys for name in storey if name != "adapters"]
    assert order == sorted(order)
    assert {name for storey in storeys for name in storey} - {"adapters"} <= set(height)


def described(path: str) -> str:
    """The line for a module, from the first sentence of its docstring."""
    text = " ".join((ast.get_docstring(ast.parse((ROOT / path).read_text())) or "").split())
    sentence = re.split(r"(?<=[.?!])\s", text)[0].rstrip(".")
    return f"- `{path}`: {sentence[:1].lower()}{sentence[1:]}"


def missing() -> list[str]:
    """What to change in the page: lines to add below their storey, and paths whose lines are to be deleted."""
    paths = {path for _, path in listed()}
    added = [f"under {layer(path)}:\n{described(path)}" for path in sorted(modules() - paths)]
    return added + [f"delete: {path or 'a line without a path'}" for path in sorted(paths - modules())]


if __name__ == "__main__":
    print("\n".join(missing()) if "--missing" in sys.argv[1:] else __doc__)
