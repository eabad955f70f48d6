"""Compares the test ids of two commits: which are gone, which are renamed, which are added, and why.

    python tests/compare_test_ids.py BASE NEW

BASE and NEW are each a file with the output of `pytest --collect-only -q`, or a commit. The ids of a commit are
collected in a temporary git worktree, by the Python that runs this script: its packages are those of the present
checkout, and the code is that of the commit.

The reasons stand in tests/renamed_tests.toml. The exit code is 1 where an id is gone without one, else 0.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RENAMES = Path(__file__).with_name("renamed_tests.toml")


@dataclass(frozen=True, slots=True)
class Rule:
    """Why ids that begin with `old` are gone. `new` replaces that prefix; None: nothing replaces them."""

    old: str
    new: str | None
    why: str

    def applied(self, test_id: str) -> str | None:
        """Returns the new id; None where the rule is about other ids, or about ids without a replacement."""
        if self.new is None or not test_id.startswith(self.old):
            return None
        return self.new + test_id.removeprefix(self.old)


@dataclass(slots=True)
class Comparison:
    """The differences between two lists of test ids."""

    #: Old id -> new id and reason.
    renamed: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: Old id -> reason; an empty reason means that the table has none.
    gone: dict[str, str] = field(default_factory=dict)
    #: New id -> reason, empty where the table has none.
    added: dict[str, str] = field(default_factory=dict)
    #: Rules that apply to no id of the base.
    unused: list[Rule] = field(default_factory=list)

    @property
    def unexplained(self) -> list[str]:
        """The ids that are gone without a reason."""
        return [test_id for test_id, why in self.gone.items() if not why]


def read_rules(path: Path) -> list[Rule]:
    """Reads the rules: [[renamed]] old, new, why; [[gone]] old, why; [[by_file]] prefix, why; [[added]] new, why."""
    table = tomllib.loads(path.read_text())
    rules = [Rule(each["old"], each["new"], each["why"]) for each in table.get("renamed", ())]
    rules += [Rule(each["old"], None, each["why"]) for each in table.get("gone", ())]
    return rules + [Rule(each["prefix"], None, each["why"]) for each in table.get("by_file", ())]


def read_added(path: Path) -> dict[str, str]:
    """Reads the reasons of added ids, by their prefix."""
    table = tomllib.loads(path.read_text())
    reasons = {each["new"]: each["why"] for each in table.get("added", ())}
    return reasons | {each["prefix"]: each["why"] for each in table.get("by_file", ())}


def compare(
    base: Iterable[str], new: Iterable[str], rules: Sequence[Rule], reasons: Mapping[str, str] | None = None
) -> Comparison:
    """Compares two lists of ids. A rename counts only where the new id exists; else the old id is gone."""
    before, after = set(base), set(new)
    found, used = Comparison(), set[Rule]()
    for test_id in sorted(before):
        matching = [rule for rule in rules if test_id.startswith(rule.old)]
        used |= set(matching)
        if test_id in after:
            continue
        renames = [(rule.applied(test_id), rule.why) for rule in matching]
        target = next(((to, why) for to, why in renames if to in after), None)
        if target is not None and target[0] is not None:
            found.renamed[test_id] = (target[0], target[1])
        else:
            found.gone[test_id] = next((rule.why for rule in matching if rule.new is None), "")
    targets = {to for to, _ in found.renamed.values()}
    for test_id in sorted(after - before - targets):
        found.added[test_id] = next((why for prefix, why in (reasons or {}).items() if test_id.startswith(prefix)), "")
    found.unused = [rule for rule in rules if rule not in used]
    return found


def report(found: Comparison) -> Iterator[str]:
    """Formats the differences; ids of one parametrized test and one reason share a line."""
    for title, ids in (
        ("gone without a reason", Counter(_test(each) for each in found.unexplained)),
        ("gone", Counter(f"{_test(each)}  ({why})" for each, why in found.gone.items() if why)),
        (
            "renamed",
            Counter(f"{_test(old)}\n    -> {_test(to)}  ({why})" for old, (to, why) in found.renamed.items()),
        ),
        ("added", Counter(f"{_test(each)}{f'  ({why})' if why else ''}" for each, why in found.added.items())),
    ):
        yield f"{title}: {ids.total()} ids"
        yield from (f"  {count:5}  {line}" for line, count in ids.items())
    yield from (f"applies to no id of the base: {rule.old}" for rule in found.unused)


def _test(test_id: str) -> str:
    """The id without its parameters."""
    return test_id.partition("[")[0]


def ids_of(source: str) -> list[str]:
    """Returns the test ids of a file of ids, or of a commit."""
    path = Path(source)
    lines = (path.read_text() if path.is_file() else _collect(source)).splitlines()
    return [line for line in lines if "::" in line and not line.startswith(("SKIPPED", "ERROR", " "))]


def _collect(commit: str) -> str:
    with tempfile.TemporaryDirectory(prefix="test-ids-") as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, commit], check=True)
        try:
            # `lifecycle.adapters` is the folder adapters/, mapped by the installation to the present checkout.
            (tree / "lifecycle" / "adapters").symlink_to("../adapters")
            command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
            done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(
                    f"{commit}: its tests cannot be collected:\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
                )
            return done.stdout
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], check=True)


def main() -> int:
    """Prints the differences. Returns 1 where an id is gone without a reason."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a file of test ids, or a commit")
    parser.add_argument("new", help="a file of test ids, or a commit")
    parser.add_argument("--renames", type=Path, default=RENAMES, help="the table of reasons")
    arguments = parser.parse_args()
    base, new = ids_of(arguments.base), ids_of(arguments.new)
    found = compare(base, new, read_rules(arguments.renames), read_added(arguments.renames))
    print(f"{len(base)} ids in {arguments.base}, {len(new)} in {arguments.new}")
    print("\n".join(report(found)))
    return 1 if found.unexplained else 0


if __name__ == "__main__":
    raise SystemExit(main())
