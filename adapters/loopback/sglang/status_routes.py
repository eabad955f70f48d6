"""The status endpoints. As in SGLang, none reports the pause mode or which tags are released."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from ..sequence import HEALTH_PREFIX, GenerateRequest, Sampling
from .bodies import dp_rank
from .engine import ServerStatus, SGLangEngine
from .loads import LoadSnapshot, as_load, disaggregation
from .metrics import exposition

_SECTIONS = frozenset({"core", "memory", "spec", "lora", "disagg", "queues", "all"})


async def root(engine: SGLangEngine, request: Request) -> Response:
    """Answers that the engine runs."""
    return JSONResponse("Loopback engine is running")


async def ready(engine: SGLangEngine, request: Request) -> Response:
    """200 where requests are admitted, the last health check succeeded and no exit has begun, else 503."""
    up = engine.status is ServerStatus.UP and not engine.gate.is_pause and not engine.exiting
    return Response(status_code=200 if up else 503)


async def ping(engine: SGLangEngine, request: Request) -> Response:
    """200 where the last health check succeeded, paused or not, else 503; of an older release always 200."""
    up = engine.status is ServerStatus.UP or not engine.traits.ping_is_health
    return Response(status_code=200 if up else 503)


async def health(engine: SGLangEngine, request: Request) -> Response:
    """200 where a token is generated in time, else 503.

    A paused engine generates none. It is marked UnHealthy after the timeout.
    Source: sglang 0.5.23, entrypoints/http_server.py health_generate.
    """
    if engine.exiting:
        return Response(status_code=503)
    began = time.monotonic()
    probe = asyncio.create_task(_one_token(engine, f"{HEALTH_PREFIX}_{time.time()}"))
    try:
        alive = await _token_since(engine, began)
    finally:
        probe.cancel()
    engine.status = ServerStatus.UP if alive else ServerStatus.UNHEALTHY
    return Response(status_code=200 if alive else 503)


async def _one_token(engine: SGLangEngine, rid: str) -> None:
    async for _ in engine.gate.generate(GenerateRequest(rid, (0,), Sampling(max_new_tokens=1))):
        pass


async def _token_since(engine: SGLangEngine, began: float) -> bool:
    """Whether the scheduler has delivered any output since `began`; polled until the timeout."""
    while time.monotonic() < began + engine.options.health_timeout_s:
        await asyncio.sleep(engine.options.health_poll_s)
        if engine.gate.last_receive > began:
            return True
    return False


async def server_info(engine: SGLangEngine, request: Request) -> Response:
    """The options and the internal state. The scheduler has handled every earlier message when this answers."""
    state = await engine.gate.in_turn("server_info", lambda: _internal_state(engine))
    arguments = engine.resolved_arguments()
    live = {"status": "ready", "max_total_num_tokens": engine.scheduler.capacity, "version": engine.traits.release}
    return JSONResponse({**arguments, **live, "internal_states": [arguments | state]})


async def _internal_state(engine: SGLangEngine) -> dict[str, Any]:
    throughput = await asyncio.wrap_future(engine.scheduler.ask(lambda: engine.scheduler.publisher.latest.throughput))
    return {
        "world_size": engine.options.ranks,
        "effective_max_running_requests_per_dp": engine.options.max_running_requests,
        "last_gen_throughput": throughput,
        "memory_usage": engine.memory_usage(),
    }


async def model_info(engine: SGLangEngine, request: Request) -> Response:
    """The model and the label of its weights, without asking the scheduler."""
    return JSONResponse(
        {
            "model_path": engine.model_path,
            "served_model_name": engine.model_path,
            "tokenizer_path": engine.tokenizer_path,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": engine.weight_version,
            "load_format": engine.load_format,
            "reasoning_parser": None,
            "tool_call_parser": None,
            "disaggregation_mode": engine.options.disaggregation_mode,
            "has_image_understanding": False,
            "has_audio_understanding": False,
            "model_type": "loopback",
            "architectures": ["LoopbackForCausalLM"],
        }
    )


async def loads(engine: SGLangEngine, request: Request) -> Response:
    """The last published load counts. They are not updated while the scheduler is paused.

    An older release asks the scheduler, paused or not, and leaves out when it counted.
    """
    include = request.query_params.get("include")
    sections = {part.strip() for part in include.split(",")} if include else {"all"}
    if not sections <= _SECTIONS:
        return PlainTextResponse("Internal Server Error", status_code=500)  # Source: sglang 0.5.23, measured
    if not engine.traits.publishes_loads:
        await asyncio.wrap_future(engine.scheduler.ask(engine.scheduler.publish))
    entries = [_load(engine, sections)] if dp_rank(request) in (None, 0) else []
    if request.query_params.get("format") == "prometheus":
        return PlainTextResponse(_prometheus(entries), media_type="text/plain; version=0.0.4")
    return JSONResponse(
        {
            "timestamp": datetime.now(UTC).isoformat(),
            "version": engine.traits.release,
            "accelerator": None,
            "num_accelerators": engine.options.ranks,
            "loads": entries,
        }
    )


def _load(engine: SGLangEngine, sections: set[str]) -> dict[str, Any]:
    snapshot = _snapshot(engine)
    load = as_load(snapshot, engine.scheduler.capacity, engine.options.max_running_requests)
    if not engine.traits.publishes_loads:
        del load["timestamp"]
    if sections & {"memory", "all"}:
        usage = engine.memory_usage()
        load["memory"] = {"weight_gb": usage["weight"], "kv_cache_gb": usage["kvcache"], "graph_gb": 0.0}
        load["memory"]["token_capacity"] = usage["token_capacity"]
    if sections & {"disagg", "all"}:
        load["disaggregation"] = disaggregation(engine.options.disaggregation_mode)
    if sections & {"queues", "all"}:
        load["queues"] = {"waiting": snapshot.waiting, "grammar": 0, "paused": 0, "retracted": 0, "prealloc_ready": 0}
    return load


def _snapshot(engine: SGLangEngine) -> LoadSnapshot:
    if engine.faults.has("loads", "frozen"):
        return LoadSnapshot(timestamp=engine.started_at)
    return engine.scheduler.publisher.latest


def _prometheus(entries: list[dict[str, Any]]) -> str:
    lines = []
    for name, value in (entries[0] if entries else {}).items():
        if isinstance(value, int | float) and name != "dp_rank":
            lines += [f"# TYPE sglang_{name} gauge", f'sglang_{name}{{dp_rank="0"}} {value}']
    return "\n".join(lines) + "\n"


async def metrics(engine: SGLangEngine, request: Request) -> Response:
    """Prometheus metrics. The scheduler's gauges are those that it published last."""
    return PlainTextResponse(exposition(engine), media_type="text/plain; version=0.0.4")
