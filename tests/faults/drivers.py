"""A driver in a process of its own, which stops at one point of its cycle until the test has decided what comes."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from lifecycle.adapters.http import Answer, HttpClient
from points import Case, Effect, Point, Trace, cycle, hooked

from lifecycle import Fleet, LifecycleError, Policy
from lifecycle.core.sources import Source

#: Seconds after which a driver that says nothing hangs.
SILENT_S = 60.0

#: Seconds that a command may take in which the driver is killed, as a multiple of what it took before, and at least. A
#: call that cannot be repeated may run for as long after its driver has ended, and is waited for.
PATIENCE, LEAST_S = 4.0, 1.0


class NotReached(AssertionError):
    """The cycle ended, or failed, before the point."""


class Driver:
    """A forked process with a fleet of these URLs, in the middle of a cycle at `case.point`."""

    def __init__(self, case: Case, urls: list[str], source: Source, policy: Policy, trace: Trace) -> None:
        if case.hit in ("driver", "driver and engine"):
            command = case.point.effect.command
            limit_s = max(LEAST_S, PATIENCE * trace.seconds[command])
            policy = replace(policy, deadlines_s={**policy.deadlines_s, command: limit_s})
        told, tells = os.pipe()
        waits, goes = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(told)
            os.close(goes)
            _child(lambda at: _drive(case, urls, source, policy, at), tells, waits)
        os.close(tells)
        os.close(waits)
        self._told, self._goes, self._ended = os.fdopen(told), goes, False

    def __enter__(self) -> Driver:
        """It has come to the point, and waits there."""
        try:
            if (said := self._hear()) != "at the point":
                raise NotReached(f"the point was not reached: {said}")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """It is killed by SIGKILL, wherever it is."""
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._told.close()
            os.close(self._goes)
        self._ended = True

    def goes_on(self) -> dict[str, Any]:
        """It went on, and waits at its end: how its cycle ended, and what it found of its engines after that."""
        os.write(self._goes, b"\n")
        said = self._hear()
        assert isinstance(said, dict), said
        return said

    def _hear(self) -> Any:
        ready, _, _ = select.select([self._told], [], [], SILENT_S)
        line = self._told.readline() if ready else '"it says nothing"'
        return json.loads(line or '"it has ended"')


def in_another_process(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What this comes to in a process of its own. AssertionError with its traceback where it raises."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reads)
            came = _came_to(work)
            with os.fdopen(writes, "wb") as pipe:
                pipe.write(pickle.dumps(came))
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    problem, result = pickle.loads(said) if said else ("the process has ended", None)
    if problem:
        raise AssertionError(problem)
    return result


def _came_to(work: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[str, Any]:
    try:
        return "", asyncio.run(work())
    except BaseException:
        return traceback.format_exc(), None


def _child(run: Callable[[At], Coroutine[Any, Any, dict[str, Any]]], tells: int, waits: int) -> None:
    """The life of the forked process."""
    try:
        asyncio.run(run(At(tells, waits)))
    except BaseException:
        with suppress(OSError):
            os.write(tells, json.dumps(traceback.format_exc()).encode() + b"\n")
    finally:
        os._exit(3)


class At:
    """Where the driver stops."""

    def __init__(self, tells: int, waits: int) -> None:
        self._tells, self._waits = tells, waits

    def says(self, what: Any) -> None:
        """The test was told, and has answered. Meanwhile nothing of this process goes on."""
        os.write(self._tells, json.dumps(what).encode() + b"\n")
        if not os.read(self._waits, 1):
            os._exit(4)  # the test has ended


async def _drive(case: Case, urls: list[str], source: Source, policy: Policy, at: At) -> dict[str, Any]:
    async with Fleet.connect(urls, policy=policy) as fleet:
        hooked(fleet, lambda effect, act: _within(case.point, fleet, at, effect, act))
        ended = "well"
        try:
            await cycle(fleet, source, case.drive)
        except LifecycleError as error:
            ended = str(error)
        except ExceptionGroup as error:
            ended = str(error)
        found = await fleet.recover()
        lost = {name: [str(each.state), each.reason] for name, each in found.items()}
        brought = await fleet.recover(to="serving")
        states = {name: [str(each.state), each.reason] for name, each in brought.items()}
        at.says({"ended": ended, "lost": lost, "states": states})
    return {}


async def _within(
    point: Point, fleet: Fleet, at: At, effect: Effect, act: Callable[[], Coroutine[Any, Any, Any]]
) -> Any:
    """The effect, which stops where the point is."""
    if effect != point.effect:
        return await act()
    if point.boundary == "before":
        at.says("at the point")
        return await act()
    if point.boundary == "sent":
        adapter: Any = fleet.engines[effect.engine].adapter
        _stop_once_sent(adapter._http, at)
        return await act()
    result = await act()
    at.says("at the point")
    return result


def _stop_once_sent(client: HttpClient, at: At) -> None:
    """The next request of this client stops once all of it is with the kernel, which delivers it whoever ends."""
    usual = client.request

    async def request(
        method: str, path: str, *, deadline_s: float, json_body: Any = None, key: str | None = None, **_: Any
    ) -> Answer:
        client.request = usual  # type: ignore[method-assign]
        connection = http.client.HTTPConnection(urlsplit(client.base_url).netloc, timeout=deadline_s)
        end = time.monotonic() + deadline_s
        body = None if json_body is None else json.dumps(json_body).encode()
        connection.request(method, path, body, {} if body is None else {"Content-Type": "application/json"})
        at.says("at the point")
        try:
            connection.sock.settimeout(max(0.1, end - time.monotonic()))
            response = connection.getresponse()
            return Answer(response.status, response.read())
        except (OSError, http.client.HTTPException) as error:
            return Answer(None, error=f"the connection broke ({error})")
        finally:
            connection.close()

    client.request = request  # type: ignore[method-assign]
