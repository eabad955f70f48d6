"""What exceptions of an actor's method mean, and what its silence means."""

from __future__ import annotations

import asyncio
import http.client
import subprocess
import time
import urllib.error
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import requests
import urllib3
from idle_process import idle_process
from lifecycle.adapters.loopback import LoopbackProcess
from lifecycle.adapters.ray import SLIME, RayActors
from lifecycle.adapters.ray.failures import Refused, Unanswered, understood
from ray_actors import SlimeEngine, until
from test_ray_failures import PLAIN, Rank

from lifecycle import ConfigurationError, Fact
from lifecycle.core.deadline import Deadline

pytestmark = pytest.mark.slow


def of_httpx(name: str, *bases: str) -> Exception:
    """An exception as httpx has it: its name, and those of what it is a kind of."""
    kind: type[Exception] = Exception
    for each in (*reversed(bases), name):
        kind = type(each, (kind,), {"__module__": "httpx"})
    return kind("said")


ANSWERED = [
    RuntimeError("out of patience"),
    AssertionError("no such tag"),
    requests.exceptions.HTTPError("500"),
    urllib.error.HTTPError("http://h", 500, "no", None, None),  # type: ignore[arg-type]
    of_httpx("HTTPStatusError", "HTTPError"),
    aiohttp.ClientResponseError(SimpleNamespace(real_url="http://h"), (), status=500),  # type: ignore[arg-type]
]
SILENT = [
    TimeoutError("Timeout while flushing cache."),
    ConnectionResetError("reset"),
    requests.exceptions.ReadTimeout("read timed out"),
    requests.exceptions.ConnectionError("broken"),
    of_httpx("ReadTimeout", "TimeoutException", "TransportError", "RequestError", "HTTPError"),
    aiohttp.ServerDisconnectedError("gone"),
    urllib3.exceptions.ProtocolError("broken"),
    http.client.IncompleteRead(b""),
]


@pytest.mark.parametrize("cause", [*ANSWERED, *SILENT], ids=lambda cause: type(cause).__name__)
def test_what_a_method_raised(ray: Any, cause: Exception) -> None:
    cause.add_note("response.text='no saver'")
    error = ray.exceptions.RayTaskError("release", "Traceback", cause)
    error.cause = cause  # whatever can be pickled here, as it arrives
    said = understood(error, ray)
    assert type(said) is (Refused if cause in ANSWERED else Unanswered)
    assert str(said).startswith(f"{type(cause).__name__}: ")
    assert str(said).endswith("response.text='no saver'")


@pytest.mark.parametrize("name", ["ObjectLostError", "OwnerDiedError", "TaskCancelledError", "ActorUnavailableError"])
def test_what_ray_raised_leaves_open_what_was_done(ray: Any, name: str) -> None:
    kind = getattr(ray.exceptions, name)
    error = kind.__new__(kind)
    Exception.__init__(error, "said")
    kept = type(name, (kind,), {"__str__": lambda self: "said"})
    error.__class__ = kept
    assert isinstance(understood(error, ray), Unanswered)


def test_an_exception_that_could_not_be_sent_leaves_it_open(ray: Any) -> None:
    error = ray.exceptions.RayTaskError("release", "Traceback", ray.exceptions.RayError("it isn't serializable"))
    assert isinstance(understood(error, ray), Unanswered)


async def test_an_actor_that_does_not_say_where_its_server_is(
    ray: Any, actor_of: Callable[..., Any], tmp_path: Path
) -> None:
    methods = replace(PLAIN, url=("release",), server="sglang")
    raises = RayActors(actor_of(Rank, answer=RuntimeError("not started yet")), methods)
    with pytest.raises(ConfigurationError, match=r"its server listens: release\(\): RuntimeError: not started yet"):
        await raises.connect(deadline_s=10)
    hangs = actor_of(SlimeEngine, str(tmp_path), starts=False)
    await hangs.set_fault.remote("get_url", "hangs")
    begun = time.monotonic()
    with pytest.raises(ConfigurationError, match=r"get_url\(\): its actor did not answer in time"):
        await RayActors(hangs, SLIME).connect(deadline_s=1.0)
    assert time.monotonic() - begun < 2.0
    (tmp_path / "go").touch()


@pytest.fixture
def another() -> Any:
    """A process that outlives the server and the actor for a while."""
    process = idle_process()
    yield process
    process.kill()
    process.wait()


async def test_what_ends_after_its_actor_is_waited_for(
    ray: Any, actor_of: Callable[..., Any], tmp_path: Path, another: subprocess.Popen[bytes]
) -> None:
    """One look at it would find neither a server that answers nor that all has ended."""
    with LoopbackProcess.start(weights_mib=16, kv_mib=16) as server:
        actor = actor_of(SlimeEngine, str(tmp_path), starts=False)
        adapter = RayActors(actor, SLIME, url=server.url, processes=[server.pid, another.pid])
        await adapter.connect(deadline_s=20)
        server.kill()
        seen = await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)
        assert seen.alive is None, "one of its processes runs, and its actor may do something about it"
        ray.kill(actor)
        await until(lambda: adapter.handles.is_dead(Deadline(5)))
        asyncio.get_running_loop().call_later(0.5, another.kill)
        asyncio.get_running_loop().call_later(0.6, another.wait)
        seen = await adapter.observe(frozenset({Fact.BOOT}), deadline_s=5)
        assert seen.alive is False
        assert "ended" in seen.detail
        await adapter.aclose()
