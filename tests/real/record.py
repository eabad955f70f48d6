"""`python record.py URL FOLDER` leaves what a server really answers in FOLDER, one JSON file a request and an index.

Made to be run against the real SGLang and against whatever claims to be like it, and compared. Each file is
`{name, request, status, content_type, body, text, elapsed_s, error}`: `text` is the answer as it came, `body` the JSON
in it, `error` the exception of the client if no answer came.
"""

from __future__ import annotations

import argparse
import http.client
import json
import threading
import time
import urllib.parse
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from questions import (
    ABORT_ALL,
    BUSY,
    FLUSH_AND_ABORT,
    GATE,
    GENERATE,
    KILLS,
    OBSERVE,
    PAUSE_ABORT,
    RETRACT_ABORT,
    frozen,
    greedy,
    memory,
    weights,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from questions import Row

NO_BODY = object()
EVENTS_KEPT = 3

# Whose endpoints these are: with two keys each kind takes one of them only.
CONTROL = (
    "/pause",
    "/continue",
    "/flush",
    "/release",
    "/resume",
    "/abort",
    "/weights_checker",
    "/update",
    "/begin",
    "/end",
)


@dataclass(slots=True)
class Answer:
    """What came back from one request."""

    name: str
    request: dict[str, Any]
    status: int | None = None
    content_type: str | None = None
    body: Any = None
    text: str | None = None
    events: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0
    error: str | None = None


@dataclass(slots=True)
class Recorder:
    """Every request sent through it is a file in `folder`."""

    url: str
    folder: Path
    headers: dict[str, str] = field(default_factory=dict)
    keys: tuple[str, str] | None = None  # the user's and the admin's, for a server that has both
    index: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, name: str, method: str, path: str, body: Any = NO_BODY, *, timeout_s: float = 60.0) -> Answer:
        """The request was sent and what came of it is on disk. A `bytes` body is sent as it is, any other as JSON."""
        headers = self.headers | self._authorization(path)
        payload = None
        if body is not NO_BODY:
            payload = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        shown = None if body is NO_BODY else body.decode() if isinstance(body, bytes) else body
        answer = Answer(name, {"method": method, "path": path, "headers": headers, "body": shown})
        started = time.monotonic()
        try:
            self._exchange(answer, payload, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            answer.error = f"{type(error).__name__}: {error}"
        answer.elapsed_s = round(time.monotonic() - started, 3)
        self._keep(answer)
        return answer

    def _authorization(self, path: str) -> dict[str, str]:
        if self.keys is None:
            return {}
        return {"Authorization": f"Bearer {self.keys[path.startswith(CONTROL)]}"}

    def _exchange(self, answer: Answer, payload: bytes | None, timeout_s: float) -> None:
        parts = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
        try:
            request = answer.request
            connection.request(request["method"], request["path"], payload, request["headers"])
            response = connection.getresponse()
            answer.status, answer.content_type = response.status, response.getheader("Content-Type")
            _fill(answer, response.read().decode(errors="replace"))
        finally:
            connection.close()

    def _keep(self, answer: Answer) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{answer.name}.json"
        (self.folder / name).write_text(json.dumps(asdict(answer), indent=1, ensure_ascii=False))
        row = {"file": name, "request": f"{answer.request['method']} {answer.request['path']}"}
        self.index.append(row | {"status": answer.status, "error": answer.error, "elapsed_s": answer.elapsed_s})
        (self.folder / "index.json").write_text(json.dumps(self.index, indent=1))
        print(answer.status, answer.name, answer.error or "", flush=True)


def _fill(answer: Answer, text: str) -> None:
    """The answer holds the text, and the JSON or the first and last events that are in it."""
    answer.text = text
    if (answer.content_type or "").startswith("text/event-stream"):
        events = [event for event in text.split("\n\n") if event]
        answer.events = events if len(events) <= 2 * EVENTS_KEPT else events[:EVENTS_KEPT] + events[-EVENTS_KEPT:]
        answer.text = None
        return
    try:
        answer.body = json.loads(text)
    except ValueError:
        answer.body = None


def play(recorder: Recorder, rows: Iterable[Row]) -> None:
    """Every row was asked, in order."""
    for row in rows:
        recorder.ask(*row)


def with_busy(
    recorder: Recorder,
    name: str,
    bodies: Sequence[dict[str, Any]],
    act: Callable[[], object],
    path: str = "/generate",
) -> None:
    """`act` ran while these requests to `path` were in flight; what became of them is recorded as NAME_busy_I."""
    threads = [
        threading.Thread(target=recorder.ask, args=(f"{name}_busy_{i}", "POST", path, body))
        for i, body in enumerate(bodies)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # so that the last is the one that waits
    time.sleep(0.5)
    act()
    for thread in threads:
        thread.join()


def busy(recorder: Recorder) -> None:
    """The calls were made that only show something while requests run: five of them on a server that runs four."""
    prompts = ["hello", "zebra", "what is", "one two", "lorem"]

    # A name of its own for every request: two seconds after the end of a stream the server aborts its rid once more,
    # whoever has it by then. Source: sglang 0.5.23, tokenizer_manager.create_abort_task; measured.
    def bodies(name: str) -> list[dict[str, Any]]:
        return [greedy(prompt, 200, rid=f"{name}-{i}", stream=i == 1) for i, prompt in enumerate(prompts)]

    with_busy(recorder, "running", bodies("running"), lambda: play(recorder, BUSY))
    with_busy(recorder, "abort_all", bodies("abort_all"), lambda: play(recorder, ABORT_ALL))
    with_busy(recorder, "pause_abort", bodies("pause_abort"), lambda: play(recorder, PAUSE_ABORT))
    recorder.ask("continue_after_abort", "POST", "/continue_generation", {})
    with_busy(recorder, "retract_abort", bodies("retract_abort"), lambda: play(recorder, RETRACT_ABORT))
    recorder.ask("continue_after_retract_abort", "POST", "/continue_generation", {})
    for mode in ("retract", "in_place"):
        with_busy(recorder, mode, bodies(mode), partial(play, recorder, frozen(mode)))


def kill(recorder: Recorder, way: str) -> None:
    """The server was asked what kills a real one, and then whether it is still there."""
    bodies = [greedy("hello", 200, rid=f"{way}-{i}", stream=i == 1) for i in range(2)] if way == "release_busy" else []
    with_busy(recorder, way, bodies, lambda: play(recorder, KILLS[way]))
    recorder.ask(f"{way}_afterwards", "GET", "/model_info")


def unauthorized(recorder: Recorder) -> None:
    """Every kind of endpoint was asked with no key, a wrong one, the user's and the admin's (`user`, `adm`)."""
    keys, recorder.keys = recorder.keys, None
    paths = [("POST", "/pause_generation", {}), ("GET", "/server_info", NO_BODY), ("GET", "/health", NO_BODY)]
    paths += [("GET", "/ready", NO_BODY), ("GET", "/metrics", NO_BODY), ("GET", "/v1/loads", NO_BODY)]
    paths += [("POST", "/flush_cache", NO_BODY), ("POST", "/continue_generation", {})]
    for key in (None, "wrong", "user", "adm"):
        recorder.headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        for method, path, body in paths:
            recorder.ask(f"key_{key}_{path.strip('/').replace('/', '_')}", method, path, body)
    recorder.headers, recorder.keys = {}, keys


def main() -> None:
    """The answers of the server at URL are in FOLDER."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoints", nargs=2, metavar=("FIRST", "SECOND"), help="load SECOND, then FIRST")
    parser.add_argument("--keys", action="store_true", help="only the answers to right and wrong keys")
    parser.add_argument("--with-keys", nargs=2, metavar=("USER", "ADMIN"), help="the keys of the server")
    parser.add_argument("--kill", choices=KILLS, help="only a call that kills a real server")
    options = parser.parse_args()
    recorder = Recorder(options.url, options.folder, keys=options.with_keys)
    if options.keys:
        unauthorized(recorder)
    elif options.kill:
        kill(recorder, options.kill)
    else:
        everything(recorder, options.checkpoints)


def everything(recorder: Recorder, checkpoints: Sequence[str] | None) -> None:
    """All that leaves the server serving was asked; weights were moved only if there are checkpoints."""
    for rows in (OBSERVE, GENERATE, GATE, FLUSH_AND_ABORT):
        play(recorder, rows)
    busy(recorder)
    if checkpoints:
        play(recorder, weights(*checkpoints))
        play(recorder, memory(checkpoints[0]))


if __name__ == "__main__":
    main()
