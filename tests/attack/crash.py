"""Drivers that are killed with SIGKILL at a named point of a command, in a process of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lifecycle import EngineHeld, Fleet, FromDisk, Policy, State
from lifecycle.core.calls import Call, Reply
from lifecycle.core.facts import Facts
from lifecycle.core.verdicts import Verdict

#: Seconds that a command may take here; a call that cannot be repeated may run for as long after its driver has ended.
DEADLINE_S = 1.5


@dataclass(frozen=True, slots=True)
class Point:
    """Where a driver is killed: in this command, `when` its n-th call (of 1, 2...) is sent; `prove`: in the proof."""

    command: str
    when: str
    call: int = 1

    def __str__(self) -> str:
        return f"{self.command}, {self.when}" + (f" call {self.call}" if self.when != "prove" else "")


#: The calls of each command on the loopback engine. Between the two calls of a release is after the first: its answer
#: was read, and the second was intended or not.
POINTS = (
    Point("pause", "before"),
    Point("pause", "after"),
    Point("drain", "prove"),
    Point("release", "before", 1),
    Point("release", "after", 1),
    Point("release", "between", 1),
    Point("release", "before", 2),
    Point("release", "after", 2),
    Point("release", "prove"),
    Point("restore_weights", "after"),
    Point("restore_kv", "before"),
    Point("restore_kv", "after"),
    Point("resume", "before"),
    Point("resume", "after"),
)


def killed_at(point: Point, url: str, source: FromDisk, policy: Policy) -> None:
    """A driver has cycled the engine and was killed at this point. AssertionError where it was not."""
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(_driver(point, url, source, policy))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(3)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"{point} was not reached"


async def _driver(point: Point, url: str, source: FromDisk, policy: Policy) -> None:
    async with Fleet.connect([url], policy=policy) as fleet:
        engine = fleet.engines[0]
        armed = Armed(engine.adapter, point)
        steps: list[Callable[[], Any]] = [
            engine.pause,
            engine.drain,
            lambda: engine.release(weights=source, deadline_s=limit_s),
            lambda: engine.restore_weights(deadline_s=limit_s),
            lambda: engine.update_weights(source),
            lambda: engine.restore_kv(deadline_s=limit_s),
            engine.resume,
        ]
        names = ["pause", "drain", "release", "restore_weights", "update_weights", "restore_kv", "resume"]
        for name, step in zip(names, steps, strict=True):
            armed.command = name
            limit_s = DEADLINE_S if name == point.command else None
            await step()


class Armed:
    """The methods of an adapter, which kill this process at the point."""

    def __init__(self, adapter: Any, point: Point) -> None:
        self.command = ""
        self._point = point
        self._calls = 0
        self._send, self._prove_idle, self._processes = adapter.send, adapter.prove_idle, adapter.processes
        self._idle_within = adapter.idle_within
        adapter.send, adapter.prove_idle, adapter.processes = self.send, self.prove_idle, self.processes
        adapter.idle_within = self.idle_within

    def _at(self, when: str, call: int = 1) -> bool:
        return Point(self.command, when, call) == self._point

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Sends the call, unless the point is before it; does not return where it is after it."""
        self._calls += self.command == self._point.command
        if self._at("before", self._calls):
            _die()
        reply = await self._send(call, deadline_s=deadline_s)
        if self._at("after", self._calls):
            _die()
        return reply

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """Proves, and does not return where the point is the proof of a drain."""
        return self._proved(await self._prove_idle(facts, deadline_s=deadline_s))

    async def idle_within(self, facts: Facts, *, wait_s: float, deadline_s: float) -> Verdict:
        """As `prove_idle`, where the engine waits."""
        return self._proved(await self._idle_within(facts, wait_s=wait_s, deadline_s=deadline_s))

    def _proved(self, verdict: Verdict) -> Verdict:
        if self._at("prove") and self.command == "drain":
            _die()
        return verdict

    async def processes(self) -> Any:
        """What a reading of memory begins with: between two calls of a release, or in its proof."""
        if (self._at("prove") and self._calls == 2) or self._at("between", self._calls):
            _die()
        return await self._processes()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def brought_home(url: str, source: FromDisk, policy: Policy) -> list[str]:
    """The states through which another driver brought the engine to serving, by recover() and onload() alone."""
    path: list[str] = []
    fleet = await _attached(url, policy, path)
    try:
        engine = fleet.engines[0]
        path.append(f"found {engine.state}")
        if engine.state is State.FAILED:
            path.append(f"recovered to {(await engine.recover()).state}")
        if engine.state is not State.SERVING:
            await fleet.onload()
        path.append(str(engine.state))
        if engine.state is not State.SERVING or engine.weights_refusal():
            path.append(str(engine.weights_refusal()))
    finally:
        await fleet.aclose()
    return path


async def _attached(url: str, policy: Policy, path: list[str]) -> Fleet:
    """A fleet of the engine, once no call of the killed driver may run any more."""
    for _ in range(200):
        fleet = Fleet.connect([url], policy=policy)
        try:
            return await fleet.__aenter__()
        except EngineHeld:
            if "busy" not in path:
                path.append("busy")
            await asyncio.sleep(0.02)
    raise AssertionError("it stayed busy")
