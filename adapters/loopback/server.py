"""Runs the HTTP server: it listens, announces its URL, and on SIGTERM gives its requests time to finish."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp

from .build import build
from .connection import DroppableProtocol
from .engine import Engine
from .options import EngineOptions
from .pipeline import Pipeline

_GRACE_S = 1
#: Source: sglang 0.5.23, environ.py: SGLANG_TIMEOUT_KEEP_ALIVE is 5 unless it is set.
_KEEP_ALIVE_S = 5


class _Server(uvicorn.Server):
    """uvicorn, with an announcement once it accepts connections, and without its own signal handlers."""

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


def serve(options: EngineOptions, pipelines: Sequence[Pipeline]) -> None:
    """Serves until SIGTERM; then no process of the engine is left."""
    listener = _listen(options)
    engine, app = build(options, pipelines)
    try:
        asyncio.run(_serve(engine, app, listener))
    finally:
        engine.stop()


def _listen(options: EngineOptions) -> socket.socket:
    # With protocol 0, asyncio leaves out TCP_NODELAY, and the body of an answer waits some 40 ms on a kept connection.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except OSError as error:
        raise OSError(f"cannot listen on {options.host}:{options.port}: {error.strerror or error}") from error
    return listener


async def _serve(engine: Engine, app: ASGIApp, listener: socket.socket) -> None:
    host, port = listener.getsockname()
    server = _Server(_config(app), engine, f"http://{host}:{port}")
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, engine.exit_requested.set)
    engine.start()
    shutdown = asyncio.create_task(_shut_down(engine, server))
    await server.serve(sockets=[listener])
    shutdown.cancel()


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=DroppableProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )


async def _shut_down(engine: Engine, server: uvicorn.Server) -> None:
    """Waits for a signal, then stops the server once the dialect lets it."""
    await engine.exit_requested.wait()
    engine.exiting = True
    await engine.drained()
    server.should_exit = True
