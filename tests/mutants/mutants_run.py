"""`make mutants`: breaks the library in every place that `code_mutants` finds, and says by what each is found.

Each mutant is given to the killers in the order of their cost, in a process of its own: the stories about its kind,
the explorer, all stories, the property tests. `--few` asks guards and proofs of the stories alone. The table is
docs/measured/mutants.md. Exit code 1: one survived, or a killer fails without any mutant.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "lanes")]

import code_mutants  # noqa: E402 - the folders of tests are no packages
from code_mutants import Mutant  # noqa: E402
from hook import NAMED_BY  # noqa: E402
from record_long import where  # noqa: E402

ROOT = HERE.parents[1]
PAGE = ROOT / "docs/measured/mutants.md"

#: The files of tests/core with the stories about each kind of mutant.
STORIES: Mapping[str, Sequence[str]] = {
    "guard": ("rows_need_their_checks",),
    "proof": ("rows_need_their_checks",),
    "destination": ("table", "stories"),
    "barrier": (
        *("stories_of_interleavings", "stories_of_failure", "mutants_of_the_core", "stories_of_pushes"),
        "stories_of_two_drivers",
    ),
    "journal": ("journal", "violations", "recovery_to", "quarantine", "journal_unwritable", "intent"),
    "row": ("store", "intent", "desired_of_fleets", "mutants_of_the_core"),
    "lease": ("lease_table", "lease", "stories_of_two_drivers", "store", "fleet_windows"),
    "wait": ("intent", "lease", "stories_of_two_drivers"),
    "boot": (
        *("stories_of_replacement", "boot_identity", "stories_of_age", "store", "stories_of_let_in"),
        "stories_of_tenants",
    ),
    "age": (
        *("stories_of_age", "stories_of_age_in_fleets", "stories_of_interleavings", "stories_of_others"),
        *("stories_of_let_in", "released_together", "stories_of_two_drivers", "freshness"),
    ),
    "idle": ("asked_whether_idle", "knowledge", "stories"),
    "doubt": (
        *("stories_of_interleavings", "stories_of_others", "stories_of_replacement", "boot_identity"),
        *("stories_of_let_in", "knowledge", "stories_of_failure", "intent", "stories_of_callers"),
        *("stories_of_two_drivers", "stories_of_pushes", "stories_of_answers", "lease"),
    ),
    "comfortable": (
        *("stories_of_age", "mutants_of_the_core", "stories_of_interleavings", "sizes"),
        *("stories_of_failure", "intent"),
    ),
    "repeated": ("stories", "stories_of_pushes"),
}

#: The scenarios in which the explorer looks for each kind first; then in the others.
SCENARIOS: Mapping[str, Sequence[str]] = {
    "lease": ("two drivers", "two drivers, two stores"),
    "wait": ("a driver is killed", "two drivers"),
    "row": ("a driver is killed",),
    "boot": ("engines end", "faults of calls"),
    "age": ("somebody else acts", "a second look"),
    "doubt": ("somebody else acts", "faults of calls", "a driver is killed"),
}
EVERY_SCENARIO = (
    "faults of calls",
    "a driver is killed",
    "a caller gives up",
    "two drivers",
    "two drivers, two stores",
    "engines end",
    "somebody else acts",
    "a second look",
    "tags of one size: a driver is killed",
)

LIMIT_S = 900.0


@dataclass(frozen=True, slots=True)
class Killer:
    """What may find a mutant: a command that fails then, and its name in the table."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Came:
    """What came of one mutant: by whom it was found (empty: by nobody), and which test or scenario says so."""

    mutant: Mutant
    killer: str
    by: str
    seconds: float


def _pytest(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "pytest", "-q", "-x", "-p", "hook", "-p", "no:cacheprovider", *arguments)


def killers_of(kind: str) -> list[Killer]:
    """What looks for a mutant of this kind, the cheapest first."""
    files = tuple(f"tests/core/test_{name}.py" for name in STORIES[kind])
    first = SCENARIOS.get(kind, ())
    scenarios = (*first, *(key for key in EVERY_SCENARIO if key not in first))
    return [
        Killer("a story", _pytest(*files)),
        Killer("the explorer", (sys.executable, str(HERE / "walked.py"), *scenarios)),
        Killer("a story", _pytest("tests/core", *(f"--ignore={file}" for file in files))),
        Killer("the property tests", _pytest("-m", "not slow", "tests/properties")),
    ]


def unbroken(kinds: Sequence[str], *, few: bool) -> list[Killer]:
    """What must find nothing in the library as it is: every story that is asked first, and the explorer once."""
    files = dict.fromkeys(f"tests/core/test_{name}.py" for kind in kinds for name in STORIES[kind])
    explorer = Killer("the explorer", (sys.executable, str(HERE / "walked.py"), *EVERY_SCENARIO))
    return [Killer("the stories", _pytest(*files)), *([] if few else [explorer])]


def _asked(killer: Killer, name: str) -> str | None:
    """What fails where this mutant is (a name: none is); None where nothing does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE), str(ROOT))), NAMED_BY: name}
    if not name:
        del environment[NAMED_BY]
    try:
        ended = subprocess.run(
            killer.command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no end in {LIMIT_S:.0f} s"
    if ended.returncode == 0:
        return None
    failed = [
        line.removeprefix("FAILED ")
        for line in ended.stdout.splitlines()
        if line.startswith(("FAILED ", "ERROR tests/"))
    ]
    if failed:
        return failed[0].split(" - ")[0].removeprefix("ERROR ").rpartition("/")[2]
    return (ended.stdout.strip() or ended.stderr.strip() or f"exit code {ended.returncode}").splitlines()[-1]


def tried(mutant: Mutant, *, few: bool = False) -> Came:
    """By what this mutant is found."""
    began = time.monotonic()
    for killer in killers_of(mutant.kind)[: 1 if few else None]:
        by = _asked(killer, mutant.name)
        if by is not None:
            return Came(mutant, killer.name, by, time.monotonic() - began)
    return Came(mutant, "", "", time.monotonic() - began)


def page(came: Sequence[Came], seconds: float, facts: Mapping[str, str]) -> str:
    """The table."""
    killed = Counter(each.killer for each in came if each.killer)
    by = ", ".join(f"{name} {count}" for name, count in killed.most_common())
    rows = {**facts, "result": f"killed {sum(killed.values())} of {len(came)} in {seconds / 60:.0f} minutes ({by})"}
    parts = [
        "# Mutants: the library broken on purpose\n\n",
        "Written by `make mutants` (`tests/mutants/mutants_run.py`); do not edit. Every place where the code drops a "
        "guard or a proof, leads elsewhere, or forgets a barrier, a journal entry, a lease, a boot, an age or a doubt, "
        "is found in the code itself (`tests/mutants/code_mutants.py`). Each is given to the stories, the explorer and "
        "the property tests in turn.\n\n| | |\n|---|---|\n",
        *(f"| {name} | {value} |\n" for name, value in rows.items()),
    ]
    for kind in dict.fromkeys(each.mutant.kind for each in came):
        mine = [each for each in came if each.mutant.kind == kind]
        found = sum(bool(each.killer) for each in mine)
        parts.append(f"\n## {kind}: {found} of {len(mine)}\n\n| where | broken | found by |\n|---|---|---|\n")
        parts += [_line(each) for each in mine]
    return "".join(parts)


def _line(each: Came) -> str:
    by = f"{each.killer}: `{each.by}`" if each.killer else "**nobody**"
    return f"| {each.mutant.where} | {each.mutant.what} | {by} |\n".replace("`|", "` |")


def main(arguments: Sequence[str] | None = None) -> int:
    """Tries them all, prints one line for each, and writes the table."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--few", action="store_true", help="guards and proofs, and the stories alone")
    asked.add_argument("--kinds", nargs="+", default=list(STORIES), choices=list(STORIES), help="only these")
    asked.add_argument("--only", default="", help="only those whose name has this in it")
    asked.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="how many at once")
    asked.add_argument("--page", type=Path, help="where the table is written")
    given = asked.parse_args(arguments)
    kinds = ("guard", "proof") if given.few else given.kinds
    chosen = [each for each in code_mutants.all_of() if each.kind in kinds and given.only in each.name]
    facts, began = {**where(), "command": "`make mutants`"}, time.monotonic()
    with ThreadPoolExecutor(given.jobs) as pool:
        without = unbroken(kinds, few=given.few)
        wrong = [by for by in pool.map(lambda killer: _asked(killer, ""), without) if by is not None]
        if wrong:
            print(f"fails without any mutant: {', '.join(wrong)}")
            return 1
        came = []
        for each in pool.map(lambda mutant: tried(mutant, few=given.few), chosen):
            came.append(each)
            print(f"{each.seconds:6.1f} s  {each.mutant.name}: {each.killer or 'SURVIVES'} {each.by}", flush=True)
    survivors = [each.mutant.name for each in came if not each.killer]
    seconds = time.monotonic() - began
    if given.page is not None:
        given.page.write_text(page(came, seconds, facts))
    print(f"killed {len(came) - len(survivors)} of {len(came)} in {seconds:.0f} s")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
