"""An HTTP server that answers as a vLLM of some version does, in the shapes that were recorded or read of it.

It has no engine: what was paused or put to sleep is remembered, as far as later answers hang on it. Source: vllm
0.32.0, recorded on a real server; the other versions from the released packages that `adapters/vllm/versions.py` names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from answering_server import AnsweringServer, Request, Shape
from lifecycle.adapters.vllm.versions import VERSIONS, Effects

EMPTY = b""
NOT_FOUND: Shape = (404, {"detail": "Not Found"})
KEY_ERROR: Shape = (401, {"error": "Unauthorized"})
NO_UPDATE = "finish_weight_update called without a matching start_weight_update."


def error(status: int, message: str, kind: str = "InternalServerError") -> Shape:
    """An error in vLLM's own form."""
    return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}


ENGINE_PAUSED = error(503, "Generation is paused. Please retry after it resumes.", "ServiceUnavailableError")
DIED = error(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")
RANKS_DISAGREE: Shape = (
    500,
    {"error": "Failed to fetch pause status: Engines returned different is_scheduler_paused results: [True, False]"},
)


def config(**model: Any) -> dict[str, Any]:
    """The parts of a configuration that are read, as `/server_info?config_format=json` has them."""
    return {
        "model_config": {
            "model": "/models/tiny",
            "enable_sleep_mode": True,
            "enable_cumem_allocator": True,
            **model,
        },
        "parallel_config": {
            "tensor_parallel_size": 1,
            "pipeline_parallel_size": 1,
            "data_parallel_size": 1,
            "enable_fault_tolerance": False,
            "_api_process_count": 1,
        },
        "device_config": {"device": "cuda"},
        "weight_transfer_config": None,
        "kv_transfer_config": None,
        "instance_id": "1f4c9",
    }


@dataclass
class RecordedServer(AnsweringServer):
    """A vLLM server of this version, as far as what it answers."""

    version: str = "0.32.0"
    dev_mode: bool = True
    key: str | None = None
    tracks_load: bool = False
    config: dict[str, Any] = field(default_factory=config)
    paused: str | None = None
    asleep: set[str] = field(default_factory=set)
    label: str = "default"
    updating: bool = False
    open_requests: int = 0
    tokens: int = 0
    #: Set while no request runs: a pause that waits is answered then.
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    #: Set where completions are answered.
    generates: asyncio.Event = field(default_factory=asyncio.Event)
    #: Set once `/load` was asked while a completion ran.
    loads: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> RecordedServer:
        self.idle.set()
        self.generates.set()
        return await super().__aenter__()

    @property
    def url(self) -> str:
        return f"vllm://127.0.0.1:{self.port}"

    @property
    def effects(self) -> Effects:
        """What its version does; of one that nobody knows, what the nearest does."""
        return VERSIONS.nearest(self.version).effects

    async def answer(self, request: Request, headers: dict[str, str]) -> Shape:
        if request.path.startswith("/v1") and self.key and headers.get("authorization") != f"Bearer {self.key}":
            return KEY_ERROR
        known: dict[str, Callable[[Request], Any]] = {
            "GET /version": lambda _: (200, {"version": self.version}),
            "GET /health": lambda _: (200, EMPTY),
            "GET /load": self._load,
            "GET /v1/models": lambda _: (200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]}),
            "GET /metrics": self._metrics,
            "POST /v1/completions": self._completion,
        }
        if self.dev_mode:
            known |= {
                "GET /server_info": lambda _: (200, {"vllm_config": self.config, "vllm_env": {}, "system_env": {}}),
                "GET /is_paused": lambda _: (200, {"is_paused": self.paused is not None}),
                "GET /is_sleeping": lambda _: (200, {"is_sleeping": bool(self.paused or self.asleep)}),
                "POST /pause": self._pause,
                "POST /resume": self._resume,
                "POST /sleep": self._sleep,
                "POST /wake_up": self._wake,
                "POST /reset_prefix_cache": self._reset,
                "POST /reset_encoder_cache": lambda _: (200, EMPTY),
                "POST /collective_rpc": self._rpc,
                "POST /init_weight_transfer_engine": lambda _: self._transfer("Weight transfer initialized"),
                "POST /start_weight_update": self._start,
                "POST /update_weights": lambda _: self._transfer("Weights updated"),
                "POST /finish_weight_update": self._finish,
            }
            known |= {"POST /release_kv_cache_memory": self._release_kv} if self.effects.releases_kv else {}
            if self.effects.labels:
                known["GET /weight_info"] = lambda _: (200, {"weight_version": self.label})
                known["POST /update_weight_version"] = self._label
            if self.effects.checks_weights:
                known["POST /weight_checker"] = lambda _: (200, {"checksums": {"w": self.label}})
        handler = known.get(f"{request.method} {request.path}")
        if handler is None:
            return NOT_FOUND
        answer = handler(request)
        shape: Shape = await answer if asyncio.iscoroutine(answer) else answer
        return shape

    # the lifecycle

    async def _pause(self, request: Request) -> Shape:
        mode = request.query.get("mode", ["abort"])[0]
        if mode not in ("abort", "wait", "keep"):
            return error(400, "1 validation error: mode", "Bad Request")
        self.paused = mode
        if mode == "wait":
            await self.idle.wait()
        return 200, {"status": "paused"}

    def _resume(self, _: Request) -> Shape:
        self.paused = None
        return 200, {"status": "resumed"}

    def _sleep(self, request: Request) -> Shape:
        level = int(request.query.get("level", ["1"])[0])
        self.paused = request.query.get("mode", ["abort"])[0]
        asleep_already = "weights" in self.asleep if self.effects.sleeps_half_awake else bool(self.asleep)
        if not asleep_already and level:
            self.asleep = {"weights", "kv_cache"}
        return (200, {"status": "sleeping", "level": level}) if self.effects.answers_status else (200, EMPTY)

    def _wake(self, request: Request) -> Shape:
        tags = request.query.get("tags") or None
        if tags is None or set(tags) <= self.asleep:
            self.asleep -= self.asleep if tags is None else set(tags)
        if not self.asleep:
            self.paused = None
        if not self.effects.answers_status:
            return 200, EMPTY
        return 200, {"status": "sleeping" if self.asleep else "awake", "tags": tags}

    def _release_kv(self, _: Request) -> Shape:
        if not self.paused:
            return error(500, "Call to release_kv_cache_memory method failed: requires a completed pause first")
        if self.asleep:
            return error(
                500, "Call to release_kv_cache_memory method failed: requires all executor memory to be resident"
            )
        self.asleep = {"kv_cache"}
        return (200, {"status": "kv_cache_released"}) if self.effects.answers_status else (200, EMPTY)

    def _reset(self, _: Request) -> Shape:
        return (200, {"success": True}) if self.effects.says_reset else (200, EMPTY)

    # the weights

    def _rpc(self, request: Request) -> Shape:
        if request.body["method"] != "reload_weights":
            return error(500, f"Call to collective_rpc method failed: {request.body['method']}")
        return 200, {"results": [None]}

    def _label(self, request: Request) -> Shape:
        self.label = request.body["new_version"]
        return 200, {"success": True, "new_version": self.label}

    def _transfer(self, message: str) -> Shape:
        if not self.config["weight_transfer_config"]:
            return error(500, "Call to collective_rpc method failed: Weight transfer not configured.")
        return 200, {"message": message}

    def _start(self, request: Request) -> Shape:
        if self.effects.start_needs_body and request.body is None:
            return error(400, "Invalid JSON format", "Bad Request")
        if self.updating:
            return error(500, "start_weight_update called while a weight update is already active.")
        answer = self._transfer("Weight update started")
        self.updating = answer[0] == 200
        return answer

    def _finish(self, request: Request) -> Shape:
        if not self.updating:
            return error(500, f"Call to collective_rpc method failed: {NO_UPDATE}")
        self.updating = False
        if self.effects.labels and (request.body or {}).get("weight_version"):
            self.label = request.body["weight_version"]
        return 200, {"message": "Weight update finished"}

    # requests

    async def _completion(self, request: Request) -> Shape:
        if self.paused in ("abort", "wait") and self.effects.refuses_new:
            return ENGINE_PAUSED
        self.open_requests += 1
        try:
            await self.generates.wait()
        finally:
            self.open_requests -= 1
        count = request.body["max_tokens"]
        choice = {"index": 0, "text": " a" * count, "finish_reason": "length", "token_ids": [7] * count}
        return 200, {"choices": [choice], "usage": {"completion_tokens": count}}

    def _load(self, _: Request) -> Shape:
        if self.open_requests:
            self.loads.set()
        return 200, {"server_load": self.open_requests if self.tracks_load else 0}

    def _metrics(self, _: Request) -> Shape:
        self.tokens += 0 if self.generates.is_set() else 5
        lines = [
            "# TYPE vllm:generation_tokens_total counter",
            f'vllm:generation_tokens_total{{engine="0",model_name="tiny"}} {float(self.tokens)}',
            'vllm:num_requests_running{engine="0",model_name="tiny"} 8.0',
            'vllm:request_success_total{engine="0",finished_reason="length"} 2.0',
            "process_start_time_seconds 1.79603e+09",
        ]
        return 200, "\n".join(lines).encode()
