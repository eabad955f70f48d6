"""Engines start and stop, and leave no process behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess, StartFailed
from lifecycle.adapters.loopback.cli import main
from loopback_client import (
    GONE,
    SLOW_STEPS,
    SMALL,
    alive,
    background,
    fresh,
    get,
    ids,
    pause,
    post,
    prompt_body,
    release,
    running,
    start_generate,
    stays_silent,
    unpause,
    until,
)

COMMAND = [sys.executable, "-m", "lifecycle.adapters.loopback"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize("ranks", [1, 2])
def test_sigterm_ends_it_cleanly_with_status_0(ranks: int) -> None:
    engine = LoopbackProcess.start(**SMALL, ranks=ranks)
    began = time.monotonic()
    os.kill(engine.pid, signal.SIGTERM)
    assert engine.wait(5) == 0
    assert time.monotonic() - began < 2
    until(lambda: not any(map(alive, engine.pids)))
    assert engine.kill() == 0


def test_sigterm_lets_requests_finish() -> None:
    with fresh(*SLOW_STEPS) as engine:
        flight = start_generate(engine, "hello", 60)
        running(engine, 1)
        os.kill(engine.pid, signal.SIGTERM)
        assert len(flight.result(5)["output_ids"]) == 60
        assert engine.wait(5) == 0


def test_sigterm_does_not_wait_for_a_call_that_hangs() -> None:
    with fresh(faults=["release=hang"]) as engine:
        hanging = background(lambda: release(engine, "weights"))
        stays_silent(hanging, 0.1)
        os.kill(engine.pid, signal.SIGTERM)
        assert engine.wait(5) == 0


@pytest.mark.parametrize("mode", ["abort", "retract"])
def test_sigterm_while_paused_over_requests_waits_for_them(mode: str) -> None:
    with fresh(*SLOW_STEPS, "--shutdown-timeout-s", "60") as engine:
        flight = start_generate(engine, "hello", 60) if mode == "retract" else None
        running(engine, 1 if flight else 0)
        pause(engine, mode)
        held = flight or start_generate(engine, "held", 4)
        stays_silent(held, 0.2)
        os.kill(engine.pid, signal.SIGTERM)
        until(lambda: get(engine, "/health").status == 503)
        stays_silent(held, 0.3)
        assert engine.returncode is None  # and HTTP still answers
        assert "Remaining number of requests 1" in engine.stderr_tail()
        unpause(engine)
        assert held.result(5)["output_ids"]
        assert engine.wait(5) == 0


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True], ids=["one reply", "stream"])
def test_sigterm_ends_it_in_bounded_time_with_a_held_request_too(stream: bool) -> None:
    with fresh("--shutdown-timeout-s", "0.3", ranks=2) as engine:
        pause(engine, "abort")
        held = background(lambda: post(engine, "/generate", prompt_body("held", 4, stream=stream)))
        until(lambda: _requests_held(engine))
        os.kill(engine.pid, signal.SIGTERM)
        assert engine.wait(5) == 0
        until(lambda: not any(map(alive, engine.pids)))
        with suppress(*GONE):
            held.result(5)


@pytest.mark.slow
def test_by_default_a_held_request_is_dropped_within_the_time_that_stop_gives() -> None:
    with fresh() as engine:
        pause(engine, "abort")
        start_generate(engine, "held", 4)
        until(lambda: _requests_held(engine))
        assert engine.stop() == 0


def test_stop_kills_what_does_not_stop() -> None:
    with fresh() as engine:
        pause(engine, "abort")
        start_generate(engine, "held", 4)
        until(lambda: _requests_held(engine))
        assert engine.stop(deadline_s=0.3) == -signal.SIGKILL
        assert not alive(engine.pid)


def _requests_held(engine: LoopbackProcess) -> bool:
    os.kill(engine.pid, 0)
    connections = Path(f"/proc/{engine.pid}/net/tcp").read_text()
    return f":{engine.port:04X} " in connections and " 01 " in connections


def test_an_engine_does_not_outlive_the_process_that_started_it() -> None:
    program = (
        "from lifecycle.adapters.loopback import LoopbackProcess as P; import os\n"
        "engine = P.start(weights_mib=16, kv_mib=8, ranks=2)\n"
        "print(*engine.pids, flush=True)\n"
        "os._exit(0)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    pids = [int(word) for word in result.stdout.split()]
    assert len(pids) == 3
    until(lambda: not any(map(alive, pids)))


def test_ranks_do_not_outlive_a_killed_server() -> None:
    with fresh(ranks=2) as engine:
        os.kill(engine.pid, signal.SIGKILL)
        until(lambda: not any(map(alive, engine.pids)))


def test_it_is_an_asynchronous_context_too() -> None:
    async def story() -> int:
        async with await LoopbackProcess.astart(**SMALL) as engine:
            assert await asyncio.to_thread(ids, engine, "hello", 3)
        return engine.returncode or 0

    assert asyncio.run(story()) == 0


def test_the_announcement_is_one_json_line_with_everything() -> None:
    process = subprocess.Popen(
        [*COMMAND, "--weights-mib", "16", "--kv-mib", "8", "--ranks", "2", "--die-with-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    announced = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0  # before its standard input is closed, which would kill it
    assert process.communicate() == ("", None)
    assert announced["pid"] == process.pid
    assert len(announced["rank_pids"]) == 2
    assert announced["url"].startswith("http://127.0.0.1:")
    assert Path(announced["weights"]).exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--ranks", "3"], "--ranks"),
        (["--weights-mib", "1"], "at least 16"),
        (["--kv-mib", "0"], "at least 4"),
        (["--weights-mib", "many"], "--weights-mib"),
        (["--port", "99999"], "not a port"),
        (["--fault", "release=nonsense"], "keep"),
        (["--weights-backup"], "needs --memory-saver"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_a_bad_argument_is_one_line_and_status_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    printed = capsys.readouterr()
    assert part in printed.err
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)


@pytest.mark.parametrize("arguments", [["--weights", "/nonexistent/weights"], ["--host", "203.0.113.1"]])
def test_what_cannot_be_used_is_one_line_and_status_2(arguments: list[str]) -> None:
    result = run(*arguments, "--weights-mib", "16", "--kv-mib", "8")
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert arguments[1] in result.stderr


def test_a_failed_start_says_why() -> None:
    with pytest.raises(StartFailed, match="needs --memory-saver"):
        LoopbackProcess.start(**SMALL, memory_saver=False, weights_backup=True)


def test_weights_are_made_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "made.safetensors"
    assert run("--make-weights", str(path), "--seed", "5", "--weights-mib", "16").returncode == 0
    assert path.stat().st_size > 15 * 2**20
    with fresh(weights=path) as engine, fresh(seed=5) as same:
        assert ids(engine, "hello") == ids(same, "hello")


def test_weights_that_cannot_be_written_are_status_2(tmp_path: Path) -> None:
    result = run("--make-weights", str(tmp_path / "no" / "such" / "folder"), "--weights-mib", "16")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)


def test_a_missing_package_is_one_line_and_status_2() -> None:
    program = (
        "import sys; sys.modules['numpy'] = None\n"
        "from lifecycle.adapters.loopback.cli import main\n"
        "sys.exit(main(['--weights-mib', '16', '--kv-mib', '8']))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "needs the package 'numpy'; pip install engine-lifecycle" in result.stderr


def test_the_package_imports_nothing_heavy() -> None:
    program = (
        "import sys, lifecycle.adapters.loopback\n"
        "print([name for name in ('numpy', 'starlette', 'fastapi', 'uvicorn') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert result.stdout.strip() == "[]"
