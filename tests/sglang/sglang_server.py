"""An HTTP server that answers as an SGLang of some version does, in the shapes that were recorded or read of it.

It has no engine: what was paused, queued or released is remembered, as far as later answers hang on it. Source: sglang
0.5.23, recorded on a real server; the other versions from the released packages that `adapters/sglang/versions.py`
names. What ends a real server sets `died`, and nothing is answered from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from answering_server import AnsweringServer, Request, Shape
from lifecycle.adapters.sglang.versions import VERSIONS, Effects

EMPTY = b""
NOT_FOUND: Shape = (404, {"detail": "Not Found"})
FLUSHED = b"Cache flushed.\nPlease check backend logs for more details."
OUTSIDE = "update_weights_from_tensor must run between begin_weight_update() and end_weight_update()"


def invalid(
    message: str = "1 validation error:\n  {'type': 'missing', 'loc': ('body',), 'msg': 'Field required'}",
) -> Shape:
    """A body that fails validation. Source: sglang 0.5.11 to 0.5.23, http_server.py, validation_exception_handler."""
    return 400, {"object": "error", "message": message, "type": "Bad Request", "param": None, "code": 400}


@dataclass
class RecordedServer(AnsweringServer):
    """An SGLang server of this version, as far as what it answers. Requests run until something ends them."""

    version: str = "0.5.23"
    settings: dict[str, Any] = field(default_factory=dict)
    gate_closed: bool = False
    #: Whether the scheduler takes no steps: after a retract or in_place.
    paused: bool = False
    running: int = 0
    waiting: int = 0
    #: Requests that ended by an abort.
    aborted: int = 0
    healthy: bool = True
    released: set[str] = field(default_factory=set)
    path: str = "/models/tiny"
    label: str = "default"
    session: bool = False
    died: str = ""
    #: When the loop counted last before it was paused.
    counted_at: float = 0.0

    @property
    def url(self) -> str:
        return f"sglang://127.0.0.1:{self.port}"

    @property
    def effects(self) -> Effects:
        """What its version does; of one that nobody knows, what the nearest does."""
        return VERSIONS.nearest(self.version).effects

    async def answer(self, request: Request, headers: dict[str, str]) -> Shape:
        if self.died:
            raise ConnectionResetError(self.died)
        effects = self.effects
        known: dict[str, Callable[[Request], Shape]] = {
            "GET /server_info": lambda _: (200, self._info()),
            "GET /model_info": lambda _: (200, {"model_path": self.path, "weight_version": self.label}),
            "GET /v1/loads": lambda _: (200, {"timestamp": datetime.now(UTC).isoformat(), "loads": [self._load()]}),
            "GET /ping": lambda _: (200 if self.healthy or not effects.ping_is_health else 503, EMPTY),
            "GET /health": self._health,
            "POST /generate": self._generate,
            "POST /abort_request": self._abort,
            "POST /pause_generation": self._pause,
            "POST /continue_generation": self._continue,
            "POST /flush_cache": self._flush,
            "POST /release_memory_occupation": self._release,
            "POST /resume_memory_occupation": self._resume,
            "POST /update_weights_from_disk": self._from_disk,
            "POST /update_weights_from_tensor": self._from_tensor,
            "POST /weights_checker": self._check,
        }
        if effects.ready:
            known["GET /ready"] = lambda _: (200 if self.healthy and not self.gate_closed else 503, EMPTY)
        if effects.sessions:
            known["POST /begin_weight_update"] = lambda _: self._session(begins=True)
            known["POST /end_weight_update"] = lambda _: self._session(begins=False)
        handler = known.get(f"{request.method} {request.path}")
        return NOT_FOUND if handler is None else handler(request)

    # what it says of itself

    def _info(self) -> dict[str, Any]:
        live = {} if self.effects.info_is_of_launch else {"model_path": self.path, "weight_version": self.label}
        started = {"startup_time": {"load_weight": 0.4188}} if self.effects.tells_start else {}
        return {
            "model_path": "/models/tiny",
            "weight_version": "default",
            "random_seed": 983610359,
            "dp_size": 1,
            "enable_memory_saver": True,
            "device": "cuda",
            "version": self.version,
            "internal_states": [{"memory_usage": {"weight": 0.268, "kvcache": 0.281}}],
            **live,
            **started,
            **self.settings,
        }

    def _load(self) -> dict[str, Any]:
        """A paused loop publishes no more; before 0.5.13 the scheduler is asked, paused or not, and gives no time."""
        counts = {"dp_rank": 0, "num_running_reqs": self.running, "num_waiting_reqs": self.waiting}
        if not self.effects.stamps_loads:
            return counts
        return {**counts, "timestamp": self.counted_at if self.paused else time.time()}

    def _health(self, _: Request) -> Shape:
        self.healthy = not self.gate_closed
        return 200 if self.healthy else 503, EMPTY

    def _generate(self, request: Request) -> Shape:
        if self.gate_closed:
            raise ConnectionResetError("a real one holds it until the continue; a test waits for no one")
        count = request.body["sampling_params"]["max_new_tokens"]
        meta = {"finish_reason": {"type": "length", "length": count}, "completion_tokens": count}
        return 200, {"text": " a" * count, "output_ids": [7] * count, "meta_info": meta}

    # the lifecycle

    def _pause(self, request: Request) -> Shape:
        mode = (request.body or {}).get("mode", "abort")
        self.gate_closed = True
        self.counted_at = self.counted_at if self.paused else time.time()
        if mode == "abort":
            self._end(everything=True)
        else:
            self.paused = True
        if mode == "retract":
            self.running, self.waiting = 0, self.waiting + self.running
        return 200, {"message": "Generation paused successfully.", "status": "ok"}

    def _continue(self, _: Request) -> Shape:
        self.gate_closed = self.paused = False
        self.running, self.waiting = self.running + self.waiting, 0
        return 200, {"message": "Generation continued successfully.", "status": "ok"}

    def _abort(self, request: Request) -> Shape:
        if request.body is None:
            return invalid()
        if request.body.get("abort_all"):
            self._end(everything=not self.paused)
        return 200, EMPTY

    def _end(self, *, everything: bool) -> None:
        """Ends what is queued; what runs only where the loop takes another step."""
        ended = self.waiting + (self.running if everything else 0)
        self.aborted, self.waiting, self.running = self.aborted + ended, 0, 0 if everything else self.running

    @property
    def _idle(self) -> bool:
        ignored = self.paused and self.effects.drains_retracted
        return not self.running and (ignored or not self.waiting)

    def _flush(self, request: Request) -> Shape:
        timeout = float(request.query.get("timeout", ["0"])[0])
        if not timeout:
            return (200, FLUSHED) if self._idle else (400, b"Flush cache failed.\n")
        if self.running or self.waiting:
            return 400, b"Timed out waiting for idle state."
        return 200, FLUSHED

    def _release(self, request: Request) -> Shape:
        if not self._idle:
            return self._dies("release_memory_occupation should be called only when server is idle.")
        self.released |= set(request.body["tags"])
        return 200, None

    def _resume(self, request: Request) -> Shape:
        if not set(request.body["tags"]) <= self.released:
            return self._dies("KeyError")
        self.released -= set(request.body["tags"])
        return 200, None

    def _dies(self, why: str) -> Shape:
        self.died = why
        raise ConnectionResetError(why)

    # the weights

    def _from_disk(self, request: Request) -> Shape:
        self.path, self.label = request.body["model_path"], request.body.get("weight_version") or self.label
        return 200, {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}

    def _from_tensor(self, request: Request) -> Shape:
        if self.effects.sessions and not self.session:
            return 400, {"success": False, "message": OUTSIDE}
        self.label = request.body.get("weight_version") or self.label
        return 200, {"success": True, "message": "Success"}

    def _session(self, *, begins: bool) -> Shape:
        if self.session is begins:
            why = "a weight-update session is already open" if begins else "no weight-update session is open"
            return 400, {"success": False, "message": why}
        self.session = begins
        return 200, {"success": True, "message": "Success"}

    def _check(self, request: Request) -> Shape:
        if not self.effects.checksums:
            return 400, {"success": False, "message": "Unsupported action='checksum'"}
        ranks = [{"checksums": {"w": self.label}, "per_gpu_checksum": self.label}]
        return 200, {"success": True, "message": "Success.", "ranks": ranks, "per_engine_checksum": self.label}
