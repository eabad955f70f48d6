"""`lifecycle history` and `logs`, on the journal of two real engines and on journals made by hand."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
from journal_files import PHASES, STATES, WORDS, Driven, Lines, noted_in, numbers

from lifecycle import Engine, State
from lifecycle.core.journal import (
    EVENTS,
    Attached,
    BarrierReturned,
    CallEnded,
    CallSent,
    CommandBegan,
    CommandEnded,
    Entry,
    MovePhase,
    Refused,
    StateEntered,
)
from lifecycle.store.journal import read_file
from lifecycle.store.sqlite import Store
from lifecycle.testing import DIE, QUICK, ScriptedAdapter

# history


def test_the_journal_has_what_the_drivers_noted(driven: Driven) -> None:
    assert [entry.number for entry in driven.entries] == list(range(1, len(driven.noted) + 1))
    assert [replace(entry, number=None) for entry in driven.entries] == driven.noted


@pytest.mark.parametrize("command", ["history", "logs"])
def test_lines_of_json_read_back_equal(lifecycle, driven: Driven, tmp_path: Path, command: str) -> None:
    every_kind = noted_in(tmp_path, *(Entry(event, 1e9 + 0.1, "t1", "e", "host:1") for event, _ in WORDS))
    assert {entry.kind for entry in read_file(every_kind)} == set(EVENTS)
    for path in (driven.path, every_kind):
        (tmp_path / "lines").write_text(lifecycle(command, "--json", "--file", str(path)).stdout)
        assert list(read_file(tmp_path / "lines")) == list(read_file(path))


def test_what_a_crash_left_is_read_and_left_as_it_is(lifecycle, tmp_path: Path) -> None:
    (tmp_path / "left").mkdir()
    with closing(Store(tmp_path / "engines.sqlite3")) as store:
        store.journal.note([Entry(BarrierReturned(), time.time(), "t1", "e", "host:1")])
        for name in ("engines.sqlite3", "engines.sqlite3-wal"):
            shutil.copy(tmp_path / name, tmp_path / "left" / name)
    before = {path: path.read_bytes() for path in (tmp_path / "left").iterdir()}
    assert numbers(lifecycle("history", "--json", state=tmp_path / "left")) == [1]
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("command", ["history", "logs"])
def test_each_kind_of_entry_is_a_line_of_text(lifecycle, tmp_path: Path, command: str) -> None:
    noted_in(tmp_path, *(Entry(event, 1.8e9 + 0.125, "t1", "e", "host:1") for event, _ in WORDS))
    clock = datetime.fromtimestamp(1.8e9).isoformat() + ".125"
    told = lifecycle(command, state=tmp_path).stdout.splitlines()
    assert told == [f"{clock}  e  {words}" for _, words in WORDS]


def test_a_name_or_an_answer_cannot_steer_the_terminal(lifecycle, tmp_path: Path) -> None:
    noted_in(tmp_path, Entry(CallEnded("f()", "lost", None, "\x1b[2J\nno"), 1.8e9, "t1", "\x1b[31m", "host:1"))
    (line,) = lifecycle("history", state=tmp_path).stdout.splitlines()
    assert line.endswith(r"  \x1b[31m  f(): lost \x1b[2J\nno (0.000 s)")


def test_filters_by_engine_kind_and_number(lifecycle, driven: Driven) -> None:
    def asked(*arguments: str) -> list[int]:
        return numbers(lifecycle("history", "--json", "--file", str(driven.path), *arguments))

    def those(wanted: Callable[[Entry], bool]) -> list[int | None]:
        return [entry.number for entry in driven.entries if wanted(entry)]

    key = next(entry.key for entry in driven.entries if entry.engine == "b")
    of_b = those(lambda entry: entry.engine in ("b", ""))
    calls_of_a = those(lambda entry: entry.engine == "a" and entry.kind in ("CallSent", "CallEnded"))
    everything = those(lambda _: True)
    assert len(of_b) < len(everything)
    assert asked("--engines", "b") == asked("--engines", key) == of_b
    assert asked("--engines", f"loopback://127.0.0.1:{key.rpartition(':')[2]}") == of_b
    assert asked("--engines", f"127.0.0.1:{key.rpartition(':')[2]}") == of_b
    assert asked("--engines", "a, b") == everything
    assert lifecycle("history", "--file", str(driven.path), "--kind", "BarrierReturned").stdout == ""
    assert asked("--engines", "a", "--kind", "CallSent, CallEnded") == calls_of_a
    assert len(calls_of_a) == 14  # pause, two of release, one of each restore, a flush, resume
    assert asked("--last", "3") == everything[-3:]
    assert asked("--engines", "a", "--kind", "CallSent,CallEnded", "--last", "3") == calls_of_a[-3:]
    assert asked("--last", "100000") == everything


@pytest.mark.parametrize(
    ("since", "groups"),
    [("1d", 3), ("3d", 4), ("2h", 2), ("3h", 3), ("2m", 1), ("3m", 2), ("100s", 1), ("200s", 2), ("0.5s", 0)],
)
def test_a_filter_by_age(lifecycle, tmp_path: Path, since: str, groups: int) -> None:
    ages_s = (2.5 * 86400, 2.5 * 3600, 150, 30)
    path = noted_in(tmp_path, *(Entry(BarrierReturned(), time.time() - age_s, "t", "e", "k") for age_s in ages_s))
    result = lifecycle("history", "--json", "--file", str(path), "--since", since)
    assert numbers(result) == [1, 2, 3, 4][4 - groups :]


def test_a_filter_by_a_point_in_time(lifecycle, tmp_path: Path) -> None:
    at_s = datetime(2026, 1, 31, 12).timestamp()
    path = noted_in(tmp_path, *(Entry(BarrierReturned(), at_s + each, "t", "e", "k") for each in (-60, 0, 60)))
    for since, found in (("2026-01-31T12:00", [2, 3]), ("2026-01-31T12:00:01", [3]), ("2026-01-31", [1, 2, 3])):
        assert numbers(lifecycle("history", "--json", "--file", str(path), "--since", since)) == found


# the trace


def faults(trace: Any) -> Iterator[str]:
    """What is wrong with a trace, by the Trace Event Format: the JSON object form, events of the phases X, i and M."""
    if not isinstance(trace, dict) or not isinstance(trace.get("traceEvents"), list):
        yield "no object with a list of traceEvents"
        return
    for event in trace["traceEvents"]:
        about, integers = event.get("args"), [event.get(each) for each in ("ts", "pid", "tid")]
        if not isinstance(event.get("name"), str) or not event["name"]:
            yield f"no name: {event}"
        if any(not isinstance(each, int) or isinstance(each, bool) or each < 0 for each in integers):
            yield f"ts, pid or tid: {event}"
        match event.get("ph"):
            case "X":
                if not isinstance(event.get("dur"), int) or event["dur"] < 0:
                    yield f"no duration: {event}"
            case "i":
                if event.get("s") not in ("g", "p", "t"):
                    yield f"no scope: {event}"
            case "M":
                if event.get("name") not in ("process_name", "thread_name") or not isinstance(about["name"], str):
                    yield f"no name of a process or thread: {event}"
            case phase:
                yield f"phase {phase}: {event}"
        if about is not None and not isinstance(about, dict):
            yield f"args: {event}"
    yield from _unnamed(trace["traceEvents"])


def _unnamed(events: Lines) -> Iterator[str]:
    processes = {each["pid"] for each in events if each["name"] == "process_name"}
    threads = {(each["pid"], each["tid"]) for each in events if each["name"] == "thread_name"}
    for event in events:
        if event["ph"] != "M" and (event["pid"] not in processes or (event["pid"], event["tid"]) not in threads):
            yield f"of a process or thread without a name: {event}"


def overlapping(events: Lines) -> Iterator[str]:
    """The states of an engine that do not follow one another."""
    states = sorted((each for each in events if each["cat"] == "state" and each["ph"] == "X"), key=_end)
    for state, following in pairwise(states):
        if following["ts"] != _end(state):
            yield f"{following} does not follow {state}"


def _end(event: dict[str, Any]) -> int:
    return int(event["ts"] + event["dur"])


def traced(lifecycle, path: Path, to: Path, *arguments: str) -> dict[str, Lines]:
    """The events of the trace that `history` writes, without those that name processes, by the name of the process."""
    result = lifecycle("history", "--file", str(path), "--trace", str(to), *arguments)
    assert result.returncode == 0, result.stderr
    trace = json.loads(to.read_text(), parse_constant=pytest.fail)
    assert list(faults(trace)) == []
    events = trace["traceEvents"]
    names = {each["pid"]: each["args"]["name"] for each in events if each["name"] == "process_name"}
    assert len(set(names.values())) == len(names)
    return {name: [each for each in events if each["pid"] == pid and each["ph"] != "M"] for pid, name in names.items()}


def named(events: Lines, category: str, phase: str = "X") -> list[str]:
    found = [each for each in events if each["cat"] == category and each["ph"] == phase]
    return [each["name"] for each in sorted(found, key=lambda each: each["ts"])]


def test_a_trace_shows_each_phase_of_each_engine(lifecycle, driven: Driven, tmp_path: Path) -> None:
    tracks = traced(lifecycle, driven.path, tmp_path / "trace.json")
    keys = {entry.engine: entry.key for entry in driven.entries}
    assert set(tracks) == {f"a ({keys['a']})", f"b ({keys['b']})", "moves"}
    for engine in "ab":
        events = tracks[f"{engine} ({keys[engine]})"]
        assert named(events, "command") == PHASES
        assert list(overlapping(events)) == []
        stable = [each for each in named(events, "state") if each in STATES]
        assert [state for state, _ in groupby(stable)] == ["serving", *STATES]
        answers = [entry for entry in driven.entries if entry.engine == engine and entry.kind == "CallEnded"]
        calls = sorted((each for each in events if each["cat"] == "call"), key=_end)
        assert [each["name"] for each in calls] == [entry.event.call for entry in answers]
        assert all(abs(_end(call) - entry.at_s * 1e6) <= 2 for call, entry in zip(calls, answers, strict=True))
    assert named(tracks[f"a ({keys['a']})"], "command", "i") == ["resume refused"]
    assert set(named(tracks["moves"], "move")) == {"offload", "onload", "update_weights", *PHASES}
    assert named(tracks["moves"], "move", "i") == ["devices handed over"]


def test_the_times_of_a_trace_are_those_of_the_entries(lifecycle, tmp_path: Path) -> None:
    at_s = 1.8e9
    path = noted_in(
        tmp_path,
        Entry(StateEntered("observed_paused", State.DETACHED, State.PAUSED), at_s, "t1", "e", "host:1"),
        Entry(CommandEnded("drain", State.DRAINED, 0.25), at_s + 1, "t1", "e", "host:1"),
        Entry(StateEntered("observed_drained", State.FAILED, State.DRAINED), at_s + 2, "t1", "e", "host:1"),
        Entry(MovePhase("offload", "m1", "drain", ("t1",), (), 0.5), at_s + 3, "m1"),
    )
    tracks = traced(lifecycle, path, tmp_path / "trace.json")
    begin = round(at_s * 1e6)
    times = {each["name"]: (each["ts"] - begin, each["dur"]) for each in tracks["e (host:1)"]}
    assert times == {"paused": (0, 2_000_000), "drain": (750_000, 250_000), "drained": (2_000_000, 1_000_000)}
    assert [(each["ts"] - begin, each["dur"]) for each in tracks["moves"]] == [(2_500_000, 500_000)]


def test_a_trace_of_every_kind_of_entry_is_well_formed(lifecycle, tmp_path: Path) -> None:
    path = noted_in(tmp_path, *(Entry(event, 1.8e9, "t1", "e", "host:1") for event, _ in WORDS))
    (events,) = traced(lifecycle, path, tmp_path / "trace.json").values()
    marks = ["resume refused", "failed", "c in quarantine", "devices handed over"]
    assert [each["name"] for each in events if each["ph"] == "i"] == marks


def test_a_trace_shows_where_an_engine_was_gone(lifecycle, tmp_path: Path) -> None:
    async def story() -> None:
        adapter = ScriptedAdapter("e")
        engine = Engine(adapter, name="e", policy=QUICK, probe=adapter.probe, store=Store(tmp_path / "s" / "journal"))
        await engine.connect()
        adapter.script("pause", DIE)
        with pytest.raises(Exception, match="e: pause failed"):
            await engine.pause()
        assert engine.state is State.GONE
        await engine.aclose()

    asyncio.run(story())
    (events,) = traced(lifecycle, tmp_path / "s" / "journal", tmp_path / "trace.json").values()
    assert named(events, "state", "i") == ["failed", "gone"]
    assert named(events, "state") == ["serving", "pausing", "failed", "gone"]


def test_a_trace_shows_what_has_not_ended(lifecycle, tmp_path: Path) -> None:
    """A driver was killed in the middle of a release; another attached later."""
    attached = Attached("pid 1", "loopback://h:1", "default", "b1", "1", 0)
    path = noted_in(
        tmp_path,
        Entry(CommandBegan("release", State.DRAINED), 1.8e9, "t1", "e", "host:1"),
        Entry(CallSent("release()", "release", ("mapped",), False, 1.8e9, "b1"), 1.8e9 + 1, "t1", "e", "host:1"),
        Entry(Refused("drain", "EngineBusy", "release is under way"), 1.8e9 + 1, "t1", "e", "host:1"),
        Entry(attached, 1.8e9 + 5, "t2", "e", "host:1"),
        Entry(CommandBegan("pause", State.SERVING), 1.8e9 + 5, "t2", "e", "host:1"),
        Entry(CommandEnded("pause", State.PAUSED, 1.0), 1.8e9 + 6, "t2", "e", "host:1"),
    )
    (events,) = traced(lifecycle, path, tmp_path / "trace.json").values()
    assert {each["name"]: each["dur"] for each in events if each["ph"] == "X"} == {
        "release": 6_000_000,
        "release()": 5_000_000,
        "pause": 1_000_000,
    }
    assert [each["name"] for each in events if each["args"].get("outcome") == "not known"] == ["release", "release()"]


def test_durations_that_are_no_numbers_are_drawn_as_none(lifecycle, tmp_path: Path) -> None:
    for duration_s in (float("inf"), float("nan")):
        path = noted_in(tmp_path, Entry(CommandEnded("pause", State.PAUSED, duration_s), 1.8e9, "t", "e", "host:1"))
    (events,) = traced(lifecycle, path, tmp_path / "trace.json").values()
    assert named(events, "command") == ["pause", "pause"]


def test_what_is_no_trace_is_found() -> None:
    good = {"name": "f", "ph": "X", "ts": 1, "dur": 0, "pid": 1, "tid": 1}
    names = [
        {"name": f"{what}_name", "ph": "M", "ts": 0, "pid": 1, "tid": 1, "args": {"name": "n"}}
        for what in ("process", "thread")
    ]
    assert list(faults({"traceEvents": [*names, good, {**good, "ph": "i", "s": "p"}]})) == []
    for change in (
        {"name": ""}, {"name": None}, {"ph": "B"}, {"ph": "i"}, {"ph": "i", "s": "x"}, {"ts": -1}, {"ts": 1.5},
        {"dur": -1}, {"dur": None}, {"pid": "1"}, {"pid": 2}, {"tid": None}, {"tid": 2}, {"args": []},
    ):  # fmt: skip
        assert list(faults({"traceEvents": [*names, {**good, **change}]})), change
    assert list(faults([good]))
    assert list(faults({"traceEvents": [good]}))
    assert list(overlapping([{**good, "cat": "state", "dur": 5}, {**good, "cat": "state", "ts": 3, "dur": 9}]))
