"""The mutants: every place is found, each can be made, and those of guards and proofs are found by their stories."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import code_mutants
import pytest
from code_mutants import CALLS, all_of, broken, changed_rows, named, of_the_source
from hook import NAMED_BY
from mutants_run import EVERY_SCENARIO, SCENARIOS, STORIES, Came, killers_of, page

from lifecycle.core.states import State
from lifecycle.rules import table

HERE = Path(__file__).parent


def test_every_guard_every_proof_and_every_destination_has_its_mutants() -> None:
    count = Counter(each.kind for each in all_of())
    assert count["guard"] == sum(len(each.guards) for each in table.OPERATIONS)
    assert count["proof"] == sum(len(each.proofs) for each in table.OPERATIONS)
    assert count["destination"] == 5 * len({each.via for each in table.OPERATIONS})
    assert set(count) == set(STORIES)


def test_every_name_is_of_one_mutant() -> None:
    mutants = all_of()
    assert len({each.name for each in mutants}) == len(mutants)
    assert [named(each.name) for each in mutants] == mutants


def test_every_kind_of_call_stands_somewhere_in_the_code() -> None:
    found = {(each.kind, each.what.partition(" ")[2]) for each in of_the_source()}
    assert {(kind, each.what) for kind, calls in CALLS.items() for each in calls} == found


OF_FILES = list(dict.fromkeys(each.where.partition(":")[0] for each in of_the_source()))


@pytest.mark.parametrize("file", OF_FILES, ids=lambda file: file.removeprefix("lifecycle/"))
def test_every_place_of_a_file_can_be_broken(file: str) -> None:
    path = code_mutants.ROOT / file
    for mutant in of_the_source():
        if mutant.where.startswith(f"{file}:"):
            compile(broken(mutant, path.read_text()), str(path), "exec")  # type: ignore[call-overload]


def test_a_place_that_the_source_does_not_have_is_an_error() -> None:
    mutant = next(of_the_source())
    with pytest.raises(LookupError, match="0 places"):
        broken(mutant, "x = 1\n")


def test_a_row_loses_what_the_mutant_says_and_nothing_else() -> None:
    without = changed_rows(named("guard | release from drained | still_idle"))
    changed = [(was, now) for was, now in zip(table.OPERATIONS, without, strict=True) if was != now]
    ((was, now),) = changed
    assert [each.name for each in was.guards if each not in now.guards] == ["still_idle"]
    elsewhere = changed_rows(named("destination | draining | released"))
    assert {each.dest for each in elsewhere if each.via is State.DRAINING} == {State.RELEASED}


def of_a_process(mutant: str, code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(HERE), NAMED_BY: mutant}
    return subprocess.run(
        [sys.executable, "-c", f"import hook\n{code}"], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_process_is_broken_and_no_other() -> None:
    mutant = next(each for each in of_the_source() if each.where.startswith("lifecycle/engine/attempt.py"))
    code = "from lifecycle.engine import {}; print(type({}.__loader__).__name__)"
    assert of_a_process(mutant.name, code.format("attempt", "attempt")) == "_Loader"
    assert of_a_process(mutant.name, code.format("gather", "gather")) == "SourceFileLoader"


def test_who_survives_is_named_in_the_table() -> None:
    mutant = next(of_the_source())
    text = page([Came(mutant, "", "", 1.0), Came(mutant, "a story", "test_x", 1.0)], 60.0, {"commit": "0"})
    assert "killed 1 of 2" in text
    assert "| **nobody** |" in text
    assert "a story: `test_x`" in text


def test_every_killer_looks_in_files_and_scenarios_that_are_there() -> None:
    files = {Path("tests/core") / f"test_{name}.py" for names in STORIES.values() for name in names}
    assert [str(file) for file in files if not (code_mutants.ROOT / file).exists()] == []
    assert {key for keys in SCENARIOS.values() for key in keys} <= set(EVERY_SCENARIO)
    assert len(killers_of("age")) == 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_stories_find_every_guard_and_every_proof_that_is_dropped(report: Callable[[str], None]) -> None:
    ended = subprocess.run(
        [sys.executable, str(HERE / "mutants_run.py"), "--few", "--jobs", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    said = ended.stdout.splitlines()[-1]
    report(f"mutants of guards and proofs, by the stories: {said}")
    assert ended.returncode == 0, "\n".join(line for line in ended.stdout.splitlines() if "SURVIVES" in line) or said
