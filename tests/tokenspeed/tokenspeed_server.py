"""An HTTP server that answers as a tokenspeed control server does, in the shapes that were read and run of it.

It has no engine: what was paused or released is remembered, as far as later answers hang on it. Source: tokenspeed
0.1.1, runtime/entrypoints/control_server.py, sglang_compat_http.py, runtime/engine/pause.py, memory_occupation.py; the
answers of its control routes as `tests/real/run_tokenspeed.py` had them from the real controllers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from answering_server import AnsweringServer, Request, Shape

NOT_FOUND: Shape = (404, {"detail": "Not Found"})
UNAUTHORIZED: Shape = (401, {"success": False, "message": "unauthorized"})
GATEWAY_UNAUTHORIZED: Shape = (401, {"error": "Unauthorized"})
ENGINE_GONE: Shape = (503, {"error": "engine unavailable", "detail": "failed to connect to all addresses"})
CONTROL_OFF: Shape = (503, {"error": "weight-sync control plane is unavailable on this server"})
BROKEN_OFF: Shape = (500, b"Internal Server Error")
PAUSE_FAILED: Shape = (500, {"success": False, "message": "Failed to pause generation."})
NO_CONTINUE: Shape = (500, {"success": False, "message": "Failed to continue generation."})
CUT_OFF: Shape = (400, {"success": False, "message": "resumed before release drained"})
IN_PROGRESS: Shape = (400, {"success": False, "message": "a pause or release is already in progress"})
REBALANCING: Shape = (
    400,
    {
        "success": False,
        "message": "cannot release memory: an expert rebalance is in progress (applying); "
        "retry the release once it has been applied",
    },
)
NO_SAVER: Shape = (400, {"success": False, "message": "memory saver not enabled (--enable-memory-saver)"})
OK: Shape = (200, {"success": True, "message": ""})
TAGS = ("weights", "kv_cache")
CONTROL = ("/pause_", "/continue_", "/release_", "/resume_", "/update_", "/init_", "/get_weight", "/v1/loads")


def arguments(**changes: Any) -> dict[str, Any]:
    """The arguments that are read, as `/get_server_info` has them: a protobuf struct, whose numbers are floats."""
    return {
        "model": "/models/tiny",
        "device": "cuda",
        "world_size": 1.0,
        "attn_tp_size": None,
        "data_parallel_size": None,
        "pipeline_parallel_size": 1.0,
        "enable_memory_saver": True,
        "weight_version": "default",
        **changes,
    }


def refused(message: str) -> Shape:
    """A refusal of the engine."""
    return 400, {"success": False, "message": message}


@dataclass
class RecordedServer(AnsweringServer):
    """A tokenspeed control server of this version, as far as what it answers."""

    version: str = "0.1.1"
    key: str | None = None
    control_key: str | None = None
    arguments: dict[str, Any] = field(default_factory=arguments)
    started: str = "2026-11-30T09:00:00Z"
    label: str = "default"
    released: set[str] = field(default_factory=set)
    requests: int = 0
    #: Set while no request runs: a pause is answered then.
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    #: Set while the gate is open: a generation is answered then.
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    #: Whether somebody's resume cuts off a pause that waits.
    pause_fails: bool = False

    async def __aenter__(self) -> RecordedServer:
        self.idle.set()
        self.gate.set()
        self._turn = asyncio.Lock()
        return await super().__aenter__()

    @property
    def url(self) -> str:
        return f"tokenspeed://127.0.0.1:{self.port}"

    async def answer(self, request: Request, headers: dict[str, str]) -> Shape:
        given = headers.get("authorization")
        if request.path.startswith(CONTROL) and self.control_key and given != f"Bearer {self.control_key}":
            return UNAUTHORIZED
        if request.path == "/generate" and self.key and given != f"Bearer {self.key}":
            return GATEWAY_UNAUTHORIZED
        known: dict[str, Callable[[Request], Any]] = {
            "GET /get_server_info": lambda _: (200, self.info()),
            "GET /get_weight_version": lambda _: (200, {"weight_version": self.label}),
            "GET /v1/loads": lambda _: (200, {"loads": [self._load()]}),
            "GET /health_generate": lambda _: (200, {"status": "ok"}),
            "POST /generate": self._generate,
            "POST /pause_generation": self._pause,
            "POST /continue_generation": self._continue,
            "POST /release_memory_occupation": self._release,
            "POST /resume_memory_occupation": self._restore,
            "POST /update_weights_from_mooncake": self._mooncake,
            "POST /init_weights_update_group": lambda _: OK,
        }
        handler = known.get(f"{request.method} {request.path}")
        if handler is None:
            return NOT_FOUND
        answer = handler(request)
        shape: Shape = await answer if asyncio.iscoroutine(answer) else answer
        return shape

    def info(self) -> dict[str, Any]:
        """The answer of `/get_server_info`: a number that is 0 is left out, and so is `is_paused`."""
        count = {"active_requests": self.requests} if self.requests else {}
        told = {"tokenspeed_version": self.version, "start_time": self.started, "uptime_seconds": 12.5}
        return {**self.arguments, **told, **count, "server_args": self.arguments}

    def _load(self) -> dict[str, int]:
        return {"dp_rank": 0, "num_reqs": self.requests, "num_waiting_reqs": 0, "num_pages": 0}

    async def _generate(self, request: Request) -> Shape:
        await self.gate.wait()
        count = request.body["sampling_params"]["max_new_tokens"]
        meta = {"id": "r", "finish_reason": {"type": "length", "length": count}, "completion_tokens": count}
        return 200, {"text": " a" * count, "output_ids": [7] * count, "meta_info": meta}

    async def _pause(self, _: Request) -> Shape:
        self.gate.clear()
        async with self._turn:  # one call of a kind is with the scheduler at a time
            await self.idle.wait()
        if self.pause_fails:
            self.gate.set()
            return PAUSE_FAILED
        return 200, {"success": True, "message": "Paused generation.", "mode": "wait"}

    def _continue(self, _: Request) -> Shape:
        if self.released:
            return NO_CONTINUE
        self.gate.set()
        return 200, {"success": True, "message": "Continued generation."}

    def _release(self, request: Request) -> Shape:
        if not self.arguments["enable_memory_saver"]:
            return NO_SAVER
        tags = request.body["tags"]
        wrong = [tag for tag in tags if tag not in TAGS]
        if wrong:
            return refused(f"invalid tags: {wrong!r}; valid: {list(TAGS)}")
        already = [tag for tag in TAGS if tag in tags and tag in self.released]
        if already:
            return refused(f"tags already released: {already!r}")
        self.released |= set(tags)
        return OK

    def _restore(self, request: Request) -> Shape:
        tags = request.body["tags"]
        wrong = [tag for tag in tags if tag not in TAGS]
        if wrong:
            return refused(f"invalid tags: {wrong!r}; valid: {list(TAGS)}")
        mapped = [tag for tag in TAGS if tag in tags and tag not in self.released]
        if mapped:
            return refused(f"tags not released: {mapped!r}")
        self.released -= set(tags)
        return OK

    def _mooncake(self, request: Request) -> Shape:
        self.label = request.body["weight_version"]
        return 200, {"success": True, "message": f" Weight version updated to {self.label}."}
