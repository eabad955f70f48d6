"""`lifecycle agent`: serves what only its own host can see, to those who have the token.

One POST a question, below /v1/: about, find, alive, residual, hook_mode, launched, free. Nothing is changed here.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from ..core.policy import positive
from ..core.verdicts import Unmeasurable
from .agent_protocol import PROTOCOL, holders_out, launched_out, processes_in, processes_out, reading_out, verdict_out
from .driver import DriverUnavailable, driver
from .in_thread import in_thread
from .port import Node
from .processes import by_pid, here
from .this_host import ThisHost

_log = logging.getLogger("lifecycle.agent")

#: The longest that a caller may have one question worked on.
LONGEST_S = 60.0

#: The largest question, in bytes: a process takes some 60 of them.
LONGEST_QUESTION = 1 << 20

Question = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class BadQuestion(ValueError):
    """What was asked means nothing; the message says what is wrong."""


class Agent:
    """Answers questions about this host. `threshold_gib` is the residual threshold in force here."""

    def __init__(self, *, threshold_gib: float, version: str, host: Node | None = None) -> None:
        self.threshold_gib = threshold_gib
        self.version = version
        self._host = host or ThisHost()
        self.questions: dict[str, Question] = {
            "about": self.about,
            "find": self.find,
            "alive": self.alive,
            "residual": self.residual,
            "hook_mode": self.hook_mode,
            "launched": self.launched,
            "free": self.free,
        }

    async def about(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What this agent is."""
        told: dict[str, Any] = {"threshold_gib": self.threshold_gib, "driver": None, "devices": []}
        try:
            snapshot = await in_thread(driver().snapshot, deadline_s=10.0)
        except (DriverUnavailable, TimeoutError) as error:
            return {**told, "problem": str(error) or "the driver does not answer"}
        return {**told, "driver": snapshot.driver, "devices": [device.uuid for device in snapshot.devices]}

    async def find(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The processes that listen on `port`, or the one of `pid`."""
        if "pid" in asked:
            return {"processes": processes_out([_process(_number(asked, "pid"))])}
        found = await self._host.find(port=_number(asked, "port"), deadline_s=LONGEST_S)
        if isinstance(found, Unmeasurable):
            raise BadQuestion(found.reason)
        return {"processes": processes_out(found)}

    async def alive(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Whether any of the processes exists."""
        return {"alive": await self._host.any_alive(_processes(asked), deadline_s=LONGEST_S)}

    async def residual(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What the trees hold; the caller's threshold is the one in force from here on."""
        threshold_gib = self.threshold_gib
        if asked.get("threshold_gib") is not None:
            threshold_gib = positive("threshold_gib", asked["threshold_gib"])
        reading = await self._host.read(
            _processes(asked),
            kind=_one_of(asked, "kind", ("cuda", "cpu")),
            scope=_one_of(asked, "scope", ("process", "device")),
            deadline_s=_deadline_s(asked),
        )
        self.threshold_gib = threshold_gib
        told = reading_out(reading)
        if not isinstance(reading, Unmeasurable):
            told["over"] = reading.resident_bytes > self.threshold_gib * (1 << 30)
        return {**told, "threshold_gib": self.threshold_gib}

    async def hook_mode(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Whether the hook mode of the trees is safe."""
        return verdict_out(await self._host.hook_mode(_processes(asked), deadline_s=_deadline_s(asked)))

    async def launched(self, asked: dict[str, Any]) -> dict[str, Any]:
        """How the trees were started: the few variables that matter, since the rest may hold secrets."""
        return launched_out(await self._host.launched(_processes(asked), deadline_s=_deadline_s(asked)))

    async def free(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What is free of the devices."""
        devices = [str(device) for device in asked.get("devices", [])]
        need = _number(asked, "need_bytes")
        found = await self._host.free(devices, _processes(asked), need_bytes=need, deadline_s=_deadline_s(asked))
        if isinstance(found, Unmeasurable):
            return {"unmeasurable": found.reason}
        told = {
            device: {"free_bytes": each.free_bytes, "holders": holders_out(each.holders)}
            for device, each in found.items()
        }
        return {"free": told}


def application(agent: Agent, token: str) -> FastAPI:
    """The agent over HTTP; every question needs the token."""
    app = FastAPI(title="lifecycle agent", docs_url=None, redoc_url=None, openapi_url=None)
    common = {"protocol": PROTOCOL, "version": agent.version, "node": here()}

    async def answer(name: str, request: Request) -> JSONResponse:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), token.encode()):
            return JSONResponse({**common, "detail": "wrong token"}, 401)
        question = agent.questions.get(name)
        if question is None:
            return JSONResponse({**common, "detail": f"no question {name!r}: {', '.join(agent.questions)}"}, 404)
        try:
            return JSONResponse({**common, **await question(await _asked(request))})
        except ValueError as error:
            return JSONResponse({**common, "detail": str(error)[:500]}, 400)

    app.add_api_route("/v1/{name}", answer, methods=["POST"])
    return app


async def _asked(request: Request) -> dict[str, Any]:
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > LONGEST_QUESTION:
            raise BadQuestion(f"a question has at most {LONGEST_QUESTION} bytes")
    try:
        asked = json.loads(raw)
    except RecursionError:
        raise BadQuestion("it is nested too deep") from None
    if not isinstance(asked, dict):
        raise BadQuestion("a JSON object is wanted")
    return asked


def _processes(asked: dict[str, Any]) -> Any:
    return processes_in(asked.get("processes"), node=here())


def _process(pid: int) -> Any:
    try:
        return by_pid(pid)
    except psutil.NoSuchProcess:
        raise BadQuestion(f"there is no process {pid} on {here()}") from None


def _number(asked: dict[str, Any], name: str) -> int:
    value = asked.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise BadQuestion(f"{name} must be a number > 0, got {value!r:.80}")
    return value


def _one_of(asked: dict[str, Any], name: str, known: tuple[str, ...]) -> Any:
    if asked.get(name) not in known:
        raise BadQuestion(f"{name} must be one of {', '.join(known)}, got {asked.get(name)!r:.80}")
    return asked[name]


def _deadline_s(asked: dict[str, Any]) -> float:
    value = asked.get("deadline_s", 10.0)
    if not isinstance(value, int | float) or not value > 0:
        raise BadQuestion(f"deadline_s must be a number > 0, got {value!r:.80}")
    return min(float(value), LONGEST_S)
