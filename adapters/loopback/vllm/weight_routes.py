"""Reload by RPC, weight transfer, the version label and checksums.

Source: vllm 0.32.0, entrypoints/rl/online/api_router.py and serve/dev/rpc/api_router.py; observed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .core import EngineCore
from .engine import VllmEngine
from .errors import ApiError
from .parameters import CheckerBody, FinishBody, InitBody, UpdateBody, VersionBody, body, json_object


async def collective_rpc(engine: VllmEngine, request: Request) -> Response:
    """Calls a method on every worker."""
    wanted = await json_object(request)
    method, kwargs = wanted.get("method"), wanted.get("kwargs") or {}
    if method is None:
        raise ApiError("Missing 'method' in request body", 400)
    results = await engine.all_cores("collective_rpc", lambda core: core.weights.rpc(str(method), kwargs))
    shown = [each if each is None or isinstance(each, dict | list) else str(each) for each in results[0]]
    return JSONResponse({"results": shown})


async def init_transfer(engine: VllmEngine, request: Request) -> Response:
    """Accepts the trainer's connection."""
    await body(request, InitBody)
    return await _transfer(engine, lambda core: core.weights.init(), "Weight transfer initialized")


async def shut_transfer_down(engine: VllmEngine, request: Request) -> Response:
    """Lets the trainer go."""
    return await _transfer(engine, lambda core: core.weights.shutdown(), "Weight transfer shut down")


async def start_update(engine: VllmEngine, request: Request) -> Response:
    """Opens an update."""
    if engine.traits.start_needs_body:
        await json_object(request)
    return await _transfer(engine, lambda core: core.weights.start(), "Weight update started")


async def start_draft_update(engine: VllmEngine, request: Request) -> Response:
    """Refuses, since there is no draft model."""

    def start(core: EngineCore) -> None:
        core.weights.init()
        raise RuntimeError("safetensors does not support draft model weight updates.")

    return await _transfer(engine, start, "Draft weight update started")


async def update(engine: VllmEngine, request: Request) -> Response:
    """Copies pushed tensors into the weights."""
    info = (await body(request, UpdateBody)).update_info
    return await _transfer(engine, lambda core: core.weights.update(info), "Weights updated")


async def finish_update(engine: VllmEngine, request: Request) -> Response:
    """Closes the update, and labels the weights where the body has a version."""
    version = (await body(request, FinishBody, required=False)).weight_version
    answer = await _transfer(engine, lambda core: core.weights.finish(), "Weight update finished")
    if version is not None and not engine.faults.has("update", "unnamed"):
        await _label(engine, version)
    return answer


async def label(engine: VllmEngine, request: Request) -> Response:
    """Sets the version label. The weights do not change, and every label is accepted."""
    version = (await body(request, VersionBody)).new_version
    await _label(engine, version)
    return JSONResponse({"success": True, "new_version": version})


async def info(engine: VllmEngine, request: Request) -> Response:
    """The version label of the weights."""
    version = await engine.consensus("get_weight_version", lambda core: core.weights.version)
    return JSONResponse({"weight_version": version})


async def check(engine: VllmEngine, request: Request) -> Response:
    """Checksums of every tensor, their comparison with a baseline, or zeros in place of the weights."""
    wanted = await body(request, CheckerBody)
    if wanted.action == "reset":
        await engine.all_cores("collective_rpc", lambda core: core.weights.rpc("reset_weights", {}))
        return JSONResponse({"status": "reset"})
    if wanted.action == "compare" and wanted.baseline is None:
        raise ApiError("action='compare' requires a 'baseline' object", 400)
    found = await _checksums(engine)
    if wanted.action == "checksum":
        return JSONResponse({"checksums": found})
    baseline = wanted.baseline or {}
    differ = sorted(name for name in found.keys() | baseline.keys() if found.get(name) != baseline.get(name))
    return JSONResponse({"match": not differ, "mismatches": differ})


async def _checksums(engine: VllmEngine) -> dict[str, str]:
    index = {id(core): number for number, core in enumerate(engine.cores)}
    cores = await engine.all_cores("compute_weight_checksums", lambda core: core.weights.checksums(index[id(core)]))
    return {name: each for ranks in cores for found in ranks for name, each in found.items()}


async def _transfer(engine: VllmEngine, act: Callable[[EngineCore], Any], message: str) -> Response:
    await engine.all_cores("collective_rpc", act)
    return JSONResponse({"message": message})


async def _label(engine: VllmEngine, version: str) -> None:
    def set_version(core: EngineCore) -> None:
        core.weights.version = version

    await engine.all_cores("set_weight_version", set_version)
