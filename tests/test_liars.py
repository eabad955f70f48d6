"""Engines that lie: each lie is told by a real loopback engine, and a named guard or proof catches it.

One line a lie is printed: what it claims and does, by which fault, what caught it, and where the engine was left.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from lifecycle.adapters.loopback import LoopbackProcess, make_weights

from lifecycle import (
    Engine,
    Fleet,
    FleetError,
    FromDisk,
    GuardRefused,
    Kept,
    LifecycleError,
    NotProved,
    OperationFailed,
    Policy,
    Refuted,
    Rejected,
    State,
)

MIB = 72
ARGUMENTS = ("--abort-poll-s", "0.02", "--death-delay-s", "0.02", "--step-delay-s", "0.002")
SECONDS = dict.fromkeys(("pause", "drain", "release", "restore_weights", "update_weights", "restore_kv", "resume"), 2.0)
POLICY = Policy(residual_threshold_gib=0.3, deadlines_s=SECONDS, settle_s=0.5, poll_s=0.02, on_failure="hold")


@dataclass
class Stage:
    """An engine that will lie, and the fleet that is lied to."""

    process: LoopbackProcess
    fleet: Fleet
    disk: FromDisk
    lie: Callable[[], None]

    @property
    def engine(self) -> Engine:
        """The only engine of the fleet."""
        return self.fleet["e"]

    async def cycle(self, **options: Any) -> None:
        """Once round the ring; the lie is told from the beginning."""
        self.lie()
        async with self.fleet.offloaded(**({"weights": self.disk} | options)):
            pass


Story = Callable[[Stage], Awaitable[object]]


async def cycled(stage: Stage) -> None:
    """Weights and KV are released and come back from disk."""
    await stage.cycle()


async def kept(stage: Stage) -> None:
    """Weights and KV are released, and the weights come back by the backup."""
    await stage.cycle(weights=Kept())


async def only_kv(stage: Stage) -> None:
    """Only the KV cache is to be released."""
    await stage.cycle(tags=["kv_cache"])


async def many_times(stage: Stage) -> None:
    """Four times round; each release is proved, and what stays is compared with what stayed before."""
    stage.lie()
    for _ in range(4):
        await stage.cycle(tags=["kv_cache"], weights=None)
    verdict = stage.engine.conditions["residual_slope"].verdict
    assert isinstance(verdict, Refuted), verdict
    raise Caught("condition residual_slope")


async def busy(stage: Stage) -> None:
    """A request runs when the pause comes, and goes on running behind it."""
    request = asyncio.create_task(asyncio.to_thread(_generate, stage.process, 600))
    await asyncio.sleep(0.2)
    stage.lie()
    try:
        await stage.fleet.offload(weights=stage.disk)
    finally:
        stage.process.kill()
        await asyncio.gather(request, return_exceptions=True)


async def dead(stage: Stage) -> None:
    """It acknowledged the pause, and is no more when the drain is asked for."""
    stage.lie()
    await stage.engine.pause()
    await asyncio.to_thread(stage.process.wait)
    await stage.engine.drain()


async def restarted(stage: Stage) -> None:
    """Another process is in its place when the release is asked for."""
    await stage.fleet.pause()
    await stage.fleet.drain()
    stage.process.kill()
    options = {"weights_mib": MIB, "kv_mib": MIB, "arguments": ARGUMENTS, "port": stage.process.port}
    with await LoopbackProcess.astart(**options):
        await stage.engine.release(weights=stage.disk)


class Caught(Exception):
    """By a condition, which is no error of a command."""


@dataclass(frozen=True)
class Lie:
    """What it claims and does, the faults that make it so, who tells on it, and what catches it."""

    name: str
    faults: tuple[str, ...]
    caught_by: str
    left: str = "released"
    story: Story = cycled
    options: dict[str, Any] = field(default_factory=dict)
    query: str = ""
    policy: Policy = POLICY
    #: Whether another lie of the short lane is caught in the same way.
    like_another: bool = False


BACKUP = {"weights_backup": True}
CANARY = replace(POLICY, canary_tokens=8)
LIES = (
    Lie("answers 200, then dies", ("pause=die_after",), "Unreachable", "gone", dead),
    Lie("answers 200, frees nothing", ("release=keep",), "proof memory_returned"),
    Lie("answers 200, leaves a part", ("release=leak:40",), "proof memory_returned", like_another=True),
    Lie("answers early, frees late", ("release=late:9",), "proof memory_returned"),
    Lie("one rank is stuck", ("release=stuck:1",), "proof memory_returned", options={"ranks": 2}),
    Lie(
        "claims a memory saver",
        ("server_info=saver",),
        "proof memory_returned",
        options={"memory_saver": False},
    ),
    Lie("counts frozen at 0, pause ignored", ("loads=frozen", "pause=mode"), "proof idle", "paused", busy),
    Lie("ignores the pause's mode", ("pause=mode",), "proof idle", "paused", busy, like_another=True),
    Lie("ignores the tags", ("release=all",), "proof tags_unmapped", "failed", only_kv),
    Lie("ignores the version", ("update=unnamed",), "proof weights_match", "weights_restored"),
    Lie("keeps more each cycle", ("resume=grow:40",), "condition residual_slope", "serving", many_times),
    Lie(
        "restores zeros, by checksum",
        ("resume=zeros",),
        "guard weights_valid",
        "weights_restored",
        kept,
        BACKUP,
        "checksum=true",
    ),
    Lie(
        "restores zeros, by its answers",
        ("resume=zeros",),
        "proof answers",
        "drained or paused",
        kept,
        BACKUP,
        policy=CANARY,
    ),
    Lie(
        "a new label, the same weights",
        ("update=label",),
        "proof weights_match",
        "weights_restored",
        query="checksum=true",
    ),
    Lie("an error body of bytes", ("release=binary",), "Rejected 500", "drained", like_another=True),
    Lie("an error body of 64 MiB", ("release=huge:64",), "Rejected 500", "drained"),
    Lie("answers after the deadline", ("release=slow:9",), "DeadlineExceeded", "weights_restored"),
    Lie("is another process by now", (), "Unreachable", "drained or paused", restarted),
    Lie("redirects", ("release=redirect",), "Rejected 307", "drained"),
)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> FromDisk:
    """Other weights than those that the engines are launched with."""
    path = tmp_path_factory.mktemp("checkpoint") / "step-2.safetensors"
    make_weights(path, seed=7, weights_mib=MIB)
    return FromDisk(str(path), "step-2")


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a line past the capturing."""

    def tell(line: str) -> None:
        with capsys.disabled():
            print(line)

    return tell


def _cases() -> Iterator[Any]:
    """Every lie, told at run time and by a flag at the start; the flags belong to the long lane."""
    for lie in LIES:
        for how in ("run-time", "flag"):
            marks = [pytest.mark.slow] if how == "flag" or lie.like_another else []
            yield pytest.param(lie, how, marks=marks, id=f"{lie.name.replace(' ', '-')}-{how}")


@pytest.mark.parametrize(("lie", "how"), list(_cases()))
async def test_the_lie_is_caught(lie: Lie, how: str, disk: FromDisk, told: Callable[[str], None]) -> None:
    faults = lie.faults if how == "flag" else ()
    options = {"weights_mib": MIB, "kv_mib": MIB, "arguments": ARGUMENTS, "allow_faults": True, **lie.options}
    with await LoopbackProcess.astart(faults=faults, **options) as process:
        if how == "run-time" and "server_info=saver" in lie.faults:
            _set(process, lie.faults)  # what it claims is read when it is connected to
        url = f"loopback://127.0.0.1:{process.port}?name=e&{lie.query}"
        async with Fleet.connect([url], policy=lie.policy) as fleet:
            stage = Stage(process, fleet, disk, lambda: _set(process, lie.faults))
            with pytest.raises((FleetError, OperationFailed, GuardRefused, Caught)) as error:
                await lie.story(stage)
            caught_by, why = _catcher(error.value)
            told(f"{lie.name:36} {how:8} {' '.join(lie.faults):26} {caught_by:30} -> {fleet['e'].state}")
            assert caught_by == lie.caught_by, why
            assert str(fleet["e"].state) in lie.left.split(" or "), why
            assert fleet["e"].memory_is_free == (fleet["e"].state is State.GONE)
            assert len(why) < 2000


def _catcher(error: BaseException) -> tuple[str, str]:
    """What caught the lie, and in what words."""
    while isinstance(error, FleetError):
        error = error.exceptions[0]
    match error:
        case NotProved():
            told = next(iter(error.verdicts)) if len(error.verdicts) == 1 else _most_telling(list(error.verdicts))
            return f"proof {told}", str(error)
        case GuardRefused():
            return f"guard {', '.join(error.reasons)}", str(error)
        case Rejected():
            return f"Rejected {error.status}", str(error)
        case LifecycleError():
            return type(error).__name__, str(error)
    return str(error), str(error)


def _most_telling(proofs: list[str]) -> str:
    return "memory_returned" if "memory_returned" in proofs else proofs[0]


def _set(process: LoopbackProcess, faults: tuple[str, ...]) -> None:
    """The engine lies from now on."""
    wanted = dict(fault.split("=", 1) for fault in faults)
    request = urllib.request.Request(process.url + "/_fault", json.dumps(wanted).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=10):
        pass


def _generate(process: LoopbackProcess, tokens: int) -> None:
    body = {"text": "a long story", "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}
    request = urllib.request.Request(process.url + "/generate", json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


def test_no_lie_stands_twice() -> None:
    assert len({lie.name for lie in LIES}) == len(LIES)
