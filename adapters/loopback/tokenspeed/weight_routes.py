"""Weights: loaded from a store by version, and their label. Source: runtime/entrypoints/sglang_compat_http.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .engine import TokenspeedEngine
from .replies import Body, guarded, json_body, said

_NO_GROUP = "weight update group not initialized"
_SUPPORTED = "distributed, mooncake"


async def from_mooncake(engine: TokenspeedEngine, request: Request) -> Response:
    """Loads the checkpoint VERSION.safetensors of the store, once no request is past the gate, and labels it."""

    async def act() -> dict[str, Any]:
        body = await json_body(request)
        version = body.get("version")
        if version is None:
            raise ValueError("Missing 'version' in request body")
        if type(version) is not int:
            raise ValueError("'version' must be an integer")
        flush, label = bool(body.get("flush_cache", True)), _label(body)
        label = label if label is not None or not flush else str(version)
        fault = engine.faults.of("update")
        path = Path(engine.options.weight_store or "/no/weight/store") / f"{version}.safetensors"
        async with engine.requests.updating():
            how = {"flush": flush, "label": fault is not None and fault.kind == "label"}
            refused = await engine.requests.call("mooncake", lambda: engine.scheduler.load(str(path), **how))
        if refused or label is None or (fault is not None and fault.kind == "unnamed"):
            return said(refused)
        engine.weight_version = label
        return {"success": True, "message": f" Weight version updated to {label}."}

    return await guarded(act)


async def from_distributed(engine: TokenspeedEngine, request: Request) -> Response:
    """Refuses: no trainer's group was ever joined."""

    async def act() -> dict[str, Any]:
        body = await json_body(request)
        names, dtypes, shapes = list(body["names"]), list(body["dtypes"]), [list(each) for each in body["shapes"]]
        if not len(names) == len(dtypes) == len(shapes):
            raise ValueError("names, dtypes, shapes must have equal length")
        return said(_NO_GROUP)

    return await guarded(act)


async def init_group(engine: TokenspeedEngine, request: Request) -> Response:
    """Refuses: there is no process group that it could join."""

    async def act() -> dict[str, Any]:
        body = await json_body(request)
        for name in ("master_address", "master_port", "rank_offset", "world_size"):
            body[name]
        return said("the loopback engine joins no process group")

    return await guarded(act)


async def destroy_group(engine: TokenspeedEngine, request: Request) -> Response:
    """Succeeds, since there is none."""

    async def act() -> dict[str, Any]:
        await json_body(request, required=False)
        return {"success": True, "message": _NO_GROUP}

    return await guarded(act)


async def from_disk(engine: TokenspeedEngine, request: Request) -> Response:
    """Is not there."""
    return _unsupported("disk")


async def from_tensor(engine: TokenspeedEngine, request: Request) -> Response:
    """Is not there."""
    return _unsupported("tensor")


async def rebalance(engine: TokenspeedEngine, request: Request) -> Response:
    """Starts to move experts, where it was started with that."""

    async def act() -> dict[str, Any]:
        return said(await engine.requests.call("rebalance", engine.scheduler.rebalance))

    return await guarded(act)


async def version(engine: TokenspeedEngine, request: Request) -> Response:
    """The label of the weights."""
    return JSONResponse({"weight_version": engine.weight_version})


async def set_version(engine: TokenspeedEngine, request: Request) -> Response:
    """Labels the weights, whatever they are."""

    async def act() -> dict[str, Any]:
        label = (await json_body(request)).get("new_version")
        if label is None:
            raise ValueError("Missing 'new_version' in request body")
        engine.weight_version = str(label)
        return {"success": True, "message": f"Weight version updated to {label}", "new_version": str(label)}

    return await guarded(act)


async def model_info(engine: TokenspeedEngine, request: Request) -> Response:
    """The model and the label of its weights."""
    return JSONResponse({"model_path": engine.model_path, "weight_version": engine.weight_version})


def _label(body: Body) -> str | None:
    label = body.get("weight_version")
    return None if label is None else str(label)


def _unsupported(source: str) -> Response:
    why = f"update_weights_from_{source} is not implemented by this build's scheduler; supported sources: {_SUPPORTED}"
    return JSONResponse({"success": False, "message": why}, status_code=501)
