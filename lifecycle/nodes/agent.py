"""`lifecycle agent`: answers, over HTTP, what only a process on its own host can measure.

One POST a question to /v1/QUESTION (see agent_protocol), each with the token. No question changes an engine.
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
from ..core.readings import Process
from ..core.units import GIB
from ..core.verdicts import Unmeasurable
from .agent_protocol import (
    PROTOCOL,
    decode_processes,
    encode_free_memory,
    encode_process_env,
    encode_processes,
    encode_reading,
    encode_verdict,
)
from .driver import driver
from .in_thread import measured
from .port import Node
from .processes import by_pid, node_name
from .this_host import ThisHost

_log = logging.getLogger("lifecycle.agent")

#: Seconds that one question may take at most, whatever deadline its caller gives.
MAX_DEADLINE_S = 60.0

#: Bytes of the largest request body that is read: a process takes some 60 of them.
MAX_REQUEST_BYTES = 1 << 20

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class BadQuestion(ValueError):
    """The request cannot be answered as it stands; the message says what is wrong with it."""


class Agent:
    """Answers questions about this host. `threshold_gib` is the residual threshold in force, in GiB.

    `version` is that of engine-lifecycle, which every reply names. `host` is the node that is measured.
    """

    def __init__(self, *, threshold_gib: float, version: str, host: Node | None = None) -> None:
        self.threshold_gib = threshold_gib
        self.version = version
        self._host = host or ThisHost()
        self.questions: dict[str, Handler] = {
            "about": self.about,
            "find": self.find,
            "alive": self.alive,
            "residual": self.residual,
            "hook_mode": self.hook_mode,
            "process_env": self.process_env,
            "free_memory": self.free_memory,
        }

    async def about(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the threshold in force, the driver's version and the UUIDs of the devices, or why it shows none."""
        snapshot = await measured(driver().shared_snapshot(deadline_s=10), deadline_s=10, action="reading the devices")
        answer: dict[str, Any] = {"threshold_gib": self.threshold_gib}
        if isinstance(snapshot, Unmeasurable):
            return {**answer, "driver": None, "devices": [], "problem": snapshot.reason}
        return {**answer, "driver": snapshot.driver, "devices": [device.uuid for device in snapshot.devices]}

    async def find(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the root processes that listen on `port`, at `host` where that is given; or the process of `pid`."""
        if "pid" in request:
            return {"processes": encode_processes([_process(_number(request, "pid"))])}
        port, host = _number(request, "port"), request.get("host")
        if not isinstance(host, str | None):
            raise BadQuestion(f"host must be a name or an address, got {host!r:.80}")
        found = await self._host.find(port=port, host=host, deadline_s=MAX_DEADLINE_S)
        if isinstance(found, Unmeasurable):
            raise BadQuestion(found.reason)
        return {"processes": encode_processes(found)}

    async def alive(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns whether any of the processes still exists."""
        return {"alive": await self._host.any_alive(_processes(request), deadline_s=_deadline_s(request))}

    async def residual(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns what the trees hold. The caller's `threshold_gib`, if given, is in force from here on."""
        threshold_gib = self.threshold_gib
        if request.get("threshold_gib") is not None:
            threshold_gib = positive("threshold_gib", request["threshold_gib"])
        reading = await self._host.read(
            _processes(request),
            kind=_one_of(request, "kind", ("cuda", "cpu")),
            scope=_one_of(request, "scope", ("process", "device")),
            deadline_s=_deadline_s(request),
        )
        self.threshold_gib = threshold_gib
        answer = encode_reading(reading)
        if not isinstance(reading, Unmeasurable):
            answer["over_threshold"] = reading.resident_bytes > threshold_gib * GIB
        return {**answer, "threshold_gib": threshold_gib}

    async def hook_mode(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns whether the hook mode of the trees is safe."""
        return encode_verdict(await self._host.hook_mode(_processes(request), deadline_s=_deadline_s(request)))

    async def process_env(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the few variables of the trees that decide what a release does; any other may hold a secret."""
        return encode_process_env(await self._host.process_env(_processes(request), deadline_s=_deadline_s(request)))

    async def free_memory(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns what is free of each of `devices`."""
        found = await self._host.free_memory(
            [str(device) for device in request.get("devices", [])],
            _processes(request),
            need_bytes=_number(request, "need_bytes"),
            deadline_s=_deadline_s(request),
        )
        return encode_free_memory(found)


def application(agent: Agent, token: str) -> FastAPI:
    """Returns the agent as an HTTP application. A request without the token is answered 401."""
    app = FastAPI(title="lifecycle agent", docs_url=None, redoc_url=None, openapi_url=None)
    common = {"protocol": PROTOCOL, "version": agent.version, "node": node_name()}

    async def answer(name: str, request: Request) -> JSONResponse:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), token.encode()):
            return JSONResponse({**common, "detail": "wrong token"}, 401)
        handler = agent.questions.get(name)
        if handler is None:
            return JSONResponse({**common, "detail": f"no question {name!r}: {', '.join(agent.questions)}"}, 404)
        try:
            return JSONResponse({**common, **await handler(await _body(request))})
        except ValueError as error:
            return JSONResponse({**common, "detail": str(error)[:500]}, 400)

    app.add_api_route("/v1/{name}", answer, methods=["POST"])
    return app


async def _body(request: Request) -> dict[str, Any]:
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_REQUEST_BYTES:
            raise BadQuestion(f"a question has at most {MAX_REQUEST_BYTES} bytes")
    try:
        body = json.loads(raw)
    except RecursionError:
        raise BadQuestion("it is nested too deep") from None
    if not isinstance(body, dict):
        raise BadQuestion("a JSON object is wanted")
    return body


def _processes(request: dict[str, Any]) -> tuple[Process, ...]:
    return decode_processes(request.get("processes"), node=node_name())


def _process(pid: int) -> Process:
    try:
        return by_pid(pid)
    except psutil.NoSuchProcess:
        raise BadQuestion(f"there is no process {pid} on {node_name()}") from None


def _number(request: dict[str, Any], name: str) -> int:
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise BadQuestion(f"{name} must be a number > 0, got {value!r:.80}")
    return value


def _one_of(request: dict[str, Any], name: str, known: tuple[str, ...]) -> Any:
    if request.get(name) not in known:
        raise BadQuestion(f"{name} must be one of {', '.join(known)}, got {request.get(name)!r:.80}")
    return request[name]


def _deadline_s(request: dict[str, Any]) -> float:
    value = request.get("deadline_s", 10.0)
    if not isinstance(value, int | float) or not value > 0:
        raise BadQuestion(f"deadline_s must be a number > 0, got {value!r:.80}")
    return min(float(value), MAX_DEADLINE_S)
