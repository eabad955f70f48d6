"""Another driver of an engine, over plain HTTP: it keeps nothing, and asks nobody."""

from __future__ import annotations

import json
import urllib.request

from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import FromDisk


class AnotherDriver:
    """What somebody else may do to an engine."""

    def __init__(self, process: LoopbackProcess) -> None:
        self._url = process.url

    def pause(self) -> None:
        """The engine admits no requests, and none runs."""
        self._post("/pause_generation", {"mode": "abort"})

    def resume(self) -> None:
        """The engine admits requests."""
        self._post("/continue_generation", {})

    def release(self, *tags: str) -> None:
        """These tags were given back."""
        self._post("/release_memory_occupation", {"tags": list(tags)})

    def restore(self, *tags: str) -> None:
        """These tags are mapped again."""
        self._post("/resume_memory_occupation", {"tags": list(tags)})

    def load(self, source: FromDisk) -> None:
        """The weights are those of this checkpoint."""
        self._post("/update_weights_from_disk", {"model_path": source.path, "weight_version": source.version})

    def generate(self, text: str = "hello") -> list[int]:
        """The ids that the engine generates."""
        answer = self._post("/generate", {"text": text, "sampling_params": {"max_new_tokens": 4}})
        return list(answer["output_ids"])

    def _post(self, path: str, body: dict[str, object]) -> dict[str, list[int]]:
        request = urllib.request.Request(self._url + path, json.dumps(body).encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=10.0) as response:
            raw = response.read()
        return json.loads(raw) if raw else {}


def url(process: LoopbackProcess, **options: object) -> str:
    """The engine's URL for a fleet."""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"loopback://127.0.0.1:{process.port}" + (f"?{query}" if query else "")


def alive(process: LoopbackProcess) -> bool:
    """Whether the engine still answers."""
    with urllib.request.urlopen(process.url + "/server_info", timeout=10.0) as response:
        return response.status == 200
