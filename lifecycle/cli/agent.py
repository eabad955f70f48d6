"""`lifecycle agent`: answers, on its node, what only that node can see."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import ConfigurationError
from ..core.policy import positive


def agent(
    file: Annotated[Path | None, typer.Argument(metavar="[fleet.toml]", help="Settings of a fleet.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (agent_host).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0: a free one (agent_port).")] = None,
    threshold_gib: Annotated[float | None, typer.Option(help="GiB that an engine may keep after a release.")] = None,
) -> int:
    """Serves this node's memory figures to callers with the token (LIFECYCLE_AGENT_TOKEN). Changes nothing here."""
    from ..settings.schema import load

    settings = load(file).settings
    if settings.agent_token is None or not settings.agent_token.get_secret_value():
        raise ConfigurationError("an agent needs a token: set LIFECYCLE_AGENT_TOKEN, the same here and for its callers")
    threshold = settings.residual_threshold_gib if threshold_gib is None else positive("--threshold-gib", threshold_gib)
    listening = _listen(host or settings.agent_host, settings.agent_port if port is None else port)
    address = "{}:{}".format(*listening.getsockname()[:2])
    print(json.dumps({"agent": address, "pid": os.getpid(), "threshold_gib": threshold}), flush=True)
    _serve(listening, settings.agent_token.get_secret_value(), threshold)
    return 0


def register(app: typer.Typer) -> None:
    """`lifecycle agent` is a command of `app`."""
    app.command()(agent)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), reuse_port=False)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}"
        ) from None


def _serve(listening: socket.socket, token: str, threshold_gib: float) -> None:
    from importlib.metadata import version

    import uvicorn

    from ..nodes.agent import Agent, application

    logging.basicConfig(level=logging.WARNING)
    app = application(Agent(threshold_gib=threshold_gib, version=version("engine-lifecycle")), token)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    server.run(sockets=[listening])
