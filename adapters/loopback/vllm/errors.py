"""vLLM's error answers: `{"error": {"message", "type", "param", "code"}}`.

Source: vllm 0.32.0, entrypoints/serve/exception_handling; observed.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse, Response


class ApiError(Exception):
    """An error that is answered in vLLM's shape."""

    def __init__(self, message: str, status: int, kind: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind or HTTPStatus(status).phrase
        self.param = param

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}}

    def response(self) -> Response:
        """The answer."""
        return JSONResponse(self.body(), status_code=self.status)


class EngineDead(ApiError):
    """The engine core has ended."""

    def __init__(self) -> None:
        message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
        super().__init__(message, 500, "InternalServerError")


class CallFailed(ApiError):
    """A call to the engine core raised an exception, which the engine survives."""

    def __init__(self, call: str, error: BaseException) -> None:
        super().__init__(f"Call to {call} method failed: {error}", 500, "InternalServerError")


class CoresDiffer(ApiError):
    """Engine cores gave different answers. Source: vllm 0.32.0, v1/engine/core_client.py."""

    def __init__(self, method: str, results: list[Any]) -> None:
        message = f"Engines returned different {method} results: {results}"
        super().__init__(message, 500, "InternalServerError")


class QueueOverflow(ApiError):
    """The engine has as many requests as it may have. Source: vllm 0.32.0, exceptions.py."""

    def __init__(self) -> None:
        message = "The engine is currently busy and cannot accept new requests. "
        super().__init__(message + "Please try again later or on a different instance.", 503)


class Paused(ApiError):
    """A new request met a pause by abort or wait (`engine_paused`). Source: vllm 0.33.0, v1/engine/core.py."""

    def __init__(self) -> None:
        message = "Generation is paused. Please retry after it resumes."
        super().__init__(message, 503, "ServiceUnavailableError")


class ShuttingDown(ApiError):
    """A new request came after SIGTERM. Observed with --shutdown-timeout."""

    def __init__(self) -> None:
        super().__init__("cannot schedule new futures after shutdown", 500, "InternalServerError")
