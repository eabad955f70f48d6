"""Three loopback engines with clients that stream all the time, a driver in a process of its own, and their faults."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from lifecycle.adapters.loopback import LoopbackProcess
from random_faults import AT_ONCE, ENGINES, Fault

from lifecycle.demo.clients import Lost, Target, new_session, stream

DRIVER = Path(__file__).with_name("random_driver.py")

#: Seconds in which a driver does what it is told, and a client gets its answer once all engines serve.
LIMIT_S = 60.0

#: The tags differ by more than a tenth, and each is larger than the driver's threshold, so that bytes tell them apart.
#: A token takes its time, so that requests are in flight while the machine is free for the rest.
OPTIONS: dict[str, Any] = {
    "weights_mib": 88,
    "kv_mib": 66,
    "allow_faults": True,
    "arguments": ("--step-delay-s", "0.1", "--abort-poll-s", "0.1"),
}
TOKENS = 8
CLIENTS_PER_ENGINE = 2
PROMPTS = ("a proof of A:", "a poem on B:", "a test for C:")


@dataclass
class Seat:
    """Where an engine stands: processes come and go there, the address stays."""

    name: str
    process: LoopbackProcess
    up: asyncio.Event = field(default_factory=asyncio.Event)
    ended: int = 0  # processes that a fault ended
    may_end: bool = False  # whether the fault of this cycle ends it

    @property
    def url(self) -> str:
        return f"loopback://127.0.0.1:{self.process.port}?name={self.name}"

    @property
    def running(self) -> bool:
        return self.process.returncode is None


class World:
    """Everything but the faults that are to come. `lost` has a line for every request that ended without an answer
    though no fault had ended its engine."""

    def __init__(self, seats: dict[str, Seat], checkpoint: Path, state: Path) -> None:
        self.seats = seats
        self.checkpoint = checkpoint
        self.state = state
        self.requests: Counter[str] = Counter()
        self.lost: list[str] = []
        self.started = len(seats)
        self.killed_by_driver: list[str] = []
        self.cycle = 0
        #: Odd in a cycle in which a request may go on with other weights, so that its answer is of both: it is kept, or
        #: somebody else opens the engine. It grows with the beginning and the end of each such cycle.
        self.mixing = 0
        #: The other answers by version and prompt, and where each was seen first. Equal weights give equal ones.
        self.answers: dict[tuple[str, str], dict[tuple[int, ...], str]] = {}
        self._finishing = False
        self._restarts: set[asyncio.Task[None]] = set()

    # clients

    async def client(self, session: aiohttp.ClientSession, seat: Seat, number: int) -> None:
        """Sends one request after the other to this engine, while it runs."""
        turn = number
        while not self._finishing:
            await seat.up.wait()
            turn += 1
            await self.request(session, seat, PROMPTS[turn % len(PROMPTS)])

    async def request(self, session: aiohttp.ClientSession, seat: Seat, prompt: str) -> str | None:
        """The version that answered; None where it was aborted, or its engine was ended by a fault."""
        self.requests["sent"] += 1
        ended, mixing = seat.ended, self.mixing
        try:
            answer = await stream(session, Target(seat.name, seat.process.url, "m"), prompt, tokens=TOKENS)
        except Exception as error:
            if seat.ended != ended or (seat.may_end and not await self._survives(seat)):
                self.requests["cut off by the end of their engine"] += 1
            else:
                self.lost.append(f"{seat.name}: {error if isinstance(error, Lost) else repr(error)}")
            await asyncio.sleep(0.02)
            return None
        if answer.aborted:
            self.requests["aborted, with an answer"] += 1
            return None
        self.requests["answered"] += 1
        if mixing == self.mixing and mixing % 2 == 0:
            known = self.answers.setdefault((answer.version, prompt), {})
            known.setdefault(answer.tokens, f"{seat.name} in cycle {self.cycle}")
        return answer.version

    async def _survives(self, seat: Seat) -> bool:
        """Whether the process still runs a moment later: its connections close before it can be waited for."""
        for _ in range(50):
            if not seat.running:
                self._has_ended(seat)
                return False
            await asyncio.sleep(0.02)
        return True

    def finish(self) -> None:
        """Every client ends with the request that it has sent."""
        self._finishing = True

    # faults

    def set_up(self, fault: Fault) -> None:
        """A switch is set before its cycle."""
        seat = self.seats[fault.engine]
        seat.may_end = fault.kind in ("kill", "outsider") or fault.how.partition("=")[2] in ("die", "die_after")
        if fault.kind == "switch":
            call, _, how = fault.how.partition("=")
            self.switch(seat, {call: how})

    def happens(self, fault: Fault, driver: Driver) -> None:
        """It happens now."""
        seat = self.seats[fault.engine]
        match fault.kind:
            case "kill":
                os.killpg(seat.process.pid, signal.SIGKILL)
                self._has_ended(seat)
                if fault.how == AT_ONCE:
                    self._restart(seat)
            case "stop":
                os.killpg(seat.process.pid, signal.SIGSTOP)
                if fault.how == AT_ONCE:
                    asyncio.get_running_loop().call_later(0.3, self._goes_on, seat)
            case "cancel":
                driver.tell(do="cancel")
            case "outsider":
                for what in fault.how.split(" and "):
                    body = {"mode": "abort"} if what == "pause" else {}
                    self._later(self.post(seat, f"/{what}_generation", body))

    def driver_failed(self, fault: Fault, engine: str) -> None:
        """A command failed on this engine: one that was stopped goes on."""
        if fault.kind == "stop" and fault.engine == engine:
            self._goes_on(self.seats[engine])

    async def over(self, fault: Fault) -> None:
        """The fault is not there any more, and every engine runs."""
        if fault.how.endswith("=die_after"):  # it may be about to
            await self._survives(self.seats[fault.engine])
        await asyncio.gather(*self._restarts)
        for seat in self.seats.values():
            if not seat.running:
                self._has_ended(seat)
                self._restart(seat)
        await asyncio.gather(*self._restarts)
        for seat in self.seats.values():
            self._goes_on(seat)
            calls = ("pause", "continue", "flush", "release", "resume", "update", "server_info")
            await self.post(seat, "/_fault", dict.fromkeys(calls))  # before anybody looks at it again
            seat.may_end = False

    def switch(self, seat: Seat, faults: dict[str, str | None]) -> None:
        self._later(self.post(seat, "/_fault", faults))

    async def post(self, seat: Seat, path: str, body: object) -> None:
        """What somebody else asks of an engine; one that does not answer is no concern."""
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5.0)) as session:
                await (await session.post(seat.process.url + path, json=body)).read()

    def _goes_on(self, seat: Seat) -> None:
        if seat.running:
            os.killpg(seat.process.pid, signal.SIGCONT)

    def _has_ended(self, seat: Seat) -> None:
        if seat.up.is_set():
            seat.ended += 1
            seat.up.clear()
            if not seat.may_end:
                self.killed_by_driver.append(f"{seat.name}: {seat.process.stderr_tail()[-300:]}")

    def _restart(self, seat: Seat) -> None:
        self._later(self._starts(seat))

    async def _starts(self, seat: Seat) -> None:
        old = seat.process
        await asyncio.to_thread(old.kill)
        seat.process = await LoopbackProcess.astart(**OPTIONS, weights=self.checkpoint, port=old.port)
        self.started += 1
        seat.up.set()

    def _later(self, doing: Any) -> None:
        task = asyncio.ensure_future(doing)
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)


class Driver:
    """The driver's process, as it is told what to do."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, world: World) -> Driver:
        """It is attached to all engines."""
        piped = asyncio.subprocess.PIPE
        urls = [seat.url for seat in world.seats.values()]
        environment = {**os.environ, "LIFECYCLE_STATE_DIR": str(world.state)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(DRIVER), *urls), stdin=piped, stdout=piped, env=environment
        )
        driver = cls(process)
        await driver.until("connect")
        return driver

    def tell(self, **what: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what).encode() + b"\n")

    async def until(self, done: str, world: World | None = None, fault: Fault | None = None) -> dict[str, Any]:
        """What it says when it has done this; the fault happens where it is reached on the way."""
        assert self.process.stdout is not None
        happened = False
        async with asyncio.timeout(LIMIT_S):
            while line := await self.process.stdout.readline():
                said = json.loads(line)
                if said.get("done") == done:
                    return {**said, "happened": happened}
                if world is None or fault is None:
                    continue
                if said.get("began") == [fault.when, fault.command] and not happened:
                    happened = True
                    world.happens(fault, self)
                elif "failed" in said:
                    world.driver_failed(fault, said["failed"][0])
        raise AssertionError(f"the driver ended with {await self.process.wait()} before {done}")

    async def cycle(self, world: World, fault: Fault, source: tuple[str, str], mode: str) -> dict[str, Any]:
        """What became of one cycle with this fault."""
        world.set_up(fault)
        world.cycle += 1
        world.mixing += mode == "keep" or fault.kind == "outsider"
        self.tell(do="cycle", path=source[0], version=source[1], mode=mode)
        return await self.until("cycle", world, fault)

    async def home(self, world: World) -> dict[str, Any]:
        """Where each engine is after a recovery."""
        self.tell(do="home")
        found = dict((await self.until("home"))["result"])
        world.mixing += world.mixing % 2
        return found

    async def measure(self) -> dict[str, int]:
        """What its process holds."""
        self.tell(do="measure")
        said = await self.until("measure")
        return {name: value for name, value in said.items() if isinstance(value, int) and name != "happened"}

    async def end(self) -> int:
        """Its exit status, once its input has ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await asyncio.wait_for(self.process.wait(), LIMIT_S)


async def engines(checkpoint: Path) -> dict[str, Seat]:
    """Three engines that serve the same weights."""
    started = [LoopbackProcess.astart(**OPTIONS, weights=checkpoint) for _ in ENGINES]
    seats = {name: Seat(name, each) for name, each in zip(ENGINES, await asyncio.gather(*started), strict=True)}
    for seat in seats.values():
        seat.up.set()
    return seats


__all__ = ["Driver", "World", "engines", "new_session"]
