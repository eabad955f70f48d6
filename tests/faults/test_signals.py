"""A driver that is interrupted in any phase says where that left its engines, and none of them is lost."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import make_weights
from signal_rig import BEFORE, LIMIT_S, OFFLOAD, ONLOAD, POLICY, THRESHOLD, Pair, ended, pair, started

from lifecycle import Fleet, FleetError, FromDisk, State
from lifecycle.cli import OK, REFUSED, main
from lifecycle.demo.clients import Answer, Lost, Target, new_session, stream
from lifecycle.store import Store
from lifecycle.testing.conformance.in_flight import until_running

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("signal_driver.py")
RELEASED = "released\n"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Pair]]:
    """For each signal a pair of engines, so that both are tested at once."""
    path = tmp_path_factory.mktemp("checkpoint") / "step-1.safetensors"
    make_weights(path, seed=7, weights_mib=96)
    with ExitStack() as stack:
        yield {number: stack.enter_context(pair(FromDisk(str(path), "step-1"))) for number in CODES}


@pytest.fixture
def state(pairs: dict[int, Pair], tmp_path: Path) -> Path:
    """Each test has journals of its own."""
    for number, each in pairs.items():
        each.state = tmp_path / str(int(number))
    return tmp_path


@pytest.mark.parametrize("phase", OFFLOAD)
async def test_in_an_offload(phase: str, pairs: dict[int, Pair], state: Path) -> None:
    await _all(pairs, "offload", dict.fromkeys(pairs, phase))


@pytest.mark.parametrize("phase", ONLOAD)
async def test_in_an_onload(phase: str, pairs: dict[int, Pair], state: Path) -> None:
    await _all(pairs, "onload", dict.fromkeys(pairs, phase))


@pytest.mark.parametrize(
    "phases",
    [("pause", "drain"), ("release", "restore_weights"), ("update_weights", "restore_kv"), ("resume", "release")],
    ids="-".join,
)
async def test_in_a_cycle_which_brings_both_home(phases: Sequence[str], pairs: dict[int, Pair], state: Path) -> None:
    await _all(pairs, "cycle", dict(zip(pairs, phases, strict=True)))


async def test_in_a_recovery(pairs: dict[int, Pair], state: Path) -> None:
    await _all(pairs, "recover", {signal.SIGINT: "restore_weights", signal.SIGTERM: "restore_kv"})


async def _all(pairs: dict[int, Pair], verb: str, phases: dict[int, str]) -> None:
    """The command was sent each signal in its phase, all at once."""
    one_at_a_time = asyncio.Lock()
    ends = (_interrupted(pairs[number], number, verb, phase, one_at_a_time) for number, phase in phases.items())
    for outcome in await asyncio.gather(*ends, return_exceptions=True):
        if outcome is not None:
            raise outcome


async def _interrupted(engines: Pair, number: int, verb: str, phase: str, one_at_a_time: asyncio.Lock) -> None:
    """The command was sent the signal in this phase, and said where that left the engines."""
    released = verb in ("onload", "recover")
    if released:
        await engines.released()
    async with new_session() as session:
        targets = [Target(name, each.url, "m") for name, each in engines.engines.items()]
        length = 3 if released else 1000  # held until it serves; or aborted by the pause
        in_flight = [asyncio.create_task(stream(session, each, "a poem on A:", tokens=length)) for each in targets]
        engines.hold(BEFORE.get(phase, phase))
        options = () if verb == "onload" else ("--to", "serving") if released else (*engines.weights, *THRESHOLD)
        program = await started(["-m", "lifecycle", verb, *engines.urls, *options], engines.state)
        try:
            await engines.reaches(phase, program)
            in_flight += [asyncio.create_task(stream(session, each, "a test for B:", tokens=3)) for each in targets]
            program.send_signal(number)
        finally:
            engines.hold(None)
            _, said = await ended(program)
        assert program.returncode == CODES[number], said
        _says_where(engines, said, verb)
        engines.is_closed()
        async with one_at_a_time:  # it is given its state folder by the environment of this process
            await asyncio.to_thread(_recovered, engines)
        answers: list[Answer] = await asyncio.gather(*in_flight)
        assert all(each.tokens or each.aborted for each in answers)
    engines.answers_as_before()


def _says_where(engines: Pair, said: str, verb: str) -> None:
    """The message has the state of each engine, and for each that does not serve the command that leads on."""
    found = dict(re.findall(r"(held|other) is (\w+)", said))
    assert found == engines.left()
    for name, url in zip(engines.engines, engines.urls, strict=True):
        if found[name] != State.SERVING:
            assert verb != "cycle", said
            assert any(url.partition("?")[0] in command for command in re.findall(r"`(lifecycle [^`]+)`", said)), said


def _recovered(engines: Pair) -> None:
    """One command, which finds no lease of the one before, has brought both home."""
    assert _recover(engines) == OK
    assert set(engines.left().values()) == {State.SERVING}


def _recover(engines: Pair) -> int:
    """The exit code of `lifecycle recover --to serving`."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        patch.setenv("LIFECYCLE_STATE_DIR", str(engines.state))
        return main(["recover", "--to", "serving", *engines.urls, *THRESHOLD])


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
async def test_one_that_cannot_be_observed_is_left_failed_and_recovered_later(
    twice: bool, pairs: dict[int, Pair], state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not twice:
        monkeypatch.setenv("LIFECYCLE_SETTLE_S", "0.5")
    engines = pairs[signal.SIGTERM]
    engines.hold("release")
    options = ("--deadline", "6", *engines.weights, *THRESHOLD)
    program = await started(["-m", "lifecycle", "offload", *engines.urls, *options], engines.state)
    try:
        await engines.reaches("release", program)
        engines.hold("release", server_info="hang")
        program.send_signal(signal.SIGTERM)
        if twice:
            await engines.is_left(State.FAILED)
            program.send_signal(signal.SIGTERM)
        _, said = await ended(program, limit_s=10.0)
    finally:
        engines.hold(None)
    assert program.returncode == 143, said
    assert engines.left() == {"held": State.FAILED, "other": State.RELEASED}
    _says_where(engines, said, "offload")
    end = time.monotonic() + LIMIT_S
    while (code := await asyncio.to_thread(_recover, engines)) == REFUSED:  # the call may run until its deadline
        assert time.monotonic() < end
    assert code == OK
    engines.answers_as_before()


@pytest.mark.parametrize("phases", [("release", "released"), ("restore_kv", "drain")], ids="-".join)
async def test_a_window_in_python_is_left_by_ctrl_c_once_the_fleet_is_back(
    phases: Sequence[str], pairs: dict[int, Pair], state: Path
) -> None:
    await asyncio.gather(*(_left(each, phase) for each, phase in zip(pairs.values(), phases, strict=True)))


async def _left(engines: Pair, phase: str) -> None:
    """KeyboardInterrupt came through once both served again; `released`: in the window itself."""
    inside = phase == "released"
    engines.hold(None if inside else BEFORE.get(phase, phase))
    seconds = "0" if phase in ONLOAD else "600"
    program = await started([str(DRIVER), seconds, engines.source.path, *engines.urls], engines.state)
    printed = b""
    try:
        if inside:
            assert program.stdout is not None
            printed = await asyncio.wait_for(program.stdout.readline(), LIMIT_S)
        else:
            await engines.reaches(phase, program)
        program.send_signal(signal.SIGINT)
    finally:
        engines.hold(None)
        out, said = await ended(program)
    assert program.returncode == 130, said
    assert printed.decode() + out == f"{'' if phase in OFFLOAD else RELEASED}held is serving, other is serving\n"
    engines.is_closed()
    engines.answers_as_before()


async def test_requests_outlive_their_driver(pairs: dict[int, Pair], state: Path) -> None:
    engines = pairs[signal.SIGINT]
    async with new_session() as session:
        targets = [Target(name, each.url, "m") for name, each in engines.engines.items()]
        async with Fleet.connect(engines.urls, policy=POLICY, lease=None) as fleet:
            streams = [asyncio.create_task(stream(session, each, "a poem on A:", tokens=10)) for each in targets]
            assert [each.state for each in fleet] == [State.SERVING] * 2
        whole = await asyncio.gather(*streams)
        assert [(len(each.tokens), each.aborted) for each in whole] == [(10, False)] * 2
        await engines.released()
        streams = [asyncio.create_task(stream(session, each, "a poem on A:", tokens=3)) for each in targets]
        await asyncio.to_thread(_recovered, engines)
        answered = await asyncio.gather(*streams)
        assert [(len(each.tokens), each.aborted) for each in answered] == [(3, False)] * 2


@pytest.mark.parametrize("phase", ["pause", "drain", "release", "update_weights"])
async def test_an_engine_that_is_shut_down_in_the_middle_is_gone(
    phase: str, pairs: dict[int, Pair], state: Path
) -> None:
    shared = pairs[signal.SIGINT]
    with pair(shared.source, names=("held",)) as alone:
        engines = Pair({"held": alone.engines["held"], "other": shared.engines["other"]}, shared.source, shared.state)
        store = Store(engines.file)
        async with new_session() as session, Fleet.connect(engines.urls, policy=POLICY, store=store) as fleet:
            if phase in ONLOAD:
                await fleet.offload(weights=engines.source)
            targets = [Target(name, each.url, "m") for name, each in engines.engines.items()]
            length = 3 if phase in ONLOAD else 1000
            streams = [asyncio.create_task(stream(session, each, "a poem on A:", tokens=length)) for each in targets]
            if phase not in ONLOAD:  # one that came after the pause would be kept, and take its time when all is over
                await asyncio.gather(*(until_running(each, 1) for each in fleet))
            engines.hold(phase)
            move = fleet.onload() if phase in ONLOAD else fleet.offload(weights=engines.source)
            moving = asyncio.create_task(move)
            await engines.reaches(phase)
            os.kill(engines.engines["held"].pid, signal.SIGTERM)
            with pytest.raises(FleetError) as caught:
                await asyncio.wait_for(moving, LIMIT_S)
            assert [(each.engine, each.settled) for each in caught.value.exceptions] == [("held", State.GONE)]
            assert fleet["held"].state is State.GONE
            assert fleet["other"].state is State.SERVING
            held, other = await asyncio.gather(*streams, return_exceptions=True)
            assert isinstance(other, Answer)
            assert isinstance(held, Lost if phase in ONLOAD else Answer), held
