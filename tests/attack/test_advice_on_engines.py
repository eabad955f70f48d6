"""The command line on real engines: every message names the command that leads on, and following it ends at serving.

No advice is known here but what the messages say. A person's part is done as they say it: a checkpoint is chosen, a
process is started anew.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from advice_text import Way, ways_in, ways_recovered
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle.cli import main

pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {"weights_mib": 96, "kv_mib": 96}
THRESHOLD = {"LIFECYCLE_RESIDUAL_THRESHOLD_GIB": "0.06"}
QUICK = ("--death-delay-s", "0.05", "--abort-poll-s", "0.02")


class Person:
    """Types commands, and follows what the messages say. Each remembers only what the store keeps."""

    def __init__(self, engine: LoopbackProcess, state: Path) -> None:
        self.engine = engine
        self.state = state
        self.address = f"loopback://127.0.0.1:{engine.port}"
        self.typed: list[str] = []
        self.did: list[str] = []

    def types(self, *arguments: str) -> tuple[int, str]:
        """The exit code of a command, and what it printed."""
        out, err = io.StringIO(), io.StringIO()
        environment = {"LIFECYCLE_STATE_DIR": str(self.state), **THRESHOLD}
        with mock.patch.dict(os.environ, environment), redirect_stdout(out), redirect_stderr(err):
            code = main(arguments)
        if "--json" not in arguments:
            self.typed.append(f"{shlex.join(arguments)} -> {code}: {err.getvalue() or out.getvalue()}")
        return code, out.getvalue() + err.getvalue()

    def status(self) -> dict[str, Any]:
        """What `lifecycle status` says of the engine."""
        return json.loads(self.types("status", self.address, "--json")[1])[0]

    def follows(self, printed: str, *, does: Callable[[str], object] = lambda first: None) -> None:
        """The engine serves, after the commands that the messages name and no others."""
        seen: set[tuple[str, Way]] = set()
        for _ in range(10):
            state = self.status()["state"]
            if state == "serving":
                return
            ways = ways_recovered(printed) or ways_in(printed)
            ways = [way for way in ways if way.command and (state, way) not in seen]
            assert ways, "\n".join(["nothing new leads on:", *self.typed])
            seen.add((state, ways[0]))
            if ways[0].first:
                self.did.append(ways[0].first)
                does(ways[0].first)
            filled = {"PATH": str(self.engine.weights), "VERSION": "good", "NAME": "me", "WHY": "I saw it"}
            program, *arguments = [filled.get(part, part) for part in shlex.split(ways[0].command)]
            assert program == "lifecycle"
            code, printed = self.types(*arguments)
            if code == 0:
                printed = self.status()["advice"]
        raise AssertionError("\n".join(["it does not serve:", *self.typed]))


@pytest.fixture(scope="module")
def shared() -> Iterator[LoopbackProcess]:
    """An engine that each test leaves serving."""
    with LoopbackProcess.start(**SIZES, arguments=QUICK) as engine:
        yield engine


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    with LoopbackProcess.start(**SIZES, arguments=QUICK) as engine:
        yield Person(engine, tmp_path)


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    """A file that is no checkpoint."""
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(b"this is no checkpoint")
    return path


def test_a_wrong_checkpoint_in_a_fresh_process_is_no_circle(person: Person, wrong: Path) -> None:
    code, printed = person.types("offload", person.address, "--weights", str(wrong), "--version", "step-9")
    assert code == 0, printed
    code, printed = person.types("onload", person.address)
    assert code == 1
    assert "--weights PATH --version VERSION" in printed
    person.follows(printed)
    assert "loaded(good)" in str(person.status()["contents"])


def test_what_it_was_launched_with_is_named_to_the_letter(person: Person, wrong: Path) -> None:
    person.types("offload", person.address, "--weights", str(wrong), "--version", "step-9")
    printed = person.types("onload", person.address)[1]
    literal = next(way.command for way in ways_in(printed) if "PATH" not in way.command)
    assert literal.endswith(f"--weights {person.engine.weights} --version default")
    assert person.types(*shlex.split(literal)[1:])[0] == 0
    assert "loaded(default)" in str(person.status()["contents"])


def test_after_recover_it_is_no_circle_either(person: Person, wrong: Path) -> None:
    person.types("offload", person.address, "--weights", str(wrong), "--version", "step-9")
    person.types("onload", person.address)
    code, printed = person.types("recover", person.address)
    assert code == 0
    assert re.search(r"released: .*\n  what leads on:\n", printed)
    person.follows(printed)


@pytest.mark.parametrize(
    ("reached", "refused"),
    [
        ((), ("drain", "update", "override")),
        (("pause", "drain"), ("pause",)),
        (("pause", "drain", "release"), ("update", "resume")),
    ],
    ids=["serving", "drained", "released"],
)
def test_a_refusal_names_a_command_that_leads_on(
    shared: LoopbackProcess, tmp_path: Path, reached: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    person = Person(shared, tmp_path)
    weights = ("--weights", str(shared.weights), "--version", "good")
    options = {"release": weights, "update": (*weights, "--force"), "override": ("--by", "me", "--reason", "x")}
    for verb in refused:
        for step in reached:
            assert person.types(step, person.address, *options.get(step, ()))[0] == 0
        arguments = ("serving", person.address) if verb == "override" else (person.address,)
        code, printed = person.types(verb, *arguments, *options.get(verb, ()))
        assert code == 3, printed
        assert ways_in(printed), printed
        person.follows(printed)


def test_one_whose_process_ended_is_started_anew(tmp_path: Path) -> None:
    with LoopbackProcess.start(**SIZES, arguments=QUICK) as first:
        person = Person(first, tmp_path)
        weights = ("--weights", str(first.weights), "--version", "good")
        assert person.types("offload", person.address, *weights)[0] == 0
        first.kill()
        code, printed = person.types("onload", person.address)
        assert code == 3
        assert f"pid {first.pid} has ended" in printed
        assert "start it anew" in printed
    with LoopbackProcess.start(**SIZES, port=first.port, arguments=QUICK):
        assert person.types("onload", person.address)[0] == 0
        assert person.status()["state"] == "serving"
