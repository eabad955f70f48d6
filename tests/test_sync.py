"""The blocking face: threads, a running loop, a push, Ctrl-C, and an interpreter that just exits."""

from __future__ import annotations

import asyncio
import base64
import inspect
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

import lifecycle
from lifecycle import FromDisk, InvalidTransition, Policy, State
from lifecycle.sync import Engine, Fleet, Window

POLICY = Policy(residual_threshold_gib=0.25, settle_s=1.0)


@pytest.fixture(scope="module")
def process() -> Iterator[LoopbackProcess]:
    """One engine for all of these tests."""
    with LoopbackProcess.start(weights_mib=96, kv_mib=96) as process:
        yield process


@pytest.fixture
def address(process: LoopbackProcess) -> str:
    """Its URL."""
    return f"loopback://127.0.0.1:{process.port}?name=e"


def test_the_names_are_the_same() -> None:
    for blocking, twin in ((Fleet, lifecycle.Fleet), (Engine, lifecycle.Engine), (Window, lifecycle.Window)):
        passed_on = hasattr(blocking, "__getattr__")  # what does not wait is read as on the twin
        verbs = {name for name in dir(twin) if not name.startswith("_") and callable(getattr(twin, name))}
        verbs = {name for name in verbs if not passed_on or inspect.iscoroutinefunction(getattr(twin, name))}
        internal = {
            "aclose",
            "caught_up",
            "connect",
            "execute",
            "participants",
            "left",
            "preempt_drain",
            "until_free",
            "until_no_window",
            "waves",
        }
        assert verbs - set(dir(blocking)) <= internal


def test_a_cycle_blocks_and_returns_the_same(process: LoopbackProcess, address: str) -> None:
    source = FromDisk(str(process.weights), "again-1")
    with Fleet.connect([address], policy=POLICY) as fleet:
        with fleet.offloaded(weights=source) as (released,):
            assert released.returned_bytes is not None
            assert released.returned_bytes > 180 << 20
            assert fleet["e"].state is State.RELEASED
        engine = fleet["e"]
        engine.pause()
        with pytest.raises(InvalidTransition, match="allowed here"):
            engine.release()
        engine.resume()
        assert [each.name for each in fleet] == ["e"]
        assert engine.verify() is State.SERVING


def test_the_steps_of_a_window_block(process: LoopbackProcess, address: str) -> None:
    source = FromDisk(str(process.weights), "step-1")
    with Fleet.connect([address], policy=POLICY) as fleet:
        with fleet.offloaded(weights=source) as window:
            assert isinstance(window, Window)
            assert window.returned_bytes == {"e": window[0].returned_bytes}
            assert window.transitions == window[:]
            assert [each.dest for each in window.restore_weights()] == [State.WEIGHTS_RESTORED]
            assert window.versions == {"e": None}
            assert len(window.update_weights()) == 1
            assert window.versions == {"e": "step-1"}
            (engine,) = window.engines
            assert engine.verify() is State.WEIGHTS_RESTORED
            assert len(window.restore_kv()) == 1
            assert set(window.durations_s) == {"offload", "restore_weights", "update_weights", "restore_kv"}
            assert window.is_open
        assert fleet.ensure("serving", deadline_s=5.0) == fleet["e"].ensure(State.SERVING, deadline_s=5.0) == []
        with pytest.raises(lifecycle.ConfigurationError, match="this window was left"):
            window.restore_kv()


def test_an_exception_comes_through_after_the_fleet_is_back(process: LoopbackProcess, address: str) -> None:
    with Fleet.connect([address], policy=POLICY) as fleet:
        with pytest.raises(ZeroDivisionError), fleet.offloaded(["kv_cache"]):
            _ = 1 / 0
        assert fleet["e"].state is State.SERVING


def test_in_a_thread_and_beside_a_running_loop(address: str) -> None:
    states: list[State] = []

    def work() -> None:
        with Fleet.connect([address], policy=POLICY) as fleet:
            states.append(fleet["e"].verify())

    async def notebook() -> None:
        work()  # a cell of a notebook: the loop is running, in this very thread
        await asyncio.to_thread(work)

    asyncio.run(notebook())
    assert states == [State.SERVING, State.SERVING]


def test_the_loop_ends_with_the_fleet(address: str) -> None:
    with Fleet.connect([address], policy=POLICY):
        assert any(thread.name == "lifecycle-loop" for thread in threading.enumerate())
    assert not any(thread.name == "lifecycle-loop" for thread in threading.enumerate())


def test_a_push() -> None:
    with LoopbackProcess.start(weights_mib=16, kv_mib=16) as process:
        blob = base64.b64encode(process.weights.read_bytes()).decode()
        with Fleet.connect([f"loopback://127.0.0.1:{process.port}?name=e"], policy=POLICY) as fleet:
            fleet.pause()
            fleet.drain()
            with fleet.updating_weights("pushed-1") as engines:
                for engine in engines:
                    engine.push("tensor", serialized_named_tensors=[blob], load_format="safetensors")
            assert "pushed-1" in repr(fleet["e"])
            fleet.resume()


INTERRUPTED = """
    import asyncio, os, signal, threading
    from lifecycle.sync import Loop

    signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = []

    async def work():
        steps.append("begun")
        try:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.2)
            steps.append("cleaned up")

    try:
        Loop().run(work)
    except KeyboardInterrupt:
        print(steps)
"""


def test_an_interrupt_waits_for_what_cleans_up() -> None:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(INTERRUPTED)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert ended.stdout.strip() == "['begun', 'cleaned up']", ended.stderr


SCRIPT = """
    import sys
    from lifecycle import Policy
    from lifecycle.sync import Fleet

    fleet = Fleet.connect([sys.argv[1]], policy=Policy(residual_threshold_gib=0.25)).open()
    print(fleet["e"].state, flush=True)
    {rest}
"""


def run_script(address: str, rest: str = "") -> subprocess.Popen[str]:
    """A program that never closes its fleet."""
    script = textwrap.dedent(SCRIPT).format(rest=rest)
    command = [sys.executable, "-W", "error", "-c", script, address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_interpreter_that_just_exits_does_not_hang(address: str) -> None:
    with run_script(address) as program:
        out, error = program.communicate(timeout=20)
    assert (program.returncode, out.strip()) == (0, "serving"), error


def test_an_interrupt_cancels_what_was_asked_for(process: LoopbackProcess, address: str) -> None:
    with LoopbackProcess.start(weights_mib=16, kv_mib=16, faults=["flush=hang"]) as hanging:
        url = f"loopback://127.0.0.1:{hanging.port}?name=e"
        with run_script(url, 'fleet["e"].pause(); fleet["e"].drain()') as program:
            assert program.stdout is not None
            assert program.stdout.readline().strip() == "serving"
            begun = time.monotonic()
            while program.poll() is None and time.monotonic() < begun + 15:
                program.send_signal(2)
                time.sleep(0.2)  # the signal may fall before the verb has begun to block
            assert program.returncode not in (None, 0)
            assert "KeyboardInterrupt" in program.stderr.read()
