"""The journals of real engines that are committed break no rule, and name no machine and no person."""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lifecycle import State
from lifecycle.core.journal import CallEnded, HandedOver, StateEntered
from lifecycle.nodes.processes import node_name
from lifecycle.store.journal import read_file

FOLDER = Path(__file__).parents[2] / "docs" / "measured" / "journals"
JOURNALS = sorted(FOLDER.glob("*.jsonl"))

#: What each of these fields looks like once it is redacted.
NUMBERED = {
    "driver": r"(driver|move)-\d+",
    "engine": r"(engine-\d+)?",
    "key": r"(host-\d+:\d+)?",
    "who": r"pid \d{1,3} on host-\d+",
    "url": r"\w+://host-\d+:\d+",
    "boot": r"boot-\d+(@host-\d+:\d{1,3}:\d+\.\d\d(,host-\d+:\d{1,3}:\d+\.\d\d)*)?",
    "move_id": r"move-\d+",
    "group": r"default|group-\d+",
}

#: What a path, an address, an id, a mail address or a process of a machine looks like.
TELLS = (
    r"(?<![\w/:-])~?/\w",
    r"\d+\.\d+\.\d+\.\d+",
    r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,}\b",
    r"[\w.]+@(?!host-\d)",
    r"\bpids?:? \d{4}",
)


def strings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text of an entry, with the field that it stands in."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield "", key
            yield from strings(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from strings(each)


def telling(line: str) -> list[str]:
    """The texts of an entry that name a machine or a person."""
    own = [node_name(), getpass.getuser(), str(Path.home())]
    found = []
    for name, text in strings(json.loads(line)):
        odd = name in NUMBERED and re.fullmatch(NUMBERED[name], text) is None
        words = any(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) for word in own)
        if odd or words or any(re.search(tell, text) for tell in TELLS):
            found.append(text)
    return found


def test_no_rule_is_broken_in_them(lifecycle) -> None:
    result = lifecycle("verify-journal", *map(str, JOURNALS))
    assert (result.returncode, result.stdout) == (0, f"{len(JOURNALS)} journals, 0 violations\n")


def test_one_is_of_a_whole_ring_and_one_of_a_failure() -> None:
    events = {path.stem: [entry.event for entry in read_file(path)] for path in JOURNALS}
    ring = [event.dest for event in events["sglang-ring"] if isinstance(event, StateEntered)]
    assert [state for state in ring if state.stable] == [
        State.SERVING,
        State.PAUSED,
        State.DRAINED,
        State.RELEASED,
        State.WEIGHTS_RESTORED,
        State.WEIGHTS_RESTORED,
        State.KV_RESTORED,
        State.SERVING,
    ]
    assert any(isinstance(event, HandedOver) for event in events["sglang-ring"])
    given_up = [event for event in events["sglang-release-given-up"] if isinstance(event, CallEnded)]
    assert [event.call for event in given_up if event.outcome == "lost"] == [
        "release_memory_occupation(tags=['kv_cache'])"
    ]


@pytest.mark.parametrize("path", JOURNALS, ids=[path.stem for path in JOURNALS])
def test_they_name_no_machine_and_no_person(path: Path) -> None:
    assert [text for line in path.read_text().splitlines() for text in telling(line)] == []


def test_what_names_one_is_found(lifecycle, driven) -> None:
    lines = lifecycle("history", "--json", "--file", str(driven.path)).stdout.splitlines()
    assert all(map(telling, lines)), "each entry names at least its driver"
    redacted = lifecycle("history", "--json", "--redacted", "--file", str(driven.path)).stdout.splitlines()
    assert len(redacted) == len(lines)
    assert [text for line in redacted for text in telling(line)] == []


def test_numbers_do_not_depend_on_what_is_asked_for(lifecycle, driven) -> None:
    options = ("history", "--redacted", "--file", str(driven.path), "--engines", "b")
    options = (*options, "--kind", "CommandEnded", "--last", "1")
    assert "engine-2  resume succeeded, in serving" in lifecycle(*options).stdout
