"""Query parameters and bodies, validated as FastAPI validates vLLM's; what is invalid is answered with 400.

JSON bodies of calls that take query parameters are ignored. Of a parameter that is repeated, the last one counts.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from .errors import ApiError

PauseMode = Literal["abort", "wait", "keep"]
Model = TypeVar("Model", bound=BaseModel)


class PauseQuery(BaseModel):
    mode: PauseMode = "abort"
    clear_cache: bool = True
    wait_for_inflight_requests: bool = False


class SleepQuery(BaseModel):
    level: Annotated[int, Field(ge=0, le=2)] = 1
    mode: PauseMode = "abort"


class ResetQuery(BaseModel):
    reset_running_requests: bool = False
    reset_external: bool = False


class WorldSizeQuery(BaseModel):
    include_dp: bool = True


class ServerInfoQuery(BaseModel):
    config_format: Literal["text", "json"] = "text"


class InitBody(BaseModel):
    init_info: dict[str, Any]


class UpdateBody(BaseModel):
    update_info: dict[str, Any] | list[dict[str, Any]]


class FinishBody(BaseModel):
    weight_version: str | None = None


class VersionBody(BaseModel):
    new_version: str


class CheckerBody(BaseModel):
    action: Literal["checksum", "reset", "compare"]
    baseline: dict[str, str] | None = None


class _Generation(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    temperature: float | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False


class CompletionBody(_Generation):
    prompt: list[int] | list[list[int]] | str | list[str]
    max_tokens: int | None = 16
    return_token_ids: bool | None = None


class ChatBody(_Generation):
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


def query(request: Request, model: type[Model]) -> Model:
    """The query parameters. Raises ApiError (400), which names the first that is invalid."""
    return _validated(model, dict(request.query_params), "query")


async def body(request: Request, model: type[Model], *, required: bool = True) -> Model:
    """The JSON body. Raises ApiError (400) where it is invalid, or missing and `required`."""
    raw = await request.body()
    if not raw and not required:
        return _validated(model, {}, "body")
    try:
        value = json.loads(raw or "{}")
    except (ValueError, RecursionError) as error:
        wrong = {"type": "json_invalid", "loc": "body", "msg": "JSON decode error", "ctx": {"error": str(error)}}
        raise _invalid([wrong], "body") from error
    return _validated(model, value if isinstance(value, dict) else {}, "body")


async def json_object(request: Request) -> dict[str, Any]:
    """The JSON object in the body of a call that vLLM parses by hand. Raises ApiError (400)."""
    try:
        value = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ApiError("Invalid JSON format", 400) from error
    if not isinstance(value, dict):
        raise ApiError("Request body must be a JSON object", 400)
    return value


def json_only(request: Request) -> None:
    """Raises ApiError (400) where the content type is not JSON. Source: vllm 0.32.0, serve/utils/api_utils.py."""
    if request.headers.get("content-type", "").lower().split(";", 1)[0] != "application/json":
        message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
        raise ApiError(message, 400)


def _validated(model: type[Model], values: dict[str, Any], where: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)
        wrong = [{**each, "loc": ".".join(map(str, (where, *each["loc"])))} for each in found]
        # The branches of a union stand in `loc` behind the field; `param` names the field only.
        raise _invalid(wrong, ".".join(map(str, (where, *found[0]["loc"][:1])))) from error


def _invalid(errors: list[dict[str, Any]], param: str) -> ApiError:
    lines = "".join(f"  {each}\n" for each in errors)
    return ApiError(f"{len(errors)} validation error{'s' * (len(errors) > 1)}:\n{lines}".rstrip(), 400, param=param)
