"""Inside `with RealRouter(kind, urls) as router:` a real router sends to these workers; afterwards it is gone."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from build_env import CACHE
from router_env import build

LOGS = CACHE / "logs"

#: Additions are tried again sooner than with their default of 30 s, so that a run is short.
ALWAYS = ("--host", "127.0.0.1", "--prometheus-host", "127.0.0.1", "--worker-startup-check-interval", "1")

#: The machine may have a proxy; the router is on this side of it.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class RealRouter:
    """One router. `stop()` kills it: its own way to end takes smg 5 s."""

    kind: str
    workers: Sequence[str] = ()
    extra: Sequence[str] = ("--policy", "round_robin")
    key: str | None = None
    port: int = field(default_factory=lambda: free_port())
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """It lists its workers as healthy."""
        LOGS.mkdir(parents=True, exist_ok=True)
        options = ["--port", str(self.port), "--prometheus-port", str(free_port()), *self.extra]
        if self.workers:
            options += ["--worker-urls", *self.workers]
        if self.key is not None:
            options += ["--api-key", self.key]
        with (LOGS / f"{self.kind}-{self.port}.log").open("ab") as log:
            command = [*build(self.kind).launch(), *ALWAYS, *options]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self.until_listed(len([each for each in options if each.startswith("http://")]))
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """It is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def url(self, **options: str) -> str:
        """Its URL for a fleet."""
        given = options | ({} if self.key is None else {"api_key": self.key})
        query = "&".join(f"{name}={value}" for name, value in given.items())
        return f"{self.kind}://127.0.0.1:{self.port}{'?' if query else ''}{query}"

    def ask(self, method: str, path: str, body: Any = None, timeout_s: float = 60.0) -> tuple[int, Any]:
        """The status of an answer, and its body where it is JSON."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method)
        request.add_header("Content-Type", "application/json")
        if self.key is not None:
            request.add_header("Authorization", f"Bearer {self.key}")
        data = None if body is None else json.dumps(body).encode()
        try:
            with _direct.open(request, data, timeout=timeout_s) as answer:
                status, raw = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, raw = error.code, error.read()
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw.decode()

    def listed(self) -> list[dict[str, Any]]:
        """The workers that it lists, without those that it removes."""
        _, body = self.ask("GET", "/workers")
        return [each for each in body["workers"] if each.get("status") != "draining"]

    def until_listed(self, count: int, deadline_s: float = 30.0) -> list[dict[str, Any]]:
        """So many workers are listed, and healthy."""
        end, found = time.monotonic() + deadline_s, None
        while time.monotonic() < end:
            try:
                found = self.listed()
                if len(found) == count and all(each["is_healthy"] for each in found):
                    return found
            except (OSError, TypeError):  # it does not listen yet, or refuses still
                pass
            time.sleep(0.05)
        raise AssertionError(f"the router {self.kind} lists {found}, not {count} workers")


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
