"""A loopback process as the conformance suite wants it."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass

from lifecycle.adapters.loopback import LoopbackProcess


@dataclass(frozen=True)
class LoopbackSubject:
    """A running loopback engine."""

    process: LoopbackProcess

    @property
    def url(self) -> str:
        """Where it is."""
        return f"loopback://127.0.0.1:{self.process.port}"

    def generate(self, text: str, tokens: int) -> list[int]:
        """The greedy token ids that a client gets."""
        body = {"text": text, "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}
        request = urllib.request.Request(self.process.url + "/generate", json.dumps(body).encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            ids: list[int] = json.loads(answer.read())["output_ids"]
        return ids

    def kill(self) -> None:
        """No process of the engine is left."""
        self.process.kill()

    def stop(self) -> None:
        """No process of the engine is left."""
        self.process.kill()
