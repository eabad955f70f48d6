"""The HTTP client of the tests of vLLM's dialect, and streams that are read by threads of their own."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from lifecycle.adapters.loopback import LoopbackProcess
from loopback_client import QUICK, SMALL, Reply, until

VLLM = "vllm:0.32"


def call(
    engine: LoopbackProcess,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float = 20.0,
) -> Reply:
    """The engine's response. A body is sent as JSON, or as it is where it is bytes."""
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=timeout)
    try:
        connection.request(method, path, raw, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return Reply(response.status, response.read().decode(), dict(response.getheaders()))
    finally:
        connection.close()


def post(engine: LoopbackProcess, path: str, body: Any = None, **more: Any) -> Reply:
    return call(engine, "POST", path, body, **more)


def get(engine: LoopbackProcess, path: str, **more: Any) -> Reply:
    return call(engine, "GET", path, **more)


def ok(reply: Reply) -> Any:
    """The JSON of a 200."""
    assert reply.status == 200, reply.text
    return reply.json


def prompt(text: str, tokens: int = 16, **more: Any) -> dict[str, Any]:
    return {"prompt": text, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, **more}


def text_of(engine: LoopbackProcess, text: str, tokens: int = 16, **more: Any) -> str:
    """The whole continuation."""
    answer: str = ok(post(engine, "/v1/completions", prompt(text, tokens, **more)))["choices"][0]["text"]
    return answer


def is_paused(engine: LoopbackProcess) -> bool:
    value: bool = ok(get(engine, "/is_paused"))["is_paused"]
    return value


def is_sleeping(engine: LoopbackProcess) -> bool:
    value: bool = ok(get(engine, "/is_sleeping"))["is_sleeping"]
    return value


def gauge(process: LoopbackProcess, name: str, **labels: str) -> float:
    """The sum of the samples of a metric with these labels."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = re.findall(rf"^vllm:{name}(\{{.*?\}}) (\S+)$", get(process, "/metrics").text, re.MULTILINE)
    return sum(float(value) for found, value in lines if all(each in found for each in wanted))


def sleep_gauge(engine: LoopbackProcess) -> tuple[float, ...]:
    """awake, weights_offloaded, discard_all."""
    states = ("awake", "weights_offloaded", "discard_all")
    return tuple(gauge(engine, "engine_sleep_state", sleep_state=state) for state in states)


def running(engine: LoopbackProcess, count: int) -> None:
    """Waits until this many requests run, as of the last step."""
    until(lambda: gauge(engine, "num_requests_running") == count)


def serving(engine: LoopbackProcess) -> LoopbackProcess:
    """The engine, awake, not paused, without requests and with its own weights, whatever a test before left."""
    post(engine, "/abort_requests", {})
    post(engine, "/wake_up")
    post(engine, "/resume")
    ok(post(engine, "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(engine.weights)}}))
    ok(post(engine, "/reset_prefix_cache"))
    return engine


@contextmanager
def fresh(*arguments: str, **chosen: Any) -> Iterator[LoopbackProcess]:
    """A small engine of the test's own, which speaks vLLM's dialect."""
    with LoopbackProcess.start(**({"dialect": VLLM} | SMALL | chosen), arguments=(*QUICK, *arguments)) as engine:
        try:
            yield engine
        finally:
            engine.kill()


class Stream:
    """A streamed completion in flight, read by a thread."""

    def __init__(self, engine: LoopbackProcess, body: Mapping[str, Any], headers: Mapping[str, str] | None) -> None:
        self.status = 0
        self.events: list[str] = []
        self.broken = False
        self._connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=30)
        raw = json.dumps({"stream": True, **body}).encode()
        self._connection.request(
            "POST", "/v1/completions", raw, {"Content-Type": "application/json", **(headers or {})}
        )
        self._socket = self._connection.sock
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self._opened.wait(10)

    def _read(self) -> None:
        try:
            with closing(self._connection.getresponse()) as response:
                self.status = response.status
                self._opened.set()
                for line in response:
                    if line.strip():
                        self.events.append(line.decode().removeprefix("data: ").strip())
        except (OSError, http.client.HTTPException):
            self.broken = True
        finally:
            self._opened.set()
            self._connection.close()

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(event) for event in self.events if event != "[DONE]"]

    @property
    def text(self) -> str:
        return "".join(choice["text"] for chunk in self.chunks for choice in chunk.get("choices", ()))

    @property
    def finish(self) -> str | None:
        """The last finish reason that the client was told."""
        reasons = [choice["finish_reason"] for chunk in self.chunks for choice in chunk.get("choices", ())]
        return reasons[-1] if reasons else None

    @property
    def open(self) -> bool:
        return self._thread.is_alive()

    def ended(self, deadline_s: float = 15.0) -> Stream:
        """This stream, once it has ended."""
        self._thread.join(deadline_s)
        assert not self._thread.is_alive(), self.events[-1:]
        return self

    def leave(self) -> None:
        """The client closes its connection."""
        self._socket.shutdown(socket.SHUT_RDWR)


def stream(
    engine: LoopbackProcess, text: str, tokens: int, headers: Mapping[str, str] | None = None, **more: Any
) -> Stream:
    """A stream whose headers have come."""
    return Stream(engine, prompt(text, tokens, **more), headers)


def streams(engine: LoopbackProcess, count: int, tokens: int) -> list[Stream]:
    """So many streams, all of which have had a token."""
    opened = [stream(engine, f"stream {index}", tokens) for index in range(count)]
    until(lambda: all(each.text for each in opened), 15)
    return opened
