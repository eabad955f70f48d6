"""The endpoints for weights: updates, the version label, and checksums of the present tensors."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from . import torch_push
from .bodies import BadBody, Body, flag, read_body, text_field
from .engine import SGLangEngine
from .weight_updater import Updated

_PARALLEL = {"role": "target", "tp_rank": 0, "tp_size": 1, "dp_rank": 0, "dp_size": 1}
_SELECTORS = ("target", "draft", "all")
_CHECKER_ACTIONS = ("checksum", "snapshot", "compare", "reset_tensors")


async def from_disk(engine: SGLangEngine, request: Request) -> Response:
    """Loads a checkpoint. Where it is invalid the weights are unchanged, and 400 says why."""
    body = await read_body(request)
    path, flush = text_field(body, "model_path", required=True) or "", flag(body, "flush_cache", True)
    label = _label(engine, body)
    if flag(body, "abort_all_requests", False):
        engine.gate.abort("", everything=True)
    load_format = text_field(body, "load_format")
    updated = await _update(engine, lambda: _from_disk(engine, path, load_format, flush=flush, label=label))
    if updated.success:
        engine.model_path, engine.load_format = path, load_format or engine.load_format
    return _reply(_labelled(engine, updated, label), num_paused_requests=0)


async def from_tensor(engine: SGLangEngine, request: Request) -> Response:
    """Loads pushed tensors: with `load_format` safetensors such files, without one SGLang's pickled torch handles.

    The first is loopback's alone, and the second needs torch.
    """
    body = await read_body(request)
    read, flush, label = _blobs(body), flag(body, "flush_cache", True), _label(engine, body)
    weights = engine.scheduler.weights
    updated = await _update(engine, lambda: weights.from_tensor(read, flush=flush, label=label))
    return _reply(_labelled(engine, updated, label))


async def begin(engine: SGLangEngine, request: Request) -> Response:
    """Opens an update session. There is no draft model, so every selector selects the same."""
    _selector(await read_body(request))
    return _reply(await _update(engine, engine.scheduler.weights.begin))


async def end(engine: SGLangEngine, request: Request) -> Response:
    """Closes the update session."""
    await read_body(request)
    return _reply(await _update(engine, engine.scheduler.weights.end))


async def version(engine: SGLangEngine, request: Request) -> Response:
    """Sets the version label. The weights do not change, and every label is accepted.

    Source: sglang 0.5.23, measured: a bogus version answers 200.
    """
    body = await read_body(request)
    label = text_field(body, "new_version", required=True) or ""
    if flag(body, "abort_all_requests", True):
        engine.gate.abort("", everything=True)
    await asyncio.wrap_future(engine.scheduler.ask(lambda: engine.scheduler.relabel(label)))
    engine.weight_version = label
    message = f"Weight version updated to {label}"
    return JSONResponse({"success": True, "message": message, "new_version": label})


async def check(engine: SGLangEngine, request: Request) -> Response:
    """Checksums of every tensor, by rank. There is no draft model, so `selector: draft` selects nothing.

    Source: sglang 0.5.23, measured: without a draft model `selector: draft` selects nothing and succeeds.
    """
    body = await read_body(request, required=False)
    action, selector = body.get("action", "checksum"), _selector(body)
    if selector == "draft":
        return _reply(Updated(True, "Success."))
    if action not in _CHECKER_ACTIONS or (action == "checksum" and not engine.traits.checksums):
        return _reply(Updated(False, f"Unsupported action={action!r}"))
    if action == "compare":
        return _reply(Updated(False, ""))  # needs CUDA
    if action == "reset_tensors":
        await asyncio.wrap_future(engine.scheduler.reset_tensors())
    if action != "checksum":
        return _reply(Updated(True, "Success."))
    return _checksums(await asyncio.wrap_future(engine.scheduler.checksums()))


async def _update(engine: SGLangEngine, act: Callable[[], Updated]) -> Updated:
    async with engine.gate.updating():
        return await asyncio.wrap_future(engine.scheduler.ask(act))


def _from_disk(engine: SGLangEngine, path: str, load_format: str | None, *, flush: bool, label: str | None) -> Updated:
    if engine.faults.has("update", "label"):
        engine.scheduler.relabel(label)
        return Updated(True, "Succeeded to update model weights.")
    return engine.scheduler.weights.from_disk(path, load_format, flush=flush, label=label)


def _selector(body: Body) -> str:
    """The models that a call is about."""
    selector = body.get("selector", "all")
    if selector not in _SELECTORS:
        raise BadBody(f"selector {selector!r}: one of {', '.join(_SELECTORS)}")
    return str(selector)


def _label(engine: SGLangEngine, body: Body) -> str | None:
    """The version that the weights are said to be; None where the body has none, or under the fault `unnamed`."""
    label = text_field(body, "weight_version")
    return None if engine.faults.has("update", "unnamed") else label or None


def _labelled(engine: SGLangEngine, updated: Updated, label: str | None) -> Updated:
    """The front end's label follows an update that succeeded as a whole."""
    if label is None or not updated.success:
        return updated
    engine.weight_version = label
    return Updated(True, f"{updated.message} Weight version updated to {label}.")


def _blobs(body: Body) -> Callable[[], list[bytes]]:
    """What reads the pushed tensors as safetensors blobs."""
    load_format = text_field(body, "load_format")
    if load_format not in (None, "safetensors"):
        raise BadBody("update_weights_from_tensor takes load_format 'safetensors', or none where torch is")
    if load_format is None and not torch_push.is_possible():
        raise BadBody("update_weights_from_tensor without load_format needs torch here; or push 'safetensors'")
    try:
        blobs = [base64.b64decode(blob, validate=True) for blob in body.get("serialized_named_tensors") or ()]
    except (TypeError, ValueError) as error:
        raise BadBody("serialized_named_tensors should be a list of base64 strings") from error
    return (lambda: [torch_push.as_blob(blobs)]) if load_format is None else (lambda: blobs)


def _reply(updated: Updated, **more: Any) -> Response:
    body = {"success": updated.success, "message": updated.message, **more}
    return JSONResponse(body, status_code=200 if updated.success else 400)


def _checksums(ranks: list[dict[str, str]]) -> Response:
    entries = [
        {
            "checksums": checksums,
            "per_gpu_checksum": _overall([f"{name}{checksums[name]}" for name in sorted(checksums)]),
            "parallelism_info": [
                _PARALLEL | {"pp_rank": rank, "pp_size": len(ranks), "rank": rank, "size": len(ranks)}
            ],
        }
        for rank, checksums in enumerate(ranks)
    ]
    engine = _overall([str(entry["per_gpu_checksum"]) for entry in entries])
    return JSONResponse({"success": True, "message": "Success.", "ranks": entries, "per_engine_checksum": engine})


def _overall(parts: list[str]) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()
