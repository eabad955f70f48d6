"""The HTTP client of these tests: one connection for each call, and a deadline for every wait."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifecycle.adapters.loopback import LoopbackProcess

SMALL: dict[str, Any] = {"weights_mib": 16, "kv_mib": 8}
QUICK = ("--death-delay-s", "0.05", "--abort-poll-s", "0.02", "--health-poll-s", "0.05", "--health-timeout-s", "0.3")
#: 70 tokens take over half a second, so that requests still run when a busy machine checks that they do.
SLOW_STEPS = ("--step-delay-s", "0.008")
GONE = (ConnectionError, http.client.HTTPException)


@dataclass(frozen=True, slots=True)
class Reply:
    """The response to one call."""

    status: int
    text: str
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def call(
    engine: LoopbackProcess, method: str, path: str, body: Any = None, *, key: str | None = None, timeout: float = 20.0
) -> Reply:
    """The engine's response. Raises one of GONE where the connection is dropped."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", engine.port, timeout=timeout)
    try:
        connection.request(method, path, raw, headers)
        response = connection.getresponse()
        return Reply(response.status, response.read().decode(), dict(response.getheaders()))
    finally:
        connection.close()


def post(engine: LoopbackProcess, path: str, body: Any = None, **more: Any) -> Reply:
    return call(engine, "POST", path, {} if body is None else body, **more)


def get(engine: LoopbackProcess, path: str, **more: Any) -> Reply:
    return call(engine, "GET", path, **more)


def prompt_body(prompt: str, tokens: int = 16, **more: Any) -> dict[str, Any]:
    return {"text": prompt, "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}, **more}


def generate(engine: LoopbackProcess, prompt: str, tokens: int = 16, **more: Any) -> dict[str, Any]:
    reply = post(engine, "/generate", prompt_body(prompt, tokens, **more))
    assert reply.status == 200, reply.text
    result: dict[str, Any] = reply.json
    return result


def ids(engine: LoopbackProcess, prompt: str, tokens: int = 16) -> list[int]:
    result: list[int] = generate(engine, prompt, tokens)["output_ids"]
    return result


def background(act: Callable[[], Any]) -> Future[Any]:
    """The future of `act`, which runs in a daemon thread."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def start_generate(engine: LoopbackProcess, prompt: str, tokens: int, **more: Any) -> Future[dict[str, Any]]:
    return background(lambda: generate(engine, prompt, tokens, **more))


def until(condition: Callable[[], Any], deadline_s: float = 5.0) -> Any:
    """The value of `condition` once it is true. Raises AssertionError after the deadline."""
    deadline = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
    return value


def load(engine: LoopbackProcess) -> dict[str, Any]:
    """The core section of the engine's one rank."""
    entry: dict[str, Any] = get(engine, "/v1/loads?include=core").json["loads"][0]
    return entry


def running(engine: LoopbackProcess, count: int) -> None:
    """Waits until this many requests run."""
    until(lambda: load(engine)["num_running_reqs"] == count)


def stays_silent(future: Future[Any], for_s: float = 0.2) -> None:
    """Raises AssertionError where the future has a result within this time."""
    try:
        answer = future.result(timeout=for_s)
    except TimeoutError:
        return
    raise AssertionError(f"answered: {answer}")


def pss_mib(engine: LoopbackProcess) -> float:
    """The proportional set size of all the engine's processes."""
    return sum(map(_pss_mib, engine.pids))


def _pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no Pss")


def checksum(engine: LoopbackProcess) -> str:
    value: str = get(engine, "/weights_checker").json["per_engine_checksum"]
    return value


def release(engine: LoopbackProcess, *tags: str) -> Reply:
    return post(engine, "/release_memory_occupation", {"tags": list(tags)})


def resume(engine: LoopbackProcess, *tags: str) -> Reply:
    return post(engine, "/resume_memory_occupation", {"tags": list(tags)})


def pause(engine: LoopbackProcess, mode: str, **more: Any) -> Reply:
    return post(engine, "/pause_generation", {"mode": mode}, **more)


def unpause(engine: LoopbackProcess) -> Reply:
    return post(engine, "/continue_generation")


def alive(pid: int) -> bool:
    """The process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def fresh(*arguments: str, **chosen: Any) -> Iterator[LoopbackProcess]:
    """A small engine of the test's own."""
    with LoopbackProcess.start(**(SMALL | chosen), arguments=(*QUICK, *arguments)) as engine:
        try:
            yield engine
        finally:
            engine.kill()
