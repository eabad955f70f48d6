"""What the tests on a real SGLang share: its servers, what they are asked, and requests in flight."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from make_model import checkpoint
from measure import expected_weights, tree
from one_server import OneServer
from questions import greedy
from server import RealSGLang

from lifecycle import FromDisk, Policy

ENGINE = "sglang 0.5.23"
PROMPTS = ("hello", "zebra", "once upon a time", "def main():")

#: Its processes hold some 1.56 GiB beside weights (274 MiB) and KV (288 MiB).
POLICY = Policy(residual_threshold_gib=1.8)


class Lane(OneServer[RealSGLang]):
    """The servers of one run.

    The one with keys has the second checkpoint, which the others are later given: what it answers is what they must
    answer then.
    """

    KINDS: ClassVar[dict[str, dict[str, Any]]] = {
        "keyed": {"seed": 1, "extra": ["--api-key", "user", "--admin-api-key", "adm", "--enable-metrics"]},
        "plain": {"seed": 0},
        "backup": {"seed": 0, "weights_cpu_backup": True},
        "counting": {"seed": 0, "extra": ["--enable-metrics"]},
    }
    STARTS_ALLOWED = 5

    def new(self, kind: str) -> RealSGLang:
        """A server of this kind, not started yet."""
        return RealSGLang(**self.KINDS[kind])

    def first_outputs(self, server: RealSGLang, kind: str) -> list[list[int]]:
        """The greedy tokens after each of the prompts."""
        return outputs(server, key="user" if kind == "keyed" else None)


def source(seed: int) -> FromDisk:
    """The weights of this checkpoint, under a label of its own."""
    return FromDisk(str(checkpoint(seed)), f"seed-{seed}")


def address(server: RealSGLang, **options: object) -> str:
    """The engine's URL for a fleet. It says how large the weights are: the server's figure is of a busy machine."""
    size = expected_weights(checkpoint(0))
    query = "&".join(f"{name}={value}" for name, value in {"name": "e", "sizes": f"weights:{size}", **options}.items())
    return f"sglang://127.0.0.1:{server.port}?{query}"


def ask(server: RealSGLang, path: str, body: Any = None, *, key: str | None = None, timeout_s: float = 60.0) -> Any:
    """The JSON answer to a GET, or where there is a body to a POST; raises HTTPError on a status of refusal."""
    request = urllib.request.Request(server.url + path, None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        raw = answer.read()
    return json.loads(raw) if raw.startswith((b"{", b"[", b"null")) else raw.decode()


def output(server: RealSGLang, prompt: str, tokens: int = 16, *, key: str | None = None) -> list[int]:
    """The greedy tokens after this prompt."""
    ids: list[int] = ask(server, "/generate", greedy(prompt, tokens), key=key)["output_ids"]
    return ids


def outputs(server: RealSGLang, *, key: str | None = None) -> list[list[int]]:
    """The greedy tokens after each of the prompts."""
    return [output(server, prompt, key=key) for prompt in PROMPTS]


def running(server: RealSGLang) -> int:
    """Requests that run, as the scheduler published last."""
    return int(ask(server, "/v1/loads?include=core")["loads"][0]["num_running_reqs"])


def until_running(server: RealSGLang, count: int, deadline_s: float = 30.0) -> None:
    """So many requests run; AssertionError where they do not in time."""
    end = time.monotonic() + deadline_s
    while running(server) != count:
        assert time.monotonic() < end, f"{running(server)} requests run, not {count}"
        time.sleep(0.05)


def kill_tree(server: RealSGLang) -> None:
    """Every process of the server was sent SIGKILL, and none is left."""
    pids = list(tree(server.pid))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < end, "a killed process is still there"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@dataclass(slots=True)
class Streams:
    """Requests in flight, each read by a thread of its own to its end."""

    server: RealSGLang
    tokens: int = 400
    _threads: list[Any] = field(default_factory=list)
    ends: dict[str, tuple[list[int], dict[str, Any] | None]] = field(default_factory=dict)

    def start(self) -> Streams:
        """All prompts run."""
        import threading

        for prompt in PROMPTS:
            thread = threading.Thread(target=self._read, args=(prompt,), daemon=True)
            thread.start()
            self._threads.append(thread)
        until_running(self.server, len(PROMPTS))
        return self

    def _read(self, prompt: str) -> None:
        last = deque(self._events(prompt), maxlen=1).pop()
        self.ends[prompt] = (last["output_ids"], last["meta_info"]["finish_reason"])

    def _events(self, prompt: str) -> Iterator[dict[str, Any]]:
        body = json.dumps(greedy(prompt, self.tokens, stream=True)).encode()
        request = urllib.request.Request(self.server.url + "/generate", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])

    @property
    def in_flight(self) -> int:
        """Those that have not ended."""
        return sum(thread.is_alive() for thread in self._threads)

    def join(self, deadline_s: float = 90.0) -> dict[str, tuple[list[int], dict[str, Any] | None]]:
        """What each ended with."""
        end = time.monotonic() + deadline_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        assert not self.in_flight, f"{self.in_flight} streams have not ended"
        return self.ends
