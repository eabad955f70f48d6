"""The server's life: listening, announced, and on SIGTERM drained before it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from .app import build_app
from .connection import DroppableProtocol
from .engine import Engine, ServerStatus
from .options import EngineOptions
from .pipeline import Pipeline

_DRAIN_POLL_S = 0.05
_GRACE_S = 1


class _Server(uvicorn.Server):
    """uvicorn, announced once it really accepts, and with its signals left to the engine."""

    def __init__(self, config: uvicorn.Config, engine: Engine, url: str) -> None:
        super().__init__(config)
        self._engine = engine
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(json.dumps(self._engine.announcement(self._url)), flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(options: EngineOptions, pipeline: Pipeline) -> None:
    """The engine has served until SIGTERM, and left nothing behind."""
    listener = _listen(options)
    engine = Engine(options, pipeline)
    try:
        asyncio.run(_serve(engine, listener))
    finally:
        engine.stop()


def _listen(options: EngineOptions) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except OSError as error:
        raise OSError(f"cannot listen on {options.host}:{options.port}: {error.strerror or error}") from error
    return listener


async def _serve(engine: Engine, listener: socket.socket) -> None:
    host, port = listener.getsockname()
    server = _Server(_config(engine), engine, f"http://{host}:{port}")
    exit_asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, exit_asked.set)
    engine.start()
    leaving = asyncio.create_task(_leave(engine, server, exit_asked))
    await server.serve(sockets=[listener])
    leaving.cancel()


def _config(engine: Engine) -> uvicorn.Config:
    return uvicorn.Config(
        build_app(engine),
        http=DroppableProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
    )


async def _leave(engine: Engine, server: uvicorn.Server, exit_asked: asyncio.Event) -> None:
    """Once asked to, the server exits when no request is left; behind a closed gate that is never.

    Source: sglang 0.5.23, measured: SIGTERM while paused with held or retracted requests drains for ever; an UnHealthy
    server exits at once.
    """
    await exit_asked.wait()
    engine.leaving = True
    while engine.gate.rid_to_state and engine.status is ServerStatus.UP:
        print(f"Gracefully exiting... Remaining number of requests {len(engine.gate.rid_to_state)}", file=sys.stderr)
        await asyncio.sleep(_DRAIN_POLL_S)
    server.should_exit = True
