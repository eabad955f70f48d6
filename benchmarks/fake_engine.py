"""The state of one fake SGLang engine, and what it answers to each request.

It ends on what kills SGLang: a release while requests run, a release of a released tag, a resume of a mapped one, a
load or a token without weights. Source: sglang 0.5.23, as the loopback engine, which is the one to test behaviour with.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import time
from collections import Counter
from collections.abc import Awaitable
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, bytes]

FLUSH_REFUSED = b"Flush cache failed.\n"
NULL: Answer = (200, b"null")
#: Bytes that the options of a server take in its `/server_info`, measured on sglang 0.5.23.
INFO_BYTES = 20_000
#: Seconds after which an abort pause looks again whether the requests have ended, and what they take to end.
ABORT_POLL_S, ABORTED_S = 1.0, 0.02
#: Seconds that one pass of the scheduler takes, of a small model.
PASS_S = 0.01


class Died(Exception):
    """The engine ends here, without an answer."""


class FakeEngine:
    """The state of one engine, and what it answers. Times are of the clock that all processes of a host share."""

    def __init__(self, index: int, tag_bytes: int, backup: bool) -> None:
        self.index, self.backup = index, backup
        self.paused: str | None = None
        self.released: set[str] = set()
        self.label, self.model_path, self.healthy, self.dead = "default", "/models/launch", True, False
        self.run_until = 0.0  # requests run until then
        self.refuse_flush_s = 0.0  # for so long after a pause a flush is refused
        self.flush_from = 0.0
        self.asked: Counter[str] = Counter()
        self.lifted = asyncio.Event()
        self.memory = {tag: _Pages(tag_bytes) for tag in ("weights", "kv_cache")} if tag_bytes else {}
        self._info: bytes | None = None
        self._size_gib = tag_bytes / (1 << 30) if tag_bytes else 1.0
        self._started = {"load_weights": time.time_ns() % 10**9 / 1e9, "engine": index}

    @property
    def running(self) -> int:
        """Requests that run."""
        return int(time.monotonic() < self.run_until)

    def handle(self, method: str, target: str, body: bytes) -> Answer | Awaitable[Answer]:
        """What this request is answered; raises Died where it ends the engine."""
        url = urlsplit(target)
        act = _ROUTES.get((method, url.path))
        if act is None:
            return 404, b'{"detail":"Not Found"}'
        if url.path in _NEED_BODY and not body:
            return 400 if url.path == "/abort_request" else 422, b'{"detail":"a body is required"}'
        asked = json.loads(body) if body else {}
        return act(self, asked | {name: values[0] for name, values in parse_qs(url.query).items()})

    def server_info(self, asked: dict[str, Any]) -> Answer:
        if self._info is None:
            filler = {f"option_{number:03}": "x" * 60 for number in range(INFO_BYTES // 80)}
            usage = {"weight": self._size_gib, "kvcache": self._size_gib, "token_capacity": 4096}
            info = {
                "version": "0.5.23",
                "status": "ready",
                "device": "cpu",
                "tp_size": 1,
                "pp_size": 1,
                "dp_size": 1,
                "disaggregation_mode": "null",
                "enable_memory_saver": True,
                "tokenizer_worker_num": 1,
                "enable_weights_cpu_backup": self.backup,
                "model_path": self.model_path,
                "weight_version": self.label,
                "startup_time": self._started,
                "random_seed": 1000 + self.index,
                **filler,
                "internal_states": [{"world_size": 1, "last_gen_throughput": 0.0, "memory_usage": usage}],
            }
            self._info = json.dumps(info).encode()
        return 200, self._info

    def ready(self, asked: dict[str, Any]) -> Answer:
        return (200 if self.healthy and self.paused is None else 503), b""

    def ping(self, asked: dict[str, Any]) -> Answer:
        return (200 if self.healthy else 503), b""

    def health(self, asked: dict[str, Any]) -> Answer:
        self.healthy = self.paused is None
        return self.ping(asked)

    def model_info(self, asked: dict[str, Any]) -> Answer:
        return as_json({"model_path": self.model_path, "weight_version": self.label, "is_generation": True})

    def loads(self, asked: dict[str, Any]) -> Answer:
        stands = self.paused in ("retract", "in_place")
        row = {"dp_rank": 0, "num_running_reqs": self.running, "num_waiting_reqs": 0}
        return as_json({"loads": [row | {"timestamp": 1.0 if stands else time.time()}]})

    def pause(self, asked: dict[str, Any]) -> Answer | Awaitable[Answer]:
        self.paused = asked.get("mode", "abort")
        self.flush_from = time.monotonic() + self.refuse_flush_s
        self.lifted.clear()
        if self.paused == "abort" and self.running:
            self.run_until = time.monotonic() + ABORTED_S
            return _later(ABORT_POLL_S, as_json({"status": "ok"}))
        if self.paused == "retract":
            self.run_until = min(self.run_until, time.monotonic())
        return as_json({"status": "ok"})

    def resume_generation(self, asked: dict[str, Any]) -> Answer:
        self.paused = None
        self.lifted.set()
        return as_json({"status": "ok"})

    def flush(self, asked: dict[str, Any]) -> Answer | Awaitable[Answer]:
        timeout_s = float(asked.get("timeout", 0))
        if self._flushes():
            return 200, b"Cache flushed.\n"
        return self._flush_by(time.monotonic() + timeout_s) if timeout_s else (400, FLUSH_REFUSED)

    def _flushes(self) -> bool:
        return not self.running and time.monotonic() >= self.flush_from

    async def _flush_by(self, end: float) -> Answer:
        """SGLang looks after each of its passes."""
        while not self._flushes():
            if time.monotonic() > end or self.paused in ("retract", "in_place"):
                return 400, FLUSH_REFUSED
            await asyncio.sleep(PASS_S)
        return 200, b"Cache flushed.\n"

    def release(self, asked: dict[str, Any]) -> Answer:
        tags = asked.get("tags") or ["weights", "kv_cache"]
        if self.running or self.released & set(tags):
            raise Died
        for tag in tags:
            self.released.add(tag)
            if tag in self.memory:
                self.memory[tag].drop()
        return NULL

    def resume(self, asked: dict[str, Any]) -> Answer:
        tags = asked.get("tags") or ["weights", "kv_cache"]
        if not set(tags) <= self.released:
            raise Died
        for tag in tags:
            self.released.discard(tag)
            if tag in self.memory:
                self.memory[tag].touch()
        return NULL

    def update(self, asked: dict[str, Any]) -> Answer:
        if "weights" in self.released:
            raise Died
        self.model_path, self.label = asked["model_path"], asked.get("weight_version", self.label)
        self._info = None
        return as_json({"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0})

    def generate(self, asked: dict[str, Any]) -> Answer | Awaitable[Answer]:
        return self._generate_then() if self.paused is not None else self._token()

    async def _generate_then(self) -> Answer:
        await self.lifted.wait()
        return self._token()

    def _token(self) -> Answer:
        if self.released:
            raise Died
        meta = {"completion_tokens": 1, "finish_reason": {"type": "length", "length": 1}}
        return as_json({"text": "a", "output_ids": [7], "meta_info": meta})

    def abort(self, asked: dict[str, Any]) -> Answer:
        if asked.get("abort_all") and self.running:
            self.run_until = time.monotonic() + ABORTED_S
        return 200, b""


_ROUTES = {
    ("GET", "/server_info"): FakeEngine.server_info,
    ("GET", "/ready"): FakeEngine.ready,
    ("GET", "/ping"): FakeEngine.ping,
    ("GET", "/health"): FakeEngine.health,
    ("GET", "/model_info"): FakeEngine.model_info,
    ("GET", "/v1/loads"): FakeEngine.loads,
    ("POST", "/pause_generation"): FakeEngine.pause,
    ("POST", "/continue_generation"): FakeEngine.resume_generation,
    ("POST", "/flush_cache"): FakeEngine.flush,
    ("GET", "/flush_cache"): FakeEngine.flush,
    ("POST", "/release_memory_occupation"): FakeEngine.release,
    ("POST", "/resume_memory_occupation"): FakeEngine.resume,
    ("POST", "/update_weights_from_disk"): FakeEngine.update,
    ("POST", "/generate"): FakeEngine.generate,
    ("POST", "/abort_request"): FakeEngine.abort,
}
_NEED_BODY = {path for method, path in _ROUTES if method == "POST"} - {"/flush_cache"}


class _Pages:
    """Memory of this process alone, resident until it is dropped."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.touch()

    def touch(self) -> None:
        for offset in range(0, len(self._map), mmap.PAGESIZE):
            self._map[offset] = 1

    def drop(self) -> None:
        self._map.madvise(mmap.MADV_DONTNEED)


async def _later(seconds: float, answer: Answer) -> Answer:
    await asyncio.sleep(seconds)
    return answer


def as_json(value: Any) -> Answer:
    return 200, json.dumps(value).encode()
