"""Two things are written in one place each: an engine's state and record, and what is known of an engine.

Only engine/session.py assigns a state or a record. Only rules/knowledge/ makes a fact known or unknown.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lifecycle

ROOT = Path(lifecycle.__file__).parent
STATE_WRITER = "engine/session.py"
FACT_WRITER = "rules/knowledge/"
#: Attributes that are an engine's state or record.
WRITTEN = frozenset({"state", "_state", "record", "_record"})
#: The steps of `Facts`, and the file that defines them.
STEPS, DEFINITION = frozenset({"learn", "doubt"}), "core/facts.py"
#: Files with a class that has a `self.state` and is no engine: an error carries the state in which its command failed,
#: and `transitions` moves a token in place of an engine.
OTHER_STATES = frozenset({"core/errors.py", "rules/machine.py"})


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Every file of `lifecycle/`, relative to it, and every file of `adapters/`, with their trees."""
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())
    for path in sorted((ROOT.parent / "adapters").rglob("*.py")):
        yield path.relative_to(ROOT.parent).as_posix(), ast.parse(path.read_text())


def assigned(tree: ast.AST, *, of_self: bool = True) -> Iterator[tuple[int, str]]:
    """Line and name of each attribute that is assigned, deleted, or set by `setattr` with a literal name.

    Without `of_self`, assignments of an attribute of `self` are left out.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            if of_self or not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and _called(node) in ("setattr", "__setattr__", "delattr"):
            names = [each.value for each in node.args if isinstance(each, ast.Constant)]
            yield from ((node.lineno, name) for name in names if isinstance(name, str))


def called(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each method that is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.lineno, node.func.attr


def _called(node: ast.Call) -> str:
    return str(getattr(node.func, "attr", getattr(node.func, "id", "")))


def state_writers(tree: ast.AST, *, of_self: bool = True) -> list[tuple[int, str]]:
    """Line and attribute of each assignment of a state or record."""
    return sorted((line, name) for line, name in assigned(tree, of_self=of_self) if name in WRITTEN)


def fact_writers(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and method of each step that makes a fact known or unknown."""
    return sorted((line, name) for line, name in called(tree) if name in STEPS)


def test_only_the_session_assigns_a_state_or_a_record() -> None:
    places = [
        f"{file}:{line}: assigns .{name}"
        for file, tree in sources()
        if file != STATE_WRITER
        for line, name in state_writers(tree, of_self=file not in OTHER_STATES)
    ]
    assert not places, "\n".join([f"only {STATE_WRITER} may assign a state or a record:", *places])


def test_only_knowledge_makes_facts_known_or_unknown() -> None:
    places = [
        f"{file}:{line}: .{name}()"
        for file, tree in sources()
        if not file.startswith(FACT_WRITER) and file != DEFINITION
        for line, name in fact_writers(tree)
    ]
    assert not places, "\n".join([f"only {FACT_WRITER} may make a fact known or unknown:", *places])


@pytest.mark.parametrize(
    "code",
    [
        "engine.state = 1",
        "engine.state, other = 1, 2",
        "engine.state: int = 1",
        "engine._record += 1",
        "del engine.record",
        "for engine.state in (): pass",
        "with open() as engine.state: pass",
        "setattr(engine, 'state', 1)",
        "object.__setattr__(engine, '_record', 1)",
    ],
)
def test_every_kind_of_assignment_is_found(code: str) -> None:
    assert len(state_writers(ast.parse(code))) == 1


def test_the_state_of_an_error_is_no_engines() -> None:
    tree = ast.parse("self.state = 1\nengine.state = 2\n")
    assert state_writers(tree, of_self=False) == [(2, "state")]


@pytest.mark.parametrize("code", ["facts.learn({}, 1)", "self.facts.doubt({})", "Facts().learn({}, 1)"])
def test_every_kind_of_call_is_found(code: str) -> None:
    assert len(fact_writers(ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code", ["print(engine.state)", "state = 1", "def learn(): pass", "Transition(state=1)", "engine.doubt is None"]
)
def test_reading_and_naming_are_no_writing(code: str) -> None:
    assert state_writers(ast.parse(code)) == fact_writers(ast.parse(code)) == []
