"""A loopback engine driven by verbs that a user would write: plain requests, declared with what they do."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lifecycle.adapters.declared import About, DeclaredAdapter, Verb, Verbs
from lifecycle.adapters.loopback import LoopbackProcess

TAGS = ("weights", "kv_cache")


class Refused(RuntimeError):
    """The engine answered with an error."""


@dataclass(frozen=True)
class Http:
    """Requests to one engine; an answer that is an error raises Refused, and no answer raises OSError."""

    url: str
    timeout_s: float = 30.0

    def ask(self, path: str, body: object = None) -> Any:
        """The answer of a POST with this body, or of a GET."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                raw = answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(f"{error.code}: {error.read(500).decode(errors='replace')}") from None
        try:
            return json.loads(raw)
        except ValueError:
            return raw.decode()

    def pause(self, own_mode: str) -> Any:
        return self.ask("/pause_generation", {"mode": own_mode})

    def resume(self) -> Any:
        return self.ask("/continue_generation", {})

    def release(self, tags: Sequence[str]) -> Any:
        return self.ask("/release_memory_occupation", {"tags": list(tags)})

    def restore(self, tags: Sequence[str]) -> Any:
        return self.ask("/resume_memory_occupation", {"tags": list(tags)})

    def load(self, path: str, version: str) -> Any:
        body = {"model_path": path, "weight_version": version, "flush_cache": False}
        return self.ask("/update_weights_from_disk", body)

    def flush(self) -> Any:
        return self.ask("/flush_cache", {})

    def admission(self) -> str:
        try:
            self.ask("/ready")
        except Refused:
            return "closed"
        return "open"

    def running(self) -> int | None:
        """How many requests run; while it is paused the counts stand still, and say nothing."""
        if self.admission() == "closed":
            return None
        return sum(each["num_running_reqs"] + each["num_waiting_reqs"] for each in self.ask("/v1/loads")["loads"])

    def boot(self) -> str:
        return str(self.ask("/server_info")["startup_time"])

    def label(self) -> str:
        return str(self.ask("/model_info")["weight_version"])

    def answer(self, text: str, tokens: int) -> list[int]:
        body = {"text": text, "sampling_params": {"max_new_tokens": tokens, "temperature": 0}}
        ids: list[int] = self.ask("/generate", body)["output_ids"]
        return ids


def verbs_of(http: Http, **changes: Any) -> Verbs:
    """All that this engine has, as a careful user declares it."""
    harmless = {"repeatable": True, "refusal_is_untouched": True}
    whole = Verbs(
        pause={
            "abort": Verb(call=partial(http.pause, "abort"), **harmless),
            "keep": Verb(call=partial(http.pause, "retract"), **harmless),
            "freeze": Verb(call=partial(http.pause, "in_place"), **harmless),
        },
        resume=Verb(call=http.resume, repeatable=True),
        release=Verb(call=http.release, effects=dict.fromkeys(TAGS, "discarded")),
        restore=Verb(call=http.restore, effects=dict.fromkeys(TAGS, "resident")),
        load=Verb(call=http.load, repeatable=True),
        drop_cache=Verb(call=http.flush, **harmless),
        idle=Verb(call=http.flush, drops_cache=True),
        admission=http.admission,
        running=http.running,
        boot=http.boot,
        label=http.label,
        answer=http.answer,
        barrier=http.boot,
    )
    return replace(whole, **changes)


def adapter_of(process: LoopbackProcess, *, size_mib: int | None = None, **changes: Any) -> DeclaredAdapter:
    """The adapter over the verbs of this engine, with the sizes of its tags where they are given."""
    sizes = {} if size_mib is None else dict.fromkeys(TAGS, size_mib << 20)
    about = About(engine="loopback by verbs", device="cpu", sizes=sizes, live_update=True)
    verbs = verbs_of(Http(process.url), **changes)
    return DeclaredAdapter(f"verbs:{process.port}", verbs, processes=[process.pid], about=about)
