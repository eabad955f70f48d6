"""A loopback process that speaks vLLM's dialect, as the conformance suite wants it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus

from lifecycle.adapters.loopback import LoopbackProcess

#: Seconds for which a client tries again where the engine refuses requests, as vLLM 0.33 does while it is paused.
RETRIED_S = 60.0


@dataclass(frozen=True)
class VLLMSubject:
    """A running loopback engine that speaks vLLM."""

    process: LoopbackProcess
    #: Bytes of each tag on each rank, which vLLM itself does not tell.
    tag_bytes: int

    @property
    def url(self) -> str:
        """Where it is."""
        return f"vllm://127.0.0.1:{self.process.port}?sizes=weights:{self.tag_bytes},kv_cache:{self.tag_bytes}"

    def generate(self, text: str, tokens: int) -> list[int]:
        """The greedy token ids that a client gets."""
        body = {"prompt": text, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        end = time.monotonic() + RETRIED_S
        while True:
            try:
                return self._generate(body)
            except urllib.error.HTTPError as refused:
                if refused.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def _generate(self, body: dict[str, object]) -> list[int]:
        request = urllib.request.Request(self.process.url + "/v1/completions", json.dumps(body).encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            ids: list[int] = json.loads(answer.read())["choices"][0]["token_ids"]
        return ids

    def kill(self) -> None:
        """No process of the engine is left."""
        self.process.kill()

    def stop(self) -> None:
        """No process of the engine is left."""
        self.process.kill()
