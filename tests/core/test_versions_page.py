"""docs/versions.md is made from the tables of the adapters: `python tests/core/test_versions_page.py` makes it anew."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from lifecycle import adapters

PAGE = Path(__file__).resolve().parents[2] / "docs" / "versions.md"

HEAD = """# Versions

Made from `adapters/*/versions.py` by `python tests/core/test_versions_page.py`; do not edit. An adapter reads the
version of its server when it connects. One that is in none of these ranges is refused, and the refusal names them; with
`unknown_version=warn` in its URL it is driven as the range before it. `lifecycle doctor` prints the ranges, and which
one a server is in.

A range that was *measured* was run; of the others the released packages named there were read.
"""


def tables() -> list[Any]:
    """The modules of adapters that have a table, by name."""
    found = sorted(Path(adapters.__file__).parent.glob("*/versions.py"))
    modules = [import_module(f"lifecycle.adapters.{path.parent.name}.versions") for path in found]
    return [module for module in modules if hasattr(module, "VERSIONS")]


def meanings(effects: type) -> dict[str, str]:
    """What each effect is, from the docstring of its class."""
    listed = inspect.cleandoc(effects.__doc__ or "").partition("\n- ")[2]
    parts = (re.fullmatch(r"`(\w+)`: (.*)", part.replace("\n ", ""), re.DOTALL) for part in listed.split("\n- "))
    return {part[1]: " ".join(part[2].split()) for part in parts if part}


def word(value: object) -> str:
    """A value as it stands in the table."""
    return {True: "yes", False: "no"}.get(value, "") if isinstance(value, bool) else str(value)


def section(module: Any) -> list[str]:
    """One engine: its ranges, what is so in all of them, and what differs."""
    ranges, effects = list(module.VERSIONS), module.Effects
    lines = [f"\n## {module.VERSIONS.engine}\n", "| range | how it is known |", "|---|---|"]
    lines += [f"| {each} | {each.source} |" for each in ranges]
    of_all = next(part for part in inspect.cleandoc(module.__doc__).split("\n\n") if part.startswith("Of all of them"))
    lines += ["", of_all, "", f"| | {' | '.join(f'from {each.first}' for each in ranges)} | what it is |"]
    lines += ["|---" * (len(ranges) + 2) + "|"]
    for field in fields(effects):
        values = " | ".join(word(getattr(each.effects, field.name)) for each in ranges)
        lines.append(f"| `{field.name}` | {values} | {meanings(effects)[field.name]} |")
    return lines


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(line for module in tables() for line in section(module)) + "\n"


def test_the_page_is_as_the_tables() -> None:
    assert PAGE.read_text() == page(), "run python tests/core/test_versions_page.py"


def test_every_effect_is_described_and_differs_somewhere() -> None:
    for module in tables():
        names = {field.name for field in fields(module.Effects)}
        assert set(meanings(module.Effects)) == names
        for name in names:
            assert len({getattr(each.effects, name) for each in module.VERSIONS}) > 1, name


def test_every_adapter_with_a_table_names_its_ranges() -> None:
    for module in tables():
        adapter = import_module(module.__name__.replace(".versions", ".adapter"))
        named = [each for each in vars(adapter).values() if getattr(each, "version_ranges", None)]
        assert [each.version_ranges for each in named if each.__module__ == adapter.__name__] == [module.VERSIONS.known]


if __name__ == "__main__":
    PAGE.write_text(page())
