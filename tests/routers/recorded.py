"""A small HTTP server that answers as the real routers did: the same statuses, bodies and order of effects.

Recorded from sglang-router 0.3.2, smg 1.13.0 and vllm-router 0.1.17 in front of loopback engines, paths shortened.
`tests/real/test_real_routers.py` runs the real ones.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from lifecycle.core.ports import WorkerURL
from lifecycle.fleet.registry import router_for

MODEL = "/models/loopback-seed0.safetensors"
ARCHITECTURES = '["LoopbackForCausalLM"]'

#: What the routers read from the engine when a worker is added.
READ = {
    "sglang-router": {
        "model_type": "loopback",
        "served_model_name": MODEL,
        "tp_size": "1",
        "model_path": MODEL,
        "architectures": ARCHITECTURES,
        "dp_size": "1",
        "disaggregation_mode": "null",
    },
    "smg": {
        "weight_version": "default",
        "model_type": "loopback",
        "has_image_understanding": "false",
        "tokenizer_path": MODEL,
        "context_length": "4096",
        "version": "0.5.23",
        "pp_size": "1",
        "dp_size": "1",
        "has_audio_understanding": "false",
        "is_generation": "true",
        "served_model_name": MODEL,
        "max_model_len": "4096",
        "tp_size": "1",
        "max_running_requests": "16",
        "architectures": ARCHITECTURES,
        "model_path": MODEL,
    },
    "vllm-router": {},
}


#: Two workers, and the engines that they are.
A, B = "http://10.0.0.1:30000", "http://10.0.0.2:30000"
ENGINES = {"a": WorkerURL("sglang://10.0.0.1:30000"), "b": WorkerURL("sglang://10.0.0.2:30000")}


@dataclass
class RecordedRouter:
    """One router. `answer` may replace the answer to any request; `adds_s` and `removes_s` are what its jobs take."""

    kind: str
    key: str | None = None
    adds_s: float = 0.02
    removes_s: float = 0.0
    #: The answer to a request of this method and path instead of the recorded one; None leaves it.
    answer: Callable[[str, str], web.Response | None] = lambda method, path: None
    #: Requests that have no effect: their answer is as recorded, and their job never ends.
    stuck: frozenset[str] = frozenset()
    #: Methods whose requests are read and never answered; and by request those whose connection breaks instead, without
    #: an effect, or after it.
    hangs: frozenset[str] = frozenset()
    drops: list[str] = field(default_factory=list)
    loses: list[str] = field(default_factory=list)
    workers: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    port: int = 0
    _ids: Any = field(default_factory=itertools.count)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert self._runner is not None
        await self._runner.cleanup()

    def url(self, **options: str) -> str:
        """Its URL for a fleet."""
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"{self.kind}://127.0.0.1:{self.port}{'?' if query else ''}{query}"

    def has(self, url: str, **given: Any) -> dict[str, Any]:
        """This worker is listed, with these settings."""
        entry = self._entry({"url": url, **given})
        self.workers[entry.get("id") or url] = entry
        return entry

    def open(self) -> list[str]:
        """The URLs of the workers to which it sends."""
        return [each["url"] for each in self.workers.values() if each.get("status") != "draining"]

    def connections(self) -> int:
        """How many are open."""
        assert self._runner is not None
        assert self._runner.server is not None
        return len(self._runner.server.connections)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        method, path = request.method, request.path
        raw = request.raw_path
        self.asked.append(f"{method} {raw}")
        if method in self.hangs:
            await asyncio.Event().wait()
        for broken in (self.drops, self.loses):
            if method in broken:
                broken.remove(method)
                assert request.transport is not None
                request.transport.abort()
                if broken is self.drops:
                    return web.Response()
                break
        replaced = self.answer(method, path)
        if replaced is not None:
            return replaced
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            body = (
                ""
                if self.kind != "smg"
                else _json({"error": {"message": "Invalid API key", "code": "invalid_api_key"}})
            )
            return web.Response(status=401, text=body)
        if (method, path) == ("GET", "/workers"):
            listed = list(self.workers.values())
            return web.json_response({"workers": listed, "total": len(listed), "stats": {"regular_count": len(listed)}})
        if (method, path) == ("POST", "/workers"):
            return await self._added(await request.json())
        name = path.removeprefix("/workers/")
        if method == "DELETE":
            return self._removed(name)
        if method == "GET" and path.startswith("/workers/"):
            return self._told(name)
        return web.Response(status=404)

    async def _added(self, body: dict[str, Any]) -> web.Response:
        self.bodies.append(body)
        url = body["url"]
        there = next((each for each in self.workers.values() if each["url"] == url), None)
        if self.kind == "vllm-router":
            await asyncio.sleep(self.adds_s)
            if there is not None:
                return web.Response(status=400, text=f"Worker {url} already exists")
            if "POST" not in self.stuck:
                self.has(url)
            return web.json_response({"success": True, "message": f"Successfully added worker: {url}"})
        if there is not None and self.kind == "smg":
            why = (
                f"Worker already exists at URL '{url}' with ID {there['id']}. Use PUT /workers/{there['id']} to replace"
            )
            return web.json_response({"error": why, "code": "WORKER_ALREADY_EXISTS"}, status=409)
        under_way = [
            name for name, job in self.jobs.items() if job["worker_url"] == url and job["status"] == "processing"
        ]
        if under_way and there is None and self.kind == "smg":
            why = f"Worker creation already in progress for URL '{url}' with ID {under_way[0]}."
            return web.json_response({"error": why, "code": "WORKER_CREATE_IN_PROGRESS"}, status=409)
        entry = self._entry(body)
        job = {"job_type": "AddWorker", "worker_url": url, "status": "processing", "message": None, "timestamp": 0}
        self.jobs[entry["id"]] = job
        if "POST" not in self.stuck and there is None:

            def added() -> None:
                self.workers[entry["id"]] = entry
                job["status"] = "completed"

            self._later(self.adds_s, added)
        message = {"status": "accepted", "worker_id": entry["id"], "url": url, "location": f"/workers/{entry['id']}"}
        return web.json_response({**message, "message": "Worker addition queued for background processing"}, status=202)

    def _removed(self, name: str) -> web.Response:
        if name not in self.workers and self.kind != "vllm-router":
            return web.json_response({"error": f"Worker {name} not found", "code": "WORKER_NOT_FOUND"}, status=404)
        if "DELETE" not in self.stuck:
            if self.kind == "smg":
                self.workers[name] |= {"status": "draining", "is_healthy": False}
            self._later(self.removes_s, lambda: self.workers.pop(name, None))
        if self.kind == "vllm-router":
            return web.json_response({"success": True, "message": f"Worker {name} removed successfully"})
        body = {"status": "accepted", "worker_id": name, "message": "Worker removal queued for background processing"}
        return web.json_response(body, status=202)

    def _told(self, name: str) -> web.Response:
        if name in self.workers or name in self.jobs:
            entry = self.workers.get(name, {"id": name, "is_healthy": False, "worker_type": "unknown"})
            return web.json_response({**entry, "job_status": self.jobs.get(name)})
        return web.json_response({"error": f"Worker {name} not found", "code": "WORKER_NOT_FOUND"}, status=404)

    def _entry(self, given: dict[str, Any]) -> dict[str, Any]:
        """A worker as it is listed, once it was added with these settings."""
        if self.kind == "vllm-router":
            settings = {
                "url": given["url"],
                "model_id": "unknown",
                "worker_type": "regular",
                "priority": 50,
                "cost": 1.0,
            }
            return {**settings, "is_healthy": True, "load": 0, "connection_mode": "Http"}
        labels, number = {**READ[self.kind], **given.get("labels", {})}, next(self._ids)
        entry = {
            "id": f"01a22b1f-0000-7403-bef6-{number:012}",
            "url": given["url"],
            "priority": given.get("priority", 50),
            "cost": given.get("cost", 1.0),
            "worker_type": given.get("worker_type", "regular"),
            "is_healthy": True,
            "load": 0,
        }
        if "bootstrap_port" in given:
            entry["bootstrap_port"] = given["bootstrap_port"]
        if self.kind == "sglang-router":
            labels |= {name: f"{given[name]:g}" for name in ("priority", "cost") if name in given}
            own = {"model_id": given.get("model_id", MODEL), "connection_mode": "HTTP", "disable_health_check": False}
            return {**entry, **own, "metadata": labels}
        models = given.get("models", [{"id": MODEL}])
        card = {"model_type": ["chat", "completions"], "hf_model_type": "loopback", "context_length": 4096}
        own = {"model_id": models[0]["id"], "models": [{**card, **models[0]}], "labels": labels, "status": "ready"}
        return {**entry, **own, "connection_mode": "http", "runtime_type": "sglang", "max_connection_attempts": 20}

    def _later(self, seconds: float, effect: Callable[[], object]) -> None:
        if seconds == 0:
            effect()
            return

        async def wait() -> None:
            end = time.monotonic() + seconds
            await asyncio.sleep(max(0.0, end - time.monotonic()))
            effect()

        self._tasks.add(asyncio.create_task(wait()))


def _json(body: object) -> str:
    return json.dumps(body)


def client(router: RecordedRouter, engines: dict[str, WorkerURL] = ENGINES, **options: str) -> Any:
    """A client of this router that was told of these engines."""
    made = router_for(router.url(**{"deadline_s": "5", **options}))
    made.knows(engines)
    return made
