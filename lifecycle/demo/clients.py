"""The load: clients that stream during the whole demo and count every request."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from aiohttp import ClientSession

Tokens = tuple[int, ...]

PROMPTS = tuple(f"{what} {which}:" for what in ("a proof of", "a poem on", "a test for") for which in "ABCD")
_TOKENS = 24
_AFTER_LOSS_S = 0.2  # an ended engine refuses at once: without a pause the count of lost requests would explode


class Lost(Exception):
    """Raised where a request was neither answered nor aborted; the message says how it ended."""


@dataclass(frozen=True, slots=True)
class Target:
    """The address of an engine for its clients. Engines of one `model` must give equal answers."""

    name: str
    url: str
    model: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a stream: all its tokens, the version of the weights, and whether it was aborted."""

    tokens: Tokens
    version: str
    aborted: bool


@dataclass(slots=True)
class Tally:
    """Counts requests. Each one sent is completed, aborted, lost or still open."""

    sent: int = 0
    completed: int = 0
    aborted: int = 0
    lost: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def lose(self, reason: str) -> None:
        """Counts a lost request and its reason."""
        self.lost += 1
        self.reasons[reason] += 1


def new_session() -> ClientSession:
    """Returns a session without a total timeout: requests wait while the admission of an engine is closed."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))


async def stream(session: ClientSession, target: Target, prompt: str, *, tokens: int = _TOKENS) -> Answer:
    """Streams the greedy continuation to its end. Raises Lost where it ends in any other way."""
    import aiohttp

    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body = {"text": prompt, "stream": True, "sampling_params": sampling}
    try:
        async with session.post(f"{target.url}/generate", json=body) as response:
            if response.status != 200:
                raise Lost(f"{target.name} answered {response.status}")
            return _answer(target, json.loads(await _last_event(response.content)))
    except (aiohttp.ClientError, OSError) as error:
        raise Lost(f"{target.name}: {str(error) or type(error).__name__}") from error


async def _last_event(lines: AsyncIterable[bytes]) -> bytes:
    """Reads the whole stream and returns its last event, which has the tokens of all."""
    last = b"{}"
    async for line in lines:
        if line.startswith(b"data: {"):
            last = line.removeprefix(b"data: ")
    return last


def _answer(target: Target, event: dict[str, Any]) -> Answer:
    meta = event.get("meta_info") or {}
    finish = meta.get("finish_reason")
    if not finish:
        raise Lost(f"{target.name} ended a stream without a finish_reason")
    return Answer(tuple(event["output_ids"]), str(meta["weight_version"]), finish["type"] == "abort")


class Clients:
    """`count` clients, each with one open stream at any time, from `__aenter__` until `finish`.

    A quarter of them send to the reward model. Each of the others sends to the fleet's engines in turn.
    """

    def __init__(self, session: ClientSession, engines: Sequence[Target], reward: Target, count: int) -> None:
        self.tally = Tally()
        self.served: Counter[str] = Counter()
        #: The answers by model, weights version and prompt. More than one answer for a key is a fault.
        self.answers: dict[tuple[str, str, str], set[Tokens]] = {}
        self.session = session
        own = max(1, count // 4)
        rounds = [[*engines[n % len(engines) :], *engines[: n % len(engines)]] for n in range(count - own)]
        self._rounds: list[list[Target]] = rounds + [[reward]] * own
        self._tasks: list[asyncio.Task[None]] = []
        self._finishing = False
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(len(self._rounds))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.finish(0.0)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._rounds)

    def describe(self) -> str:
        """Returns a sentence that says which clients send to which engines."""
        reward = sum(len(each) == 1 for each in self._rounds)
        engines = ", ".join(target.name for target in self._rounds[0])
        others = len(self._rounds) - reward
        return (
            f"{others + reward} clients always stream, {others} to {engines} in turn and {reward} to the reward model"
        )

    async def finish(self, deadline_s: float) -> None:
        """Lets every client end its last request; those open at the deadline are lost."""
        self._finishing = True
        running = [task for task in self._tasks if not task.done()]
        if running and deadline_s > 0:
            _, still = await asyncio.wait(running, timeout=deadline_s)
            running = list(still)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def wait_for(self, name: str, total: int, *, deadline_s: float) -> None:
        """Returns once this engine has completed `total` requests since the start, or the deadline has passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while self.served[name] < total:
                    await self._news.wait()

    async def _client(self, number: int) -> None:
        """Sends prompt after prompt. An aborted one is sent again, to the next engine, until it is answered."""
        turns = cycle(self._rounds[number])
        prompts = cycle([*PROMPTS[number:], *PROMPTS[:number]])
        while not self._finishing:
            prompt = next(prompts)
            while await self._send(next(turns), prompt):
                pass

    async def _send(self, target: Target, prompt: str) -> bool:
        """Sends one request and counts it. True where it was aborted."""
        self.tally.sent += 1
        try:
            answer = await stream(self.session, target, prompt)
        except asyncio.CancelledError:
            self.tally.lose(f"{target.name} had not answered it by the end")
            raise
        except Exception as error:  # a request that fails in any way, also by an answer that cannot be parsed, is lost
            self.tally.lose(str(error) if isinstance(error, Lost) else f"{target.name}: {error!r}")
            await asyncio.sleep(_AFTER_LOSS_S)
            return False
        self._note(target, prompt, answer)
        return answer.aborted

    def _note(self, target: Target, prompt: str, answer: Answer) -> None:
        if answer.aborted:
            self.tally.aborted += 1
            return
        self.tally.completed += 1
        self.served[target.name] += 1
        self.answers.setdefault((target.model, answer.version, prompt), set()).add(answer.tokens)
        self._news.set()  # wakes every waiter; the next answer sets a new event
        self._news = asyncio.Event()
