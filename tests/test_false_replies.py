"""Engines that answer falsely: real loopback engines with an injected fault, each caught by a named guard or proof.

A line is printed for each false reply: what is claimed and done, the fault, what caught it, and the state afterwards.
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
    """An engine that will answer falsely, and the fleet that drives it."""

    process: LoopbackProcess
    fleet: Fleet
    disk: FromDisk
    inject: Callable[[], None]

    @property
    def engine(self) -> Engine:
        """The only engine of the fleet."""
        return self.fleet["e"]

    async def cycle(self, **options: Any) -> None:
        """Injects the fault, then offloads and onloads the fleet once."""
        self.inject()
        async with self.fleet.offloaded(**({"weights": self.disk} | options)):
            pass


Story = Callable[[Stage], Awaitable[object]]


async def cycled(stage: Stage) -> None:
    """Offloads weights and KV cache; the onload loads the weights from disk."""
    await stage.cycle()


async def kept(stage: Stage) -> None:
    """Offloads weights and KV cache; the onload restores the weights from the engine's backup."""
    await stage.cycle(weights=Kept())


async def only_kv(stage: Stage) -> None:
    """Offloads the KV cache only."""
    await stage.cycle(tags=["kv_cache"])


async def many_times(stage: Stage) -> None:
    """Offloads and onloads four times. Each release is proved; the trend of the residual memory is refuted."""
    stage.inject()
    for _ in range(4):
        await stage.cycle(tags=["kv_cache"], weights=None)
    verdict = stage.engine.conditions["residual_slope"].verdict
    assert isinstance(verdict, Refuted), verdict
    raise Caught("condition residual_slope")


async def busy(stage: Stage) -> None:
    """A request runs during the pause and goes on running."""
    request = asyncio.create_task(asyncio.to_thread(_generate, stage.process, 600))
    await asyncio.sleep(0.2)
    stage.inject()
    try:
        await stage.fleet.offload(weights=stage.disk)
    finally:
        stage.process.kill()
        await asyncio.gather(request, return_exceptions=True)


async def dead(stage: Stage) -> None:
    """The engine acknowledges the pause, and its process ends before the drain."""
    stage.inject()
    await stage.engine.pause()
    await asyncio.to_thread(stage.process.wait)
    await stage.engine.drain()


async def restarted(stage: Stage) -> None:
    """The process is replaced before the release."""
    await stage.fleet.pause()
    await stage.fleet.drain()
    stage.process.kill()
    options = {"weights_mib": MIB, "kv_mib": MIB, "arguments": ARGUMENTS, "port": stage.process.port}
    with await LoopbackProcess.astart(**options):
        await stage.engine.release(weights=stage.disk)


class Caught(Exception):
    """Raised where a condition of the engine caught the false reply: no command fails then."""


@dataclass(frozen=True)
class FalseReply:
    """What the engine claims and does, the faults that cause it, and the guard, proof or condition that catches it."""

    name: str
    faults: tuple[str, ...]
    caught_by: str
    left: str = "released"
    story: Story = cycled
    options: dict[str, Any] = field(default_factory=dict)
    query: str = ""
    policy: Policy = POLICY
    #: Whether another case of the fast tests is caught in the same way; this one is then slow.
    like_another: bool = False


BACKUP = {"weights_backup": True}
CANARY = replace(POLICY, canary_tokens=8)
FALSE_REPLIES = (
    FalseReply("answers 200, then dies", ("pause=die_after",), "Unreachable", "gone", dead),
    FalseReply("answers 200, frees nothing", ("release=keep",), "proof memory_returned"),
    FalseReply("answers 200, leaves a part", ("release=leak:40",), "proof memory_returned", like_another=True),
    FalseReply("answers early, frees late", ("release=late:9",), "proof memory_returned"),
    FalseReply("one rank is stuck", ("release=stuck:1",), "proof memory_returned", options={"ranks": 2}),
    FalseReply(
        "claims a memory saver",
        ("server_info=saver",),
        "proof memory_returned",
        options={"memory_saver": False},
    ),
    FalseReply("counts frozen at 0, pause ignored", ("loads=frozen", "pause=mode"), "proof idle", "paused", busy),
    FalseReply("ignores the pause's mode", ("pause=mode",), "proof idle", "paused", busy, like_another=True),
    FalseReply("ignores the tags", ("release=all",), "proof tags_unmapped", "released", only_kv),
    FalseReply("ignores the version", ("update=unnamed",), "proof weights_match", "weights_restored"),
    FalseReply("keeps more each cycle", ("resume=grow:40",), "condition residual_slope", "serving", many_times),
    FalseReply(
        "restores zeros, by checksum",
        ("resume=zeros",),
        "guard weights_valid",
        "weights_restored",
        kept,
        BACKUP,
        "checksum=true",
    ),
    FalseReply(
        "restores zeros, by its answers",
        ("resume=zeros",),
        "proof answers",
        "drained or paused",
        kept,
        BACKUP,
        policy=CANARY,
    ),
    FalseReply(
        "a new label, the same weights",
        ("update=label",),
        "proof weights_match",
        "weights_restored",
        query="checksum=true",
    ),
    FalseReply("an error body of bytes", ("release=binary",), "Rejected 500", "drained", like_another=True),
    FalseReply("an error body of 64 MiB", ("release=huge:64",), "Rejected 500", "drained"),
    FalseReply("answers after the deadline", ("release=slow:9",), "DeadlineExceeded", "weights_restored"),
    FalseReply("is another process by now", (), "Unreachable", "drained or paused", restarted),
    FalseReply("redirects", ("release=redirect",), "Rejected 307", "drained"),
)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> FromDisk:
    """Weights other than those that the engines are launched with."""
    path = tmp_path_factory.mktemp("checkpoint") / "step-2.safetensors"
    make_weights(path, seed=7, weights_mib=MIB)
    return FromDisk(str(path), "step-2")


@pytest.fixture
def print_line(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Prints a line although pytest captures the output."""

    def uncaptured(line: str) -> None:
        with capsys.disabled():
            print(line)

    return uncaptured


#: Those that take seconds to be found out.
TAKE_SECONDS = {"answers after the deadline", "one rank is stuck", "answers early, frees late", "keeps more each cycle"}


def _cases() -> Iterator[Any]:
    """Every false reply, injected at run time and by a flag at the start; those by a flag are slow, and those that take
    seconds to be found out."""
    for lie in FALSE_REPLIES:
        for how in ("run-time", "flag"):
            marks = [pytest.mark.slow] if how == "flag" or lie.like_another or lie.name in TAKE_SECONDS else []
            yield pytest.param(lie, how, marks=marks, id=f"{lie.name.replace(' ', '-')}-{how}")


@pytest.mark.parametrize(("lie", "how"), list(_cases()))
async def test_the_lie_is_caught(lie: FalseReply, how: str, disk: FromDisk, print_line: Callable[[str], None]) -> None:
    faults = lie.faults if how == "flag" else ()
    options = {"weights_mib": MIB, "kv_mib": MIB, "arguments": ARGUMENTS, "allow_faults": True, **lie.options}
    with await LoopbackProcess.astart(faults=faults, **options) as process:
        if how == "run-time" and "server_info=saver" in lie.faults:
            _set(process, lie.faults)  # the claim is read by connect()
        url = f"loopback://127.0.0.1:{process.port}?name=e&{lie.query}"
        async with Fleet.connect([url], policy=lie.policy) as fleet:
            stage = Stage(process, fleet, disk, lambda: _set(process, lie.faults))
            with pytest.raises((FleetError, OperationFailed, GuardRefused, Caught)) as error:
                await lie.story(stage)
            caught_by, why = _catcher(error.value)
            print_line(f"{lie.name:36} {how:8} {' '.join(lie.faults):26} {caught_by:30} -> {fleet['e'].state}")
            assert caught_by == lie.caught_by, why
            assert str(fleet["e"].state) in lie.left.split(" or "), why
            assert fleet["e"].memory_is_free == (fleet["e"].state is State.GONE)
            assert len(why) < 2000


def _catcher(error: BaseException) -> tuple[str, str]:
    """Returns what caught the false reply, and the message."""
    while isinstance(error, FleetError):
        error = error.exceptions[0]
    match error:
        case NotProved():
            return f"proof {_main_proof(list(error.verdicts))}", str(error)
        case GuardRefused():
            return f"guard {', '.join(error.reasons)}", str(error)
        case Rejected():
            return f"Rejected {error.status}", str(error)
        case LifecycleError():
            return type(error).__name__, str(error)
    return str(error), str(error)


def _main_proof(proofs: list[str]) -> str:
    return "memory_returned" if "memory_returned" in proofs else proofs[0]


def _set(process: LoopbackProcess, faults: tuple[str, ...]) -> None:
    """Injects the faults into the running engine."""
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
    assert len({lie.name for lie in FALSE_REPLIES}) == len(FALSE_REPLIES)
