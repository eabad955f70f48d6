"""What the tests on a real vLLM share: its servers, what they are asked, and requests in flight."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from make_model import tiny_checkpoint
from one_server import OneServer
from vllm_env import VERSION
from vllm_questions import COMPLETIONS, greedy
from vllm_real import KV_BYTES, RealVLLM

from lifecycle import Fleet, FromDisk, Grade, Policy
from lifecycle.nodes.probes import NoProbe

ENGINE = f"vllm {VERSION}"
PROMPTS = ("hello", "zebra", "once upon a time", "def main():")
KEY = "user"

#: More than so many requests at once are refused by the server without development mode.
MOST_REQUESTS = 4

#: Its processes hold some 1.5 GiB beside weights and KV.
POLICY = Policy(residual_threshold_gib=1.0, settle_s=2.0, deadlines_s={"release": 6})

#: Takes what the engine acknowledges of its memory, which nothing measures then.
UNSEEN = Policy(
    accept=dict.fromkeys(
        ("memory_returned", "tags_unmapped", "weights_mapped", "kv_mapped", "mapping_borne_out"), Grade.ACKNOWLEDGED
    )
)


class VLLMLane(OneServer[RealVLLM]):
    """The servers of one run.

    The one with a key has the second checkpoint, which the others are later given: what it answers is what they must
    answer then.
    """

    KINDS: ClassVar[dict[str, dict[str, Any]]] = {
        "keyed": {"seed": 1, "extra": ["--api-key", KEY]},
        "plain": {"seed": 0},
        "closed": {"seed": 0, "dev_mode": False, "extra": ["--max-num-queued-reqs", str(MOST_REQUESTS)]},
    }
    STARTS_ALLOWED = 4

    def new(self, kind: str) -> RealVLLM:
        """A server of this kind, not started yet."""
        return RealVLLM(**self.KINDS[kind])

    def first_outputs(self, server: RealVLLM, kind: str) -> list[list[int]]:
        """The greedy tokens after each of the prompts."""
        return outputs(server, key=KEY if kind == "keyed" else None)

    def used_again(self, server: RealVLLM) -> None:
        """It serves, also where a test that failed left it asleep or paused: the tests after it would fail with it."""
        ask(server, "/wake_up", method="POST")
        ask(server, "/resume", method="POST")


def source(seed: int) -> FromDisk:
    """The weights of this checkpoint, under a label of its own."""
    return FromDisk(str(tiny_checkpoint(seed)), f"seed-{seed}")


def address(server: RealVLLM, **options: object) -> str:
    """The engine's URL for a fleet. It says how large KV is, which the server does not."""
    size = (tiny_checkpoint(0) / "model.safetensors").stat().st_size
    options = {"name": "e", "sizes": f"weights:{size},kv_cache:{KV_BYTES}", **options}
    return f"vllm://127.0.0.1:{server.port}?" + "&".join(f"{name}={value}" for name, value in options.items())


def fleet(server: RealVLLM, policy: Policy = POLICY, **options: object) -> Fleet:
    """A fleet of this one engine."""
    return Fleet.connect([address(server, **options)], policy=policy)


def unseen(server: RealVLLM) -> Fleet:
    """A fleet of this one engine, whose memory nothing measures, by consent."""
    return Fleet.connect([address(server)], policy=UNSEEN, probe=NoProbe("vLLM frees nothing on a CPU"))


def ask(
    server: RealVLLM, path: str, body: Any = None, *, method: str | None = None, key: str | None = None
) -> tuple[int, Any]:
    """The status and the JSON of an answer; its text where it is no JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"}, method=method)
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, raw = answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        status, raw = refused.code, refused.read()
    try:
        return status, json.loads(raw)
    except ValueError:
        return status, raw.decode()


def output(server: RealVLLM, prompt: str, tokens: int = 16, *, key: str | None = None) -> list[int]:
    """The greedy tokens after this prompt."""
    status, answer = ask(server, COMPLETIONS, greedy(prompt, tokens, return_token_ids=True), key=key)
    assert status == 200, answer
    ids: list[int] = answer["choices"][0]["token_ids"]
    return ids


def outputs(server: RealVLLM, *, key: str | None = None) -> list[list[int]]:
    """The greedy tokens after each of the prompts."""
    return [output(server, prompt, key=key) for prompt in PROMPTS]


class Load:
    """How many requests more than at the start `/load` counts. What it counts of none drifts (docs/adapters.md)."""

    #: Seconds for which it has to count the same before a test begins.
    STILL_S = 0.5

    def __init__(self, server: RealVLLM) -> None:
        self._server, self._before = server, self._count(server)
        still_since_s = time.monotonic()  # the end of a request is counted after its client has seen it
        while time.monotonic() - still_since_s < self.STILL_S:
            if (now := self._count(server)) != self._before:
                self._before, still_since_s = now, time.monotonic()
            time.sleep(0.05)

    def until(self, count: int, deadline_s: float = 30.0) -> None:
        """So many more requests are open; AssertionError where they are not in time."""
        end = time.monotonic() + deadline_s
        while (more := self._count(self._server) - self._before) != count:
            assert time.monotonic() < end, f"{more} requests are open, not {count}"
            time.sleep(0.02)

    @staticmethod
    def _count(server: RealVLLM) -> int:
        count: int = ask(server, "/load")[1]["server_load"]
        return count


@dataclass(slots=True)
class Stream:
    """A request, read by a thread of its own to its end: its tokens, and how it ended."""

    server: RealVLLM
    prompt: str
    tokens: int
    ids: list[int] = field(default_factory=list)
    reason: str | None = None
    status: int = 0
    error: dict[str, Any] | None = None
    done: bool = False
    _thread: Any = None

    def start(self) -> Stream:
        """It is asked."""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def _read(self) -> None:
        for event in self._events():
            self.error = event.get("error", self.error)
            for choice in event.get("choices", ()):
                self.ids += choice["token_ids"] or []
                self.reason = choice["finish_reason"] or self.reason

    def _events(self) -> Iterator[dict[str, Any]]:
        body = json.dumps(greedy(self.prompt, self.tokens, stream=True, return_token_ids=True)).encode()
        request = urllib.request.Request(self.server.url + COMPLETIONS, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                self.status = answer.status
                for line in answer:
                    if line.startswith(b"data: {"):
                        yield json.loads(line[6:])
                    self.done |= line.startswith(b"data: [DONE]")
        except urllib.error.HTTPError as refused:
            self.status = refused.code
            yield json.loads(refused.read())

    @property
    def in_flight(self) -> bool:
        """Whether its connection is open."""
        return bool(self._thread.is_alive())

    def join(self, deadline_s: float = 60.0) -> Stream:
        """It has ended."""
        self._thread.join(deadline_s)
        assert not self.in_flight, f"{self.prompt}: it has not ended, after {len(self.ids)} tokens"
        return self


def streams(server: RealVLLM, tokens: int) -> list[Stream]:
    """Requests after all prompts, each of which has got a token."""
    started = [Stream(server, prompt, tokens).start() for prompt in PROMPTS]
    end = time.monotonic() + 30
    while not all(each.ids for each in started):
        assert time.monotonic() < end, [len(each.ids) for each in started]
        time.sleep(0.005)
    return started
