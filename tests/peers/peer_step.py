"""Loopback engines with a fault for a peer's loop, and what became of it: measured, not asked of the loop."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from lifecycle.adapters.loopback.checkpoint import cached_weights
from lifecycle.adapters.loopback.process import LoopbackProcess

from lifecycle.core.units import MIB

WEIGHTS_MIB, KV_MIB = 32, 96
LEAST_HELD_MIB = 110  # with everything mapped; the KV cache has pages that nothing has written yet
PROMPT, TOKENS = [72, 101, 108, 108, 111], 8
LAUNCHED, TRAINED = 0, 7  # seeds
#: Seconds after which an engine that does not generate is silent.
SILENT_S = 5.0

#: What is wrong with the first engine: nothing; it answers 200 to a release and frees nothing; it dies when tensors are
#: pushed to it.
FAULTS = {"none": None, "lies": ("release", "keep"), "dies": ("update", "die")}


@dataclass(slots=True)
class Outcome:
    """What became of one loop, with one fault."""

    loop: str
    fault: str
    code: str  # "theirs" or "ours"
    ended: str = "returned"
    after_s: float = 0.0
    #: MiB of device memory that each engine held when training began, a list for each time that it began.
    held_mib: list[list[int]] = field(default_factory=list)
    #: What the loop's own generate returned: `trained`, `launched`, `other` or None where it came to none.
    rollout: str | None = None
    #: What each engine was found to do afterwards: the one with the fault first.
    engines: list[str] = field(default_factory=list)
    #: The states of the engines as the fleet of a shim has them at the end.
    known: list[str] = field(default_factory=list)
    trace: str = ""


class Engines:
    """Loopback engines, and what can be seen of them from outside."""

    def __init__(self, processes: Sequence[LoopbackProcess], known: dict[str, list[int]]) -> None:
        self.processes = processes
        self._known = known

    @property
    def urls(self) -> list[str]:
        return [each.url for each in self.processes]

    def held_mib(self) -> list[int]:
        """MiB that the processes of each engine hold beyond those of one that released everything."""
        return [self._held_of(each) for each in self.processes]

    def _held_of(self, process: LoopbackProcess) -> int:
        return max(0, sum(map(_resident, process.pids)) - _BARE_MIB[0])

    def what_it_is(self, tokens: Sequence[int]) -> str:
        """The weights that these tokens come from, by name."""
        return next((name for name, each in self._known.items() if list(tokens) == each), "other")

    def found(self, generate: Callable[[str, float], list[int]]) -> list[str]:
        """Of each engine: the weights that it serves, or that it is silent, or gone."""

        def ask(process: LoopbackProcess) -> str:
            held = self._held_of(process)
            where = "" if held > LEAST_HELD_MIB else f" on {held} of {WEIGHTS_MIB + KV_MIB} MiB"
            try:
                return f"serves {self.what_it_is(generate(process.url, SILENT_S))} weights{where}"
            except TimeoutError:
                return "silent"
            except OSError:
                return "gone" if process.returncode is not None else "silent"

        with ThreadPoolExecutor(len(self.processes)) as pool:
            return list(pool.map(ask, self.processes))


#: MiB resident of an engine that holds nothing; measured by `measured`.
_BARE_MIB = [0]


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss / MIB)
    except psutil.Error:
        return 0


def post(url: str, body: Any = None, deadline_s: float = 30.0) -> Any:
    """The JSON answer to a POST. Raises OSError or TimeoutError where there is none."""
    data = b"" if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=deadline_s) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        raise OSError(f"{url} answered {error.code}: {error.read(300).decode(errors='replace')}") from error
    except urllib.error.URLError as error:
        raise (error.reason if isinstance(error.reason, OSError) else OSError(str(error))) from error


def vllm_tokens(url: str, deadline_s: float) -> list[int]:
    """Greedy tokens of a server of vLLM's API. Raises TimeoutError, at once where it says that it sleeps."""
    with urllib.request.urlopen(f"{url}/is_sleeping", timeout=deadline_s) as answer:
        if json.loads(answer.read())["is_sleeping"]:
            raise TimeoutError("it sleeps, or is paused")
    body = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
    answer = post(f"{url}/v1/completions", body, deadline_s)
    return list(answer["choices"][0]["token_ids"])


def sglang_tokens(url: str, deadline_s: float) -> list[int]:
    """Greedy tokens of a server of SGLang's API."""
    body = {
        "input_ids": PROMPT,
        "sampling_params": {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True},
    }
    return list(post(f"{url}/generate", body, deadline_s)["output_ids"])


def trained_checkpoint() -> Path:
    """The weights that the trainer has after its step."""
    return cached_weights(seed=TRAINED, weights_mib=WEIGHTS_MIB)


def known_tokens(dialect: str | None, tokens: Callable[[str, float], list[int]]) -> dict[str, list[int]]:
    """What the weights at launch and those of the trainer generate, each from an engine of its own."""
    known = {}
    for name, seed in (("launched", LAUNCHED), ("trained", TRAINED)):
        with _started(dialect, seed) as process:
            known[name] = tokens(process.url, 30.0)
            _BARE_MIB[0] = sum(map(_resident, process.pids)) - WEIGHTS_MIB - KV_MIB
    return known


def _started(dialect: str | None, seed: int = LAUNCHED, **more: Any) -> LoopbackProcess:
    arguments = ["--weight-transfer"] if dialect and dialect.startswith("vllm") else []
    return LoopbackProcess.start(
        dialect=dialect, seed=seed, weights_mib=WEIGHTS_MIB, kv_mib=KV_MIB, arguments=arguments, **more
    )


@contextlib.contextmanager
def engines(dialect: str | None, fault: str, count: int, known: dict[str, list[int]]) -> Iterator[Engines]:
    """Engines of which the first has the fault."""
    wrong = FAULTS[fault]
    texts = () if wrong is None else (f"{wrong[0]}={wrong[1]}",)
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(_started(dialect, faults=texts if number == 0 else ())) for number in range(count)
        ]
        yield Engines(started, known)


@contextlib.contextmanager
def recorded(outcome: Outcome, engines: Engines) -> Iterator[None]:
    """What the loop raises is noted, with names for its engines, and how long it took."""
    begun = time.monotonic()
    try:
        yield
    except Exception as error:
        lines = str(error).splitlines() or [""]
        first = lines[-1] if "ray::" in lines[0] else lines[0]  # Ray's errors end with what the task raised
        for number, url in enumerate(engines.urls):
            first = first.replace(url.partition("//")[2], f"engine-{number}")
        outcome.ended = f"raised {type(error).__name__}: {first}"
        outcome.trace = "".join(traceback.format_exception(error))
    finally:
        outcome.after_s = round(time.monotonic() - begun, 1)
