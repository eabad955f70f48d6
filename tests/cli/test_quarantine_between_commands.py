"""Quarantine between commands: what one goes on without, the next leaves out, until `recover` takes it back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from journal_files import SMALL
from lifecycle.adapters.loopback import LoopbackProcess

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def started() -> Iterator[Callable[..., LoopbackProcess]]:
    with ExitStack() as stack:
        yield lambda **how: stack.enter_context(LoopbackProcess.start(weights_mib=96, kv_mib=96, **how))


@pytest.mark.slow
def test_an_engine_that_a_command_went_on_without_stays_out_until_it_is_recovered(
    lifecycle: Run, started: Callable[..., LoopbackProcess], kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIFECYCLE_ON_FAILURE", "quarantine")
    a, b = started(faults=["release=die"]), started()
    one, other = (f"loopback://127.0.0.1:{each.port}?name={name}" for each, name in ((a, "a"), (b, "b")))
    source = ("--weights", str(b.weights), "--version", "step-1", *SMALL)

    result = lifecycle("offload", one, other, *source)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("a: in quarantine since ")
    assert "its process is gone" in result.stdout.splitlines()[-1]

    status = lifecycle("status", one, other, *SMALL)
    assert status.returncode == 0, status.stderr
    assert f"a: gone: pid {a.pid} has ended" in status.stdout
    assert "a: in quarantine since " in status.stdout
    (shown,) = json.loads(lifecycle("status", "--json", one, *SMALL).stdout)
    assert shown["conditions"]["quarantined"].startswith("proved: since ")
    assert lifecycle("onload", other, *SMALL).returncode == 0

    started(port=a.port)
    status = lifecycle("status", one, *SMALL)
    assert "a: in quarantine since " in status.stdout
    refused = lifecycle("offload", one, other, *source)
    assert refused.returncode == 3
    assert "it is in quarantine, and it lives, and no router keeps requests from it" in refused.stderr
    alone = lifecycle("onload", one, *SMALL)
    assert (alone.returncode, "it is in quarantine since" in alone.stderr) == (3, True)
    again = json.loads(lifecycle("cycle", "--json", other, *source, "--times", "1").stdout)
    assert again["ok"]

    result = lifecycle("recover", "--to", "serving", one, other, *SMALL)
    assert (result.returncode, result.stdout) == (0, "a  serving\nb  serving\n"), result.stderr
    (shown,) = json.loads(lifecycle("status", "--json", one, *SMALL).stdout)
    assert "quarantined" not in shown["conditions"]
    assert shown["contents"] == {"weights": "loaded(step-1)"}
    verified = lifecycle("verify-journal", str(kept / "engines.sqlite3"))
    assert (verified.returncode, verified.stdout.splitlines()[-1]) == (0, "1 journals, 0 violations")
    words = lifecycle("history", "--kind", "Quarantined").stdout
    assert "the move goes on without a: its process is gone" in words
