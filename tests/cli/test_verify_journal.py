"""`lifecycle verify-journal`, on the journal of two real engines and on damaged copies of it; and bad input."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from journal_files import Driven, Lines, copied, noted_in, written

from lifecycle import Grade, Refuted, State, Unmeasurable
from lifecycle.core.journal import (
    EVENTS,
    JOURNAL_FORMAT,
    Attached,
    Entry,
    StateEntered,
)
from lifecycle.rules.violations import RULES

# verify-journal


def test_a_good_journal_has_no_violations(lifecycle, driven: Driven, driven_lines: Lines, tmp_path: Path) -> None:
    lines = written(driven_lines, tmp_path / "lines")
    result = lifecycle("verify-journal", str(driven.path), str(lines))
    assert (result.returncode, result.stdout) == (0, "2 journals, 0 violations\n")
    result = lifecycle("verify-journal", "--json", str(driven.path))
    assert (result.returncode, json.loads(result.stdout)) == (0, {str(driven.path): []})


def test_an_entry_of_another_version_is_named_and_nothing_is_lost(lifecycle, driven: Driven, tmp_path: Path) -> None:
    path = tmp_path / "engines.sqlite3"
    with closing(copied(driven.path, path)) as db:
        db.execute("UPDATE journal SET format = 9 WHERE number = 3")
        db.commit()
    said = (
        f"{path}, entry 3: it has format 9, and this version reads {JOURNAL_FORMAT}; the version of this library that"
    )
    for command in (("history",), ("logs",), ("verify-journal", str(path))):
        result = lifecycle(*command, state=tmp_path)
        assert result.returncode == 2
        assert said in result.stderr
    noted_in(tmp_path, Entry(StateEntered("observed_serving", State.DETACHED, State.SERVING), 1e9, "t", "e", "h:1"))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT COUNT(*) FROM journal").fetchone() == (len(driven.entries) + 1,)


@pytest.mark.parametrize("part", range(4))
def test_what_stands_before_the_first_entry_is_no_violation(
    lifecycle, driven_lines: Lines, tmp_path: Path, part: int
) -> None:
    ends = [written(driven_lines[begin:], tmp_path / str(begin)) for begin in range(part, len(driven_lines), 4)]
    result = lifecycle("verify-journal", *map(str, ends))
    assert result.stdout == f"{len(ends)} journals, 0 violations\n"


def test_grades_that_were_accepted_before_the_first_entry_are_no_violation(lifecycle, tmp_path: Path) -> None:
    unseen = Unmeasurable(reason="no tool sees its memory")
    grades = dict.fromkeys(("tags_unmapped", "memory_returned"), Grade.ACKNOWLEDGED)
    attached = Attached("pid 1", "loopback://h:1", "default", "b1", "1", 0, grades)
    released = StateEntered(
        "succeeded", State.RELEASING, State.RELEASED, verdicts=dict.fromkeys(grades, unseen), memory_returned=unseen
    )
    stays = Refuted(reason="all of it stays")
    no_proof = replace(released, verdicts={**released.verdicts, "tags_unmapped": stays})
    waived = replace(released, verdicts={**released.verdicts, "memory_returned": stays})
    before = (
        StateEntered("observed_drained", State.DETACHED, State.DRAINED),
        StateEntered("release", State.DRAINED, State.RELEASING),
    )
    for case, (events, code) in enumerate(
        (
            ((attached, *before, released), 0),
            ((released,), 0),
            ((no_proof,), 1),
            ((waived,), 0),  # its driver may have waived it
            ((attached, *before, waived), 1),
            ((replace(attached, accept={**grades, "memory_returned": Grade.ASSERTED}), *before, waived), 0),
            ((replace(attached, accept={}), *before, released), 1),
        )
    ):
        path = noted_in(tmp_path / str(case), *(Entry(event, 1.8e9, "t1", "e", "host:1") for event in events))
        assert lifecycle("verify-journal", str(path)).returncode == code


def test_a_journal_is_read_from_a_pipe(driven: Driven, driven_lines: Lines, tmp_path: Path) -> None:
    lines = written(driven_lines, tmp_path / "lines").read_bytes()
    command = [sys.executable, "-m", "lifecycle", "verify-journal", "/dev/stdin"]
    ended = subprocess.run(command, input=lines, capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, b"1 journals, 0 violations\n"), ended.stderr


def test_a_file_that_cannot_be_read_hides_no_violation(lifecycle, driven_lines: Lines, tmp_path: Path) -> None:
    lines = json.loads(json.dumps(driven_lines))
    edge(lines)
    bad = written(lines, tmp_path / "bad")
    result = lifecycle("verify-journal", str(tmp_path / "missing"), str(bad), str(tmp_path / "lost"))
    assert result.returncode == 2
    assert result.stdout.startswith(f"{bad}, entry ")
    assert all(f"{tmp_path / name}: No such file" in result.stderr for name in ("missing", "lost"))


def at(lines: Lines, kind: str, engine: str = "a", **about: Any) -> int:
    """Where the first entry stands that is of this kind and says this."""
    wanted = {"type": kind, "engine": engine, **about}
    return next(index for index, line in enumerate(lines) if wanted.items() <= line.items())


def edge(lines: Lines) -> int:
    found = at(lines, "StateEntered", trigger="pause")
    lines[found]["trigger"] = "drain"
    return found


def order(lines: Lines) -> int:
    del lines[at(lines, "StateEntered", dest="paused")]
    return at(lines, "StateEntered", trigger="drain")


def proofs(lines: Lines) -> int:
    found = at(lines, "StateEntered", dest="drained")
    lines[found]["verdicts"]["idle"] = {"type": "Refuted", "reason": "one runs", "figures": {}, "denied": []}
    return found


def intent(lines: Lines) -> int:
    del lines[at(lines, "CallSent", command="resume")]
    return at(lines, "CallEnded", call="continue_generation()")


def repeated(lines: Lines) -> int:
    found = at(lines, "CallSent", command="release")
    lines.insert(found, lines[found])
    return found + 1


def barrier(lines: Lines) -> int:
    first = lines[at(lines, "CallSent", command="release")]["call"]
    answered = at(lines, "CallEnded", call=first)
    lines[answered]["outcome"] = "lost"
    return answered + at(lines[answered:], "CallSent", command="release")


def fence(lines: Lines) -> int:
    lines[at(lines, "CallSent", command="release")]["fence"] = 99
    return at(lines, "CallSent", command="restore_weights")


def drained(lines: Lines) -> int:
    """The one that is idle first begins to release at once."""
    idle = min(range(len(lines)), key=lambda each: (lines[each].get("dest") != "drained", each))
    release = lines.pop(at(lines, "StateEntered", lines[idle]["engine"], trigger="release"))
    lines.insert(idle + 1, release)
    return idle + 1


def quarantine(lines: Lines) -> int:
    """The offload goes on without an engine that lives, and of which no device is known."""
    begun = at(lines, "MovePhase", "", move="offload", phase="")
    behind = {"type": "Quarantined", "left_out": lines[begun]["drivers"][0], "name": "a", "reason": "it failed"}
    lives = {"gone": False, "closed": True, "devices": [], "others": []}
    move = {
        name: lines[begun][name] for name in ("format", "number", "at_s", "driver", "engine", "key", "move", "move_id")
    }
    lines.insert(begun + 1, move | behind | lives)
    return begun + 1


def requests(lines: Lines) -> int:
    """One more ended than the engine, which counts nothing, can have told."""
    found = at(lines, "StateEntered", dest="drained")
    lines[found]["requests"] = {"ended": 1, "finished": 2, "source": "engine"}
    return found


def handover(lines: Lines) -> int:
    found = at(lines, "HandedOver", "")
    driver = next(iter(lines[found]["returned"]))
    lines[found]["returned"][driver] = {"type": "Refuted", "reason": "all of it stays", "figures": {}, "denied": []}
    return found


DAMAGE = [edge, order, proofs, intent, repeated, barrier, fence, drained, quarantine, requests, handover]


def test_each_rule_has_its_damage() -> None:
    assert [each.__name__ for each in DAMAGE] == list(RULES)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_journal_breaks_the_rule(
    lifecycle, driven: Driven, driven_lines: Lines, tmp_path: Path, damage: Callable[[Lines], int]
) -> None:
    lines = json.loads(json.dumps(driven_lines))
    line, rule = lines[damage(lines)], damage.__name__
    of = f"{line['number']} of {line['engine']}" if line["engine"] else line["number"]
    bad = str(written(lines, tmp_path / "bad"))
    result = lifecycle("verify-journal", str(driven.path), bad)
    assert result.returncode == 1
    first, *_, last = result.stdout.splitlines()
    assert first.startswith(f"{bad}, entry {of}: {rule}: ")
    assert first.endswith(f" ({RULES[rule]})")
    count = len(result.stdout.splitlines()) - 1
    assert last == f"2 journals, {count} violations"
    found = json.loads(lifecycle("verify-journal", "--json", str(driven.path), bad).stdout)
    assert (found[str(driven.path)], len(found[bad])) == ([], count)
    assert found[bad][0] == {
        "entry": str(line["number"]),
        "engine": line["engine"],
        "rule": rule,
        "why": first.removeprefix(f"{bad}, entry {of}: {rule}: ").removesuffix(f" ({RULES[rule]})"),
    }


def test_an_entry_without_a_number_is_named_by_its_line(lifecycle, driven_lines: Lines, tmp_path: Path) -> None:
    lines = json.loads(json.dumps(driven_lines))
    bad = edge(lines)
    without = written(({**each, "number": None} for each in lines), tmp_path / "lines")
    assert lifecycle("verify-journal", str(without)).stdout.startswith(f"{without}, entry {bad + 1} of a: edge: ")


# what cannot be read


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"format": JOURNAL_FORMAT + 1},
            f"it has format {JOURNAL_FORMAT + 1}, and this version reads {JOURNAL_FORMAT}",
        ),
        ({"type": "CallForgotten"}, "'CallForgotten' is no kind of entry"),
        ({"state": "asleep"}, "it is damaged (CommandBegan.state: 'asleep' is none of"),
        ({"command": None}, "it is damaged (CommandBegan.command: None is no str)"),
        ({"at_s": "soon"}, "it is no entry of a journal (ValueError"),
        ({"driver": 3}, "it is no entry of a journal"),
        ({"at_s": 1e30}, "it is no entry of a journal (at_s 1e+30 is no time)"),
        ({"at_s": float("nan")}, "it is no entry of a journal (at_s nan is no time)"),
        ({"at_s": float("inf")}, "it is no entry of a journal (at_s inf is no time)"),
        ({"at_s": -1}, "it is no entry of a journal (at_s -1.0 is no time)"),
        ({"at_s": 10**400}, "it is no entry of a journal (OverflowError"),
    ],
)
def test_an_entry_that_cannot_be_read_is_named(
    lifecycle, driven_lines: Lines, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    found = at(driven_lines, "CommandBegan")
    lines = [*driven_lines[:found], {**driven_lines[found], **change}, *driven_lines[found + 1 :]]
    bad = str(written(lines, tmp_path / "bad"))
    for arguments in (("verify-journal", bad), ("history", "--file", bad)):
        result = lifecycle(*arguments)
        assert result.returncode == 2, result.stderr
        assert f"{bad}, line {found + 1}: {said}" in result.stderr
        if arguments[0] == "history" and "format" in change:  # every other entry is shown
            assert len(result.stdout.splitlines()) == len(lines) - 1
        else:
            assert result.stdout == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("format = 2", "it has format 2, and this version reads 1"),
        ("kind = 'CallForgotten'", "'CallForgotten' is no kind of entry"),
        ("event = substr(event, 1, 9)", "it is damaged ("),
        ("event = '[]'", "it is damaged ("),
        ("at = 'soon'", "it is no entry of a journal (at_s 'soon' is no time)"),
        ("at = 9e999", "it is no entry of a journal (at_s inf is no time)"),
        ("driver = x'00'", "it is no entry of a journal (its names are no strings)"),
    ],
)
def test_an_entry_in_sqlite_that_cannot_be_read_is_named(
    lifecycle, driven: Driven, tmp_path: Path, change: str, said: str
) -> None:
    with closing(copied(driven.path, tmp_path / "bad")) as copy, copy:
        copy.execute(f"UPDATE journal SET {change} WHERE number = 7")
    for arguments in (("verify-journal",), ("logs", "--follow", "--file"), ("history", "--file")):
        result = lifecycle(*arguments, str(tmp_path / "bad"))
        assert result.returncode == 2, result.stderr
        assert f"{tmp_path / 'bad'}, entry 7: {said}" in result.stderr
        if arguments[0] == "history" and "format" in change:
            assert len(result.stdout.splitlines()) == len(driven.entries) - 1


def test_of_many_entries_of_another_format_some_are_named(lifecycle, driven: Driven, tmp_path: Path) -> None:
    with closing(copied(driven.path, tmp_path / "bad")) as copy, copy:
        copy.execute("UPDATE journal SET format = 2 WHERE number <= 7")
    result = lifecycle("history", "--file", str(tmp_path / "bad"))
    assert result.returncode == 2
    assert "entry 3: it has format 2" in result.stderr
    assert "entry 4: " not in result.stderr
    assert "4 more entries of another format" in result.stderr
    assert len(result.stdout.splitlines()) == len(driven.entries) - 7


def test_a_file_that_is_no_journal_is_named(lifecycle, driven: Driven, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite3"
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE songs (name TEXT)")
    text, cut = tmp_path / "text", tmp_path / "cut"
    text.write_text("not a journal\n")
    cut.write_bytes(driven.path.read_bytes()[:5000])
    for path, said in (
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (text, "text, line 1: it is no entry of a journal"),
        (other, "no journal can be read there: no such table: journal"),
        (cut, "no journal can be read there: "),
    ):
        for command in (("verify-journal",), ("history", "--file"), ("logs", "--file")):
            result = lifecycle(*command, str(path))
            assert result.returncode == 2, (command, path)
            assert result.stderr.startswith(f"lifecycle: {path}"), result.stderr
            assert said in result.stderr
            assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("history", "--kind", "CallForgotten"), "--kind 'CallForgotten': one of Attached, CommandBegan, "),
        (("logs", "--follow", "--kind", "CallSent,callended"), "--kind 'callended': one of Attached, "),
        *(
            (("history", "--since", since), f"--since {since!r}: 90s, 15m, 2h, 3d, or a time as 2026-01-31T12:00")
            for since in ("yesterday", "", "3w", "d", "nans", "infs", "1e300d", "2026-13-01")
        ),
        (("logs", "--since", "soon"), "--since 'soon': 90s"),
        (("history", "--last", "0"), "--last"),
        (("verify-journal",), "Missing argument"),
        (("history", "--trace", "FOLDER"), "--trace FOLDER: Is a directory"),
        (("history", "--trace", "FOLDER/missing/trace.json"), "--trace FOLDER/missing/trace.json: No such file"),
        (("history", "--trace", "/dev/full"), "--trace /dev/full: No space left"),
    ],
)
def test_bad_input_is_one_clear_message(
    lifecycle, driven: Driven, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    result = lifecycle(*(each.replace("FOLDER", str(tmp_path)) for each in arguments), state=driven.path.parent)
    assert result.returncode == 2, result.stderr
    assert said.replace("FOLDER", str(tmp_path)) in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_where_there_is_no_journal_yet_that_is_said(lifecycle, tmp_path: Path) -> None:
    for arguments in (("history",), ("history", "--json"), ("logs",)):
        result = lifecycle(*arguments, state=tmp_path / "fresh")
        assert (result.returncode, result.stdout) == (0, "")
        assert result.stderr.startswith(f"lifecycle: {tmp_path / 'fresh' / 'engines.sqlite3'}: there is no journal yet")
    assert list(tmp_path.iterdir()) == [], "nothing is made by looking"


def test_what_an_earlier_version_kept_has_no_journal_yet(lifecycle, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "engines.sqlite3")) as db:
        db.execute("CREATE TABLE engines (url TEXT)")
    result = lifecycle("history", state=tmp_path)
    assert (result.returncode, result.stdout) == (0, "")
    assert "there is no journal yet" in result.stderr


def test_the_page_has_every_kind_with_its_fields_and_every_rule() -> None:
    page = Path("docs/journal.md").read_text()
    for kind, event in EVENTS.items():
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{kind}` |"))
        assert [each.name for each in fields(event) if f"`{each.name}`" not in row] == [], kind
    for rule, words in RULES.items():
        assert f"| `{rule}` | {words} |" in page
