"""Every place where the library is broken on purpose, found in its code: a guard, a barrier, a lease check, a doubt.

Two sorts. A row of the table loses a guard or a proof, or leads elsewhere: found in `rules.table`. A call in the source
is replaced by what it would be without it (`CALLS`: a barrier that has returned, a look that finds nothing, a record
that is left as it is): found by its name in the syntax tree. A mutant has a name by which it is made again in another
process (`hook.py`), so that nothing of it is left behind in this one.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lifecycle.core.states import RING, State
from lifecycle.rules import table
from lifecycle.rules.table import Operation

ROOT = Path(table.__file__).parents[2]

#: Where calls are replaced.
FOLDERS = ("lifecycle/engine", "lifecycle/fleet", "lifecycle/rules/knowledge", "lifecycle/store")
FILES = tuple(f"lifecycle/rules/{name}.py" for name in ("contradiction", "decision", "identity", "mapping"))


@dataclass(frozen=True, slots=True)
class Mutant:
    """One place, broken. `what` says how, in words; `where` is a row of the table, or a file with line and column."""

    kind: str
    where: str
    what: str

    @property
    def name(self) -> str:
        """By which it is made again."""
        return f"{self.kind} | {self.where} | {self.what}"

    @property
    def module(self) -> str | None:
        """The module whose source is broken; None where a row of the table is."""
        path = self.where.partition(":")[0]
        return path.removesuffix(".py").replace("/", ".") if path.endswith(".py") else None


# rows of the table


def _row(each: Operation) -> str:
    return f"{each.command} from {each.source}"


def of_the_table() -> Iterator[Mutant]:
    """Each guard and each proof of each row dropped, and each destination another state of the ring."""
    for each in table.OPERATIONS:
        yield from (Mutant("guard", _row(each), guard.name) for guard in each.guards)
        yield from (Mutant("proof", _row(each), proof.name) for proof in each.proofs)
    for via, dest in {each.via: each.dest for each in table.OPERATIONS}.items():
        yield from (Mutant("destination", str(via), str(state)) for state in RING if state is not dest)


def changed_rows(mutant: Mutant) -> tuple[Operation, ...]:
    """The rows of the table with this mutant in it."""

    def changed(each: Operation) -> Operation:
        if mutant.kind == "destination":
            return replace(each, dest=State(mutant.what)) if str(each.via) == mutant.where else each
        if _row(each) != mutant.where:
            return each
        part = {"guard": "guards", "proof": "proofs"}[mutant.kind]
        kept: tuple[Any, ...] = tuple(check for check in getattr(each, part) if check.name != mutant.what)
        return replace(each, **{part: kept})

    return tuple(map(changed, table.OPERATIONS))


# calls in the source

TRUE, FALSE, NOTHING = (ast.Constant(value) for value in (True, False, None))

#: A call's replacement: a value, or a part of the call itself.
Instead = ast.expr | Callable[[ast.Call], ast.expr]


def _first(call: ast.Call) -> ast.expr:
    return call.args[0]


def _subject(call: ast.Call) -> ast.expr:
    assert isinstance(call.func, ast.Attribute)
    return call.func.value


def _the_first_of(call: ast.Call) -> ast.expr:
    """Of several choices that fit the first is taken."""
    return ast.Subscript(call, ast.Slice(upper=ast.Constant(1)), ast.Load())


def _the_first_state(call: ast.Call) -> ast.expr:
    """Of several states that fit the first is entered."""
    chosen = ast.parse("(lambda stay: Enter(stay.candidates[0]) if stay.candidates else stay)(None)", mode="eval").body
    assert isinstance(chosen, ast.Call)
    chosen.args = [call]
    return chosen


def _value(code: str) -> ast.expr:
    return ast.parse(code, mode="eval").body


#: A verdict that is in no module's namespace; in brackets it is no call, and is not awaited.
PROVED = "[__import__('lifecycle.core.verdicts').core.verdicts.Proved(grade=__import__('lifecycle').Grade.REPORTED)][0]"


@dataclass(frozen=True, slots=True)
class Kind:
    """What calls of these names become. A name that begins with a dot is one of a method."""

    names: tuple[str, ...]
    instead: Instead
    what: str


#: By kind of mutant: the calls that are replaced, and what is left instead.
CALLS: Mapping[str, Sequence[Kind]] = {
    "barrier": (Kind((".barrier",), TRUE, "has returned, and asked nothing"),),
    "journal": (
        Kind(
            (
                *(".journal.note", ".journal.call_sent", ".journal.call_ended", ".journal.attached", "journal.phase"),
                *("._journal.handed_over", "._journal.phase", "._journal.quarantined"),
            ),
            NOTHING,
            "writes nothing",
        ),
    ),
    "row": (
        Kind((".store.save", "store.save", "store.save_all"), NOTHING, "saves nothing"),
        Kind(("intended",), _first, "writes no intent down"),
        Kind(("interrupted",), _first, "is as it was kept"),
    ),
    "lease": (
        Kind(("_is_taken",), FALSE, "is nobody's"),
        Kind((".owner.other", "owner.other", "self.other"), NOTHING, "nobody else has it"),
        Kind(("session.take", "_take_leases"), NOTHING, "is not taken"),
    ),
    "wait": (
        Kind(("_call_over",), NOTHING, "waits for no call of another"),
        Kind(("call_under_way",), NOTHING, "knows of no call of another"),
    ),
    "boot": (
        Kind(("same_process", "identity.same_process"), TRUE, "is the same process"),
        Kind(("other_process",), NOTHING, "is no other process"),
        Kind(("compare", "identity.compare"), ast.Constant("same"), "is the same boot"),
        Kind(("_confirmed_alone",), lambda call: call.args[1], "one look is enough"),
    ),
    "age": (
        Kind(("verify_all", "self._verify", "_verify_others", "self._deny", "verify"), NOTHING, "looks at nothing"),
        Kind(("believed_only", "_was_moved"), FALSE, "is as it was"),
        Kind(("contradiction", "requests_let_in", "knowledge.moved_unseen"), NOTHING, "nothing is denied"),
        Kind((".to_ask",), _value("frozenset()"), "nothing is asked again"),
        Kind((".after_call",), _subject, "serves after every call"),
        Kind(("session.forget_observed",), NOTHING, "serves after its move"),
    ),
    "idle": (
        Kind((".prove_idle",), _value(PROVED), "is idle, and was asked nothing"),
        Kind(("AskIdle",), _value("Stay('nobody asks')"), "is not asked"),
        Kind(("knowledge.found_idle",), _first, "learns nothing from the answer"),
    ),
    "doubt": (
        Kind((".doubt",), _subject, "stays known"),
        Kind(
            (
                *("moved_by_others", "knowledge.memory_is_unknown", "knowledge.used_by_others", "used_by_others"),
                *("knowledge.unproved", "_uncertain", "disputed", "knowledge.not_closed"),
            ),
            _first,
            "leaves known what was",
        ),
    ),
    "comfortable": (
        Kind(("unmapped_choices", "_level_fits", "_missing_fits"), _the_first_of, "the first choice is taken"),
        Kind(("_none_fits",), _the_first_state, "the first state is entered"),
    ),
}


def _dotted(node: ast.expr) -> str:
    """The names of a call's function: `session.adapter.barrier`; a call or an index in it is left out."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{_dotted(value)}.{name}"
        case _:
            return ""


def _named(call: ast.Call, names: Sequence[str]) -> bool:
    dotted = _dotted(call.func)
    return any(dotted.endswith(name) if name.startswith(".") else dotted == name for name in names)


def _places(tree: ast.AST) -> Iterator[tuple[ast.Call, str, Kind]]:
    for node in ast.walk(tree):
        for kind, calls in CALLS.items() if isinstance(node, ast.Call) else ():
            yield from ((node, kind, each) for each in calls if _named(node, each.names))


def of_the_source(root: Path = ROOT) -> Iterator[Mutant]:
    """Each call of `CALLS` in the files of the library."""
    paths = [path for folder in FOLDERS for path in sorted((root / folder).glob("*.py"))]
    for path in [*paths, *(root / each for each in FILES)]:
        for call, kind, each in _places(ast.parse(path.read_text())):
            where = f"{path.relative_to(root)}:{call.lineno}:{call.col_offset}"
            yield Mutant(kind, where, f"{_dotted(call.func).removeprefix('.')} {each.what}")


class _Broken(ast.NodeTransformer):
    """The syntax tree with this mutant in it."""

    def __init__(self, mutant: Mutant) -> None:
        self._at = tuple(map(int, mutant.where.split(":")[1:]))
        self._kind = mutant.kind
        self.done = 0

    def visit_Await(self, node: ast.Await) -> ast.expr:
        """What is left of an awaited call is awaited no more."""
        before, inner = self.done, self.visit(node.value)
        return inner if self.done > before and not isinstance(inner, ast.Call) else ast.Await(inner)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """The call at this place becomes what is left instead."""
        if (node.lineno, node.col_offset) == self._at:
            for each in CALLS[self._kind]:
                if _named(node, each.names):
                    self.done += 1
                    return each.instead(node) if callable(each.instead) else each.instead
        self.generic_visit(node)
        return node


def broken(mutant: Mutant, source: str) -> ast.AST:
    """The module's syntax tree with this mutant in it. LookupError where the source has no such place."""
    transformer = _Broken(mutant)
    tree = transformer.visit(ast.parse(source))
    if transformer.done != 1:
        raise LookupError(f"{mutant.name}: {transformer.done} places")
    return ast.fix_missing_locations(tree)


# calls that are repeated

REPEATED = ("release", "restore", "load", "begin_update", "end_update")


def all_of() -> list[Mutant]:
    """Every mutant."""
    repeated = [Mutant("repeated", "lifecycle/engine/call.py", name) for name in REPEATED]
    return [*of_the_table(), *of_the_source(), *repeated]


def named(name: str) -> Mutant:
    """The mutant of this name."""
    return Mutant(*name.split(" | "))


def source_of(module: str) -> Path:
    """The file of a module."""
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin)
