"""slime's actors over loopback engines: its method names, with every call recorded when it begins and when it ends."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

from lifecycle.frameworks.slime import ClosedUntilRestored

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Noted:
    """One call of an actor, and when it began and ended, by the order in which these things happened."""

    actor: str
    method: str
    args: tuple[Any, ...]
    began: int
    ended: int


@dataclass
class Notes:
    """What all actors were asked, by any thread."""

    calls: list[Noted] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _clock: int = 0

    def tick(self) -> int:
        with self._lock:
            self._clock += 1
            return self._clock

    def of(self, method: str, *args: Any) -> list[Noted]:
        """The calls of this method, with these arguments where any are given, in the order in which they ended."""
        found = [each for each in self.calls if each.method == method and (not args or each.args == args)]
        return sorted(found, key=lambda each: each.ended)

    def all_before_any(self, first: Sequence[Noted], then: Sequence[Noted]) -> bool:
        """Whether each of the first had ended before any of the others began."""
        return max(each.ended for each in first) < min(each.began for each in then)


def noted(method: F) -> F:
    """The call is written into the actor's notes."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        began, given = self.notes.tick(), tuple(args) + tuple(kwargs.values())
        try:
            return method(self, *args, **kwargs)
        finally:
            plain = tuple(tuple(sorted(each)) if isinstance(each, list | tuple) else each for each in given)
            self.notes.calls.append(Noted(self.name, method.__name__, plain, began, self.notes.tick()))

    return call  # type: ignore[return-value]


class SGLangEngine:
    """The methods of slime's actor. Source: slime, backends/sglang_utils/sglang_engine.py, of 2026-08-21.

    As there, a pause posts an empty body (an abort), a release takes no tags and flushes first, and a rank other than
    node 0 answers None. `flush_tries` are 60 there, a second apart.
    """

    flush_tries = 60

    def __init__(self, name: str, url: str, notes: Notes, node_rank: int = 0) -> None:
        self.name, self.url, self.notes, self.node_rank = name, url, notes, node_rank
        #: How long each call takes beyond what the engine takes, by method.
        self.slow_s: dict[str, float] = {}

    def _post(self, path: str, body: object = None, method: str = "POST") -> Any:
        if self.node_rank != 0:
            return None
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=30.0) as answer:
            raw = answer.read()
        time.sleep(self.slow_s.get(path, 0.0))
        try:
            return json.loads(raw)
        except ValueError:
            return raw.decode()

    @noted
    def pause_generation(self) -> Any:
        return self._post("/pause_generation")

    @noted
    def continue_generation(self) -> Any:
        return self._post("/continue_generation")

    @noted
    def flush_cache(self) -> Any:
        return self._flushed()

    def _flushed(self) -> None:
        for _ in range(self.flush_tries):
            try:
                self._post("/flush_cache")
            except urllib.error.HTTPError:
                time.sleep(0.05)
            else:
                return
        raise TimeoutError("Timeout while flushing cache.")

    @noted
    def release_memory_occupation(self) -> Any:
        self._flushed()
        return {"actor": self.name, "released": self._post("/release_memory_occupation")}

    @noted
    def resume_memory_occupation(self, tags: list[str] | None = None) -> Any:
        return {"actor": self.name, "resumed": self._post("/resume_memory_occupation", {"tags": list(tags or ())})}

    @noted
    def health_generate(self, timeout: float = 5.0) -> bool:
        if self.node_rank != 0:
            return True
        tokens = self._post("/generate", {"text": "a", "sampling_params": {"max_new_tokens": 1, "temperature": 0}})
        return bool(tokens["output_ids"])

    @noted
    def check_weights(self, action: str) -> Any:
        return self._post("/weights_checker", {"action": action})

    def get_weight_version(self) -> str:
        return str(self._post("/model_info", method="GET")["weight_version"])

    def get_url(self) -> str | None:
        return None if self.node_rank != 0 else self.url

    @noted
    def update_weights_from_tensor(self, serialized_named_tensors: list[str], weight_version: str) -> Any:
        body = {"serialized_named_tensors": serialized_named_tensors, "load_format": "safetensors"}
        for path, more in (
            ("/begin_weight_update", {}),
            ("/update_weights_from_tensor", {**body, "weight_version": weight_version, "flush_cache": False}),
            ("/end_weight_update", {}),
        ):
            answer = self._post(path, more)
        return answer


class ClosedEngine(ClosedUntilRestored, SGLangEngine):
    """slime's actor, whose generation cannot be continued while memory is released."""


@dataclass
class ServerGroup:
    """slime's group: what is asked of it."""

    all_engines: list[Any]
    needs_offload: bool = True

    @property
    def engines(self) -> list[Any]:
        return self.all_engines
