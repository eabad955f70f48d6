"""Names that would steer a terminal, terminals that lack characters. Outputs that fail: tests/attack/test_small.py."""

from __future__ import annotations

import io
import logging
import os
import threading

import pytest

from lifecycle import ConfigurationError, State
from lifecycle.cli.live import LiveTable, _progress
from lifecycle.cli.output import _Dropping, guarded, printable
from lifecycle.core.transition import Transition
from lifecycle.store.sqlite import Store

NOBODY = "loopback://127.0.0.1:9"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain ● é", "plain ● é"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\nb\t\r", r"a\nb\t\r"),
        ("\u202e\udcff", r"\u202e\udcff"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, printed: str) -> None:
    assert printable(text) == printed


def test_a_name_cannot_steer_the_terminal(lifecycle) -> None:
    result = lifecycle("status", f"{NOBODY}?name=%1b[2J%0aSERVING")
    assert r"\x1b[2J\nSERVING" in result.stdout
    assert "\x1b" not in result.stdout
    result = lifecycle("pause", f"{NOBODY}?name=x", "--engines", "\x1b[2J")
    assert "\x1b" not in result.stderr


def test_a_live_table_takes_a_name_as_it_is() -> None:
    from rich.console import Console

    table = LiveTable()
    table.transition(
        Transition(engine="[/red]\x1b[2J", group="[bold]", trigger="pause", source=State.SERVING, dest=State.PAUSED)
    )
    console = Console(width=120, force_terminal=False, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(table)
    assert r"[/red]\x1b[2J" in console.export_text()


def test_progress_in_characters_that_the_terminal_has() -> None:
    assert _progress(State.DRAINED, "utf-8") == "●●●○○○"
    assert _progress(State.DRAINED, "ascii") == "###..."


def test_a_pipe_that_somebody_made_non_blocking_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    text = b"x" * (1 << 20)
    read: list[bytes] = []

    def drain() -> None:
        with os.fdopen(reader, "rb") as pipe:
            read.append(pipe.read())

    reading = threading.Thread(target=drain)
    reading.start()
    with io.BufferedWriter(_Dropping(writer, "w")) as output:
        output.write(text)
    reading.join(10)
    assert read == [text]


def test_what_is_logged_is_one_line_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with guarded():
        try:
            raise OSError("disk full")
        except OSError:
            logging.getLogger("lifecycle").exception("%s could not be kept", "\x1b[2J")
    assert capsys.readouterr().err == "lifecycle: \\x1b[2J could not be kept: disk full\n"


@pytest.mark.parametrize("variable", ["LIFECYCLE_STATE_DIR", "XDG_STATE_HOME"])
def test_the_home_of_nobody_is_named(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv("LIFECYCLE_STATE_DIR", raising=False)
    monkeypatch.setenv(variable, "~nouser/state")
    with pytest.raises(ConfigurationError, match=r"^~nouser/.*LIFECYCLE_STATE_DIR names another folder"):
        Store()
