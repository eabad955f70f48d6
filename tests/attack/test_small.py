"""Small things that lost a run: a fork, a pipe, a full disk, a terminal without UTF-8, a host with many listeners."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import Fleet, Process

pytestmark = pytest.mark.slow

NOBODY = "loopback://127.0.0.1:9"


@pytest.fixture(scope="module")
def engine() -> Iterator[LoopbackProcess]:
    """A serving engine with a backup of its weights; each test leaves it serving."""
    with LoopbackProcess.start(weights_mib=96, kv_mib=96, weights_backup=True) as process:
        yield process


@pytest.fixture
def address(engine: LoopbackProcess) -> str:
    return f"loopback://127.0.0.1:{engine.port}"


@pytest.fixture
def shell(tmp_path: Path):
    """Runs a command line of sh, in which `$L` is this program."""

    def run(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"L": f"{sys.executable} -m lifecycle", "LIFECYCLE_STATE_DIR": str(tmp_path)}
        return subprocess.run(
            ["sh", "-c", command],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**os.environ, **own, **environment},
        )

    return run


FORKED = """
    import os, sys, time
    from lifecycle import ConfigurationError, Policy
    from lifecycle.sync import Fleet

    def refused(verb):
        try:
            verb()
        except ConfigurationError as error:
            return f"process {os.getppid()}" in str(error) and "Connect a fleet of your own here" in str(error)
        return False

    with Fleet.connect([sys.argv[1]], policy=Policy(residual_threshold_gib=0.125)) as fleet:
        child = os.fork()
        if child == 0:
            right = refused(fleet.pause) and refused(fleet["e"].verify) and refused(fleet.offloaded().__enter__)
            fleet.close()
            os._exit(0 if right else 1)
        end = time.monotonic() + 10
        ended = (0, 0)
        while ended == (0, 0) and time.monotonic() < end:
            ended = os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
        if ended == (0, 0):
            os.kill(child, 9)
            os.waitpid(child, 0)
            print("the child hangs")
        print("child", os.waitstatus_to_exitcode(ended[1]), fleet["e"].verify())
"""


def test_a_fleet_in_a_forked_child_raises_and_says_so(address: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(FORKED), f"{address}?name=e"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.stdout == "child 0 serving\n", ended.stderr


def test_a_reader_that_goes_away_ends_no_move(shell, address: str) -> None:
    ended = shell(f'{{ $L offload {address} --weights kept --threshold-gib 0.125; echo "code $?" >&2; }} | true')
    assert ended.stderr == "code 0\n"
    assert " released " in shell(f"$L status {address}").stdout
    assert shell(f"$L onload {address} > /dev/null").returncode == 0


def test_a_full_output_ends_no_move_and_is_a_failure_that_is_named(shell, address: str) -> None:
    ended = shell(f"$L cycle {address} --weights kept --threshold-gib 0.125 > /dev/full")
    assert (ended.returncode, ended.stderr) == (1, "lifecycle: standard output: No space left on device\n")
    assert " serving " in shell(f"$L status {address}").stdout


def test_an_error_that_cannot_be_printed_keeps_its_exit_code(shell) -> None:
    assert shell("$L pause nonsense >&- 2> /dev/full").returncode == 2


def test_a_terminal_without_the_characters_of_a_name(shell) -> None:
    ended = shell(f"$L status '{NOBODY}?name=%C3%A9-%1b[2J'", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert ended.returncode == 1
    assert r"\xe9-\x1b[2J" in ended.stdout
    assert ended.stderr == ""


def test_the_home_of_nobody_is_no_traceback(shell) -> None:
    ended = shell(f"$L status {NOBODY}", LIFECYCLE_STATE_DIR="~nouser/state")
    assert ended.returncode == 2
    assert "LIFECYCLE_STATE_DIR names another folder" in ended.stderr
    assert "Traceback" not in ended.stderr


def post(engine: LoopbackProcess, path: str, body: dict[str, object]) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{engine.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=10).close()


def test_status_of_a_failed_engine_exits_1(shell) -> None:
    with LoopbackProcess.start(weights_mib=16, kv_mib=16) as engine:
        post(engine, "/pause_generation", {"mode": "abort"})
        post(engine, "/release_memory_occupation", {"tags": ["kv_cache"]})
        as_json = shell(f"$L status loopback://127.0.0.1:{engine.port} --json")
        as_text = shell(f"$L status loopback://127.0.0.1:{engine.port}")
    assert '"state": "failed"' in as_json.stdout
    assert as_json.returncode == as_text.returncode == 1
    (found,) = json.loads(as_json.stdout)
    assert "is mapped is not known" in found["reason"]
    assert f"failed: {without_figure(found['reason'])}. Next: " in without_figure(as_text.stdout)


def without_figure(text: str) -> str:
    """The text without how much is resident: each status reads that anew, and finds a MiB more or less."""
    return re.sub(r"\d+ MiB are resident", "N MiB are resident", text)


def recorded(engine: LoopbackProcess) -> dict[str, tuple[int, object]]:
    """What this engine answers to what a connect asks of it, by path."""
    found: dict[str, tuple[int, object]] = {}
    for method, path in [("GET", path) for path in ("server_info", "model_info", "ready", "ping", "v1/loads")] + [
        ("POST", "abort_request")
    ]:
        request = urllib.request.Request(f"http://127.0.0.1:{engine.port}/{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                found[f"/{path}"] = (answer.status, json.loads(answer.read() or b"{}"))
        except urllib.error.HTTPError as error:
            found[f"/{path}"] = (error.code, {})
            error.close()
    return found


async def processes_of(urls: list[str]) -> list[tuple[Process, ...]]:
    """The processes of each engine, as connecting to all of them has found them."""
    async with Fleet.connect(urls) as fleet:
        return [await each.adapter.processes() for each in fleet]


def test_64_engines_of_a_host_are_found_by_a_few_scans(
    engine: LoopbackProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report
) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps(recorded(engine)))
    scans, real = [], psutil.net_connections
    monkeypatch.setattr(psutil, "net_connections", lambda kind: scans.append(kind) or real(kind))
    script = Path(__file__).with_name("many_engines.py")
    command = [sys.executable, str(script), str(answers), "64"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as many:
        assert many.stdin is not None
        assert many.stdout is not None
        urls = [f"loopback://127.0.0.1:{port}" for port in json.loads(many.stdout.readline())]
        begun = time.monotonic()
        try:
            found = asyncio.run(processes_of(urls))
            took_s = time.monotonic() - begun
        finally:
            many.stdin.close()
    assert len({process.pid for (process,) in found}) == 64
    assert len(scans) < 8, "the engines do not answer at once, and no scan answers who asks after it began"
    report(f"64 engines of a host connected in {took_s:.1f} s, with {len(scans)} scans of its sockets")
