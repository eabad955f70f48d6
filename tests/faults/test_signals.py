"""A driver that is interrupted in any phase says where that left its engines, and none of them is lost."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import make_weights
from signal_rig import BEFORE, OFFLOAD, ONLOAD, THRESHOLD, Pair, ended, pair, started

from lifecycle import FromDisk, State
from lifecycle.cli import main
from lifecycle.demo.clients import Answer, Target, new_session, stream

pytestmark = pytest.mark.slow

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


async def _all(pairs: dict[int, Pair], verb: str, phases: dict[int, str]) -> None:
    """The command was sent each signal in its phase, all at once."""
    one_at_a_time = asyncio.Lock()
    ends = (_interrupted(pairs[number], number, verb, phase, one_at_a_time) for number, phase in phases.items())
    for outcome in await asyncio.gather(*ends, return_exceptions=True):
        if outcome is not None:
            raise outcome


async def _interrupted(engines: Pair, number: int, verb: str, phase: str, one_at_a_time: asyncio.Lock) -> None:
    """The command was sent the signal in this phase, and said where that left the engines."""
    if verb == "onload":
        await engines.released()
    async with new_session() as session:
        targets = [Target(name, each.url, "m") for name, each in engines.engines.items()]
        length = 3 if verb == "onload" else 1000  # held until it serves; or aborted by the pause
        in_flight = [asyncio.create_task(stream(session, each, "a poem on A:", tokens=length)) for each in targets]
        engines.hold(BEFORE.get(phase, phase))
        arguments = [
            "-m",
            "lifecycle",
            verb,
            *engines.urls,
            *(() if verb == "onload" else (*engines.weights, *THRESHOLD)),
        ]
        program = await started(arguments, engines.state)
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
    printed = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setenv("LIFECYCLE_STATE_DIR", str(engines.state))
        code = main(["recover", "--to", "serving", *engines.urls, *THRESHOLD])
    assert code == 0, printed.getvalue()
    assert set(engines.left().values()) == {State.SERVING}
