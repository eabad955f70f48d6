"""Runs the HTTP server: it listens, announces its URL, and on SIGTERM gives its requests time to finish."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
import time
from collections.abc import Iterator

import uvicorn

from .app import build_app
from .connection import DroppableProtocol
from .engine import Engine, ServerStatus
from .options import EngineOptions
from .pipeline import Pipeline

_DRAIN_POLL_S = 0.05
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


def serve(options: EngineOptions, pipeline: Pipeline) -> None:
    """Serves until SIGTERM; then no process of the engine is left."""
    listener = _listen(options)
    engine = Engine(options, pipeline)
    try:
        asyncio.run(_serve(engine, listener))
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


async def _serve(engine: Engine, listener: socket.socket) -> None:
    host, port = listener.getsockname()
    server = _Server(_config(engine), engine, f"http://{host}:{port}")
    exit_requested = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, exit_requested.set)
    engine.start()
    shutdown = asyncio.create_task(_shut_down(engine, server, exit_requested))
    await server.serve(sockets=[listener])
    shutdown.cancel()


def _config(engine: Engine) -> uvicorn.Config:
    return uvicorn.Config(
        build_app(engine),
        http=DroppableProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )


async def _shut_down(engine: Engine, server: uvicorn.Server, exit_requested: asyncio.Event) -> None:
    """Waits for a signal, then stops the server when no request is left, or after the shutdown timeout.

    Source: sglang 0.5.23, measured: after SIGTERM a paused server with held or retracted requests never exits; an
    UnHealthy server exits at once. Here only the second is so: while paused, requests do not end.
    """
    await exit_requested.wait()
    engine.exiting = True
    end = time.monotonic() + engine.options.shutdown_timeout_s
    while engine.gate.rid_to_state and engine.status is ServerStatus.UP and time.monotonic() < end:
        print(f"Gracefully exiting... Remaining number of requests {len(engine.gate.rid_to_state)}", file=sys.stderr)
        await asyncio.sleep(_DRAIN_POLL_S)
    server.should_exit = True
