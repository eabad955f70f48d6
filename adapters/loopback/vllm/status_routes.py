"""What can be asked of a vLLM server without changing it. Source: vllm 0.32.0, entrypoints/serve; observed."""

from __future__ import annotations

import os
import platform

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from . import replies
from .engine import VllmEngine
from .metrics import exposition
from .parameters import ServerInfoQuery, WorldSizeQuery, query


async def health(engine: VllmEngine, request: Request) -> Response:
    """200 with an empty body, also while paused and asleep; 503 once an engine core has ended."""
    return Response(status_code=503 if engine.requests.dead else 200)


async def version(engine: VllmEngine, request: Request) -> Response:
    """The release."""
    return JSONResponse({"version": engine.traits.release})


async def load(engine: VllmEngine, request: Request) -> Response:
    """The open HTTP calls that generate; 0 where they are not tracked, which nothing tells."""
    tracked = engine.options.load_tracking and not engine.faults.has("loads", "frozen")
    return JSONResponse({"server_load": engine.requests.load if tracked else 0})


async def metrics(engine: VllmEngine, request: Request) -> Response:
    """Prometheus metrics. The scheduler's gauges are those of the last step."""
    return PlainTextResponse(exposition(engine), media_type="text/plain; version=1.0.0; charset=utf-8")


async def models(engine: VllmEngine, request: Request) -> Response:
    """Lists the one model that is served."""
    created = int(engine.started_at)
    card = {"id": engine.model_path, "object": "model", "created": created, "owned_by": "vllm"}
    card |= {"root": engine.model_path, "parent": None, "max_model_len": engine.options.context_length}
    return JSONResponse({"object": "list", "data": [card | {"permission": [replies.permission(created)]}]})


async def server_info(engine: VllmEngine, request: Request) -> Response:
    """The configuration, as text or as JSON. `instance_id` is another one at every start."""
    config = engine.config()
    as_json = query(request, ServerInfoQuery).config_format == "json"
    environment = {"VLLM_SERVER_DEV_MODE": engine.options.dev_mode, "VLLM_PORT": engine.options.port}
    return JSONResponse(
        {
            "vllm_config": config if as_json else repr(config),
            "vllm_env": environment,
            "system_env": {"os": platform.platform(), "python_version": platform.python_version(), "pid": os.getpid()},
        }
    )


async def world_size(engine: VllmEngine, request: Request) -> Response:
    """The number of workers, of all engine cores or of one."""
    cores = len(engine.cores) if query(request, WorldSizeQuery).include_dp else 1
    return JSONResponse({"world_size": engine.options.ranks * cores})


async def fault_tolerance(engine: VllmEngine, request: Request) -> Response:
    """The health of each engine core."""
    cores = engine.status_of_cores()
    return JSONResponse({"schema_version": 1, "total_engines": len(cores), "engines": cores})
