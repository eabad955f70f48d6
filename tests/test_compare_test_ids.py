"""The comparison of test ids: renames need the new id to exist, and every id that is gone needs a reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from compare_test_ids import RENAMES, Rule, compare, ids_of, read_added, read_rules, report

RULES = [
    Rule("tests/test_old.py::", "tests/test_new.py::", "the file was renamed"),
    Rule("tests/test_gone.py::", None, "nothing does that any more"),
    Rule("tests/test_never.py::", None, "never there"),
]


def test_a_rename_counts_where_the_new_id_exists() -> None:
    found = compare(
        ["tests/test_old.py::test_a[1]", "tests/test_old.py::test_b", "tests/test_same.py::test_c"],
        ["tests/test_new.py::test_a[1]", "tests/test_same.py::test_c"],
        RULES,
    )
    assert found.renamed == {"tests/test_old.py::test_a[1]": ("tests/test_new.py::test_a[1]", "the file was renamed")}
    assert found.unexplained == ["tests/test_old.py::test_b"]
    assert found.added == {}


def test_every_id_that_is_gone_needs_a_reason() -> None:
    found = compare(["tests/test_gone.py::test_a", "tests/test_lost.py::test_b"], ["tests/test_x.py::test_c"], RULES)
    assert found.gone == {"tests/test_gone.py::test_a": "nothing does that any more", "tests/test_lost.py::test_b": ""}
    assert found.unexplained == ["tests/test_lost.py::test_b"]
    assert found.added == {"tests/test_x.py::test_c": ""}
    assert [rule.old for rule in found.unused] == ["tests/test_old.py::", "tests/test_never.py::"]


def test_the_report_has_a_line_for_each_test_and_reason() -> None:
    lines = list(report(compare([f"tests/test_gone.py::test_a[{n}]" for n in range(3)], [], RULES)))
    assert "gone: 3 ids" in lines
    assert "      3  tests/test_gone.py::test_a  (nothing does that any more)" in lines
    assert "gone without a reason: 0 ids" in lines


def test_the_table_of_renames_is_well_formed() -> None:
    rules = read_rules(RENAMES)
    assert all(rule.old.startswith("tests/") and rule.why for rule in rules)
    assert all(read_added(RENAMES).values())
    assert len({rule.old for rule in rules}) == len(rules)


def test_ids_are_read_from_the_output_of_pytest(tmp_path: Path) -> None:
    output = tmp_path / "ids.txt"
    output.write_text("tests/test_a.py::test_b[c d]\n\n=== short test summary info ===\n1 test collected in 0.01s\n")
    assert ids_of(str(output)) == ["tests/test_a.py::test_b[c d]"]


def test_the_exit_code_is_1_where_an_id_is_gone_without_a_reason(tmp_path: Path) -> None:
    base, new = tmp_path / "base", tmp_path / "new"
    base.write_text("tests/test_lost.py::test_b\n")
    new.write_text("")
    script = Path(__file__).with_name("compare_test_ids.py")
    done = subprocess.run([sys.executable, script, base, new], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "gone without a reason: 1 ids" in done.stdout
