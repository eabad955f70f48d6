"""The load: clients that stream all along, and account for every request that they sent."""

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
_AFTER_LOSS_S = 0.2  # an engine that is gone refuses at once; without a pause the count would say nothing


class Lost(Exception):
    """A request that was neither answered nor aborted; the message says how it ended."""


@dataclass(frozen=True, slots=True)
class Target:
    """An engine as its clients know it. Engines of one `model` must answer alike."""

    name: str
    url: str
    model: str


@dataclass(frozen=True, slots=True)
class Answer:
    """How a stream ended: all its tokens, by the weights of `version`, or an abort."""

    tokens: Tokens
    version: str
    aborted: bool


@dataclass(slots=True)
class Tally:
    """Every request sent is exactly one of completed, aborted and lost, or still open."""

    sent: int = 0
    completed: int = 0
    aborted: int = 0
    lost: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def lose(self, reason: str) -> None:
        """One request is lost, for this reason."""
        self.lost += 1
        self.reasons[reason] += 1


def new_session() -> ClientSession:
    """A session whose requests may hang at a closed gate for as long as it takes."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))


async def stream(session: ClientSession, target: Target, prompt: str, *, tokens: int = _TOKENS) -> Answer:
    """The greedy continuation, streamed to its end; Lost where it ended any other way."""
    import aiohttp

    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body = {"text": prompt, "stream": True, "sampling_params": sampling}
    try:
        async with session.post(f"{target.url}/generate", json=body) as response:
            if response.status != 200:
                raise Lost(f"{target.name} answered {response.status}")
            return _answer(target, json.loads(await _last_event(response.content)))
    except (aiohttp.ClientError, OSError) as error:
        raise Lost(f"{target.name}: {error or type(error).__name__}") from error


async def _last_event(lines: AsyncIterable[bytes]) -> bytes:
    """The last of a stream's events, all of it having been read: each event repeats the tokens before it."""
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
    """So many clients, each with one stream open at any time, from entering it until `finish`.

    A quarter of them talk to the reward model; each of the others goes round the fleet's engines in turn.
    """

    def __init__(self, session: ClientSession, engines: Sequence[Target], reward: Target, count: int) -> None:
        self.tally = Tally()
        self.served: Counter[str] = Counter()
        #: What the clients were answered, by model, weights version and prompt: one answer each, if all is well.
        self.answers: dict[tuple[str, str, str], set[Tokens]] = {}
        self.session = session
        own = max(1, count // 4)
        rounds = [[*engines[n % len(engines) :], *engines[: n % len(engines)]] for n in range(count - own)]
        self._rounds: list[list[Target]] = rounds + [[reward]] * own
        self._tasks: list[asyncio.Task[None]] = []
        self._leaving = False
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(len(self._rounds))]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.finish(0.0)

    def describe(self) -> str:
        """Who talks to whom, in words."""
        reward = sum(len(each) == 1 for each in self._rounds)
        engines = ", ".join(target.name for target in self._rounds[0])
        others = len(self._rounds) - reward
        return f"{others + reward} clients stream all along: {others} go round {engines}; {reward} at the reward model"

    async def finish(self, deadline_s: float) -> None:
        """Every client has ended its last request; what is open at the deadline is lost."""
        self._leaving = True
        running = [task for task in self._tasks if not task.done()]
        if running and deadline_s > 0:
            _, still = await asyncio.wait(running, timeout=deadline_s)
            running = list(still)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def wait_for(self, name: str, total: int, *, deadline_s: float) -> None:
        """This engine has completed so many requests since the beginning, or the deadline has passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while self.served[name] < total:
                    await self._news.wait()

    async def _client(self, number: int) -> None:
        """Prompt after prompt, each until it is answered: one that was aborted is sent again, to the next engine."""
        turns = cycle(self._rounds[number])
        prompts = cycle([*PROMPTS[number:], *PROMPTS[:number]])
        while not self._leaving:
            prompt = next(prompts)
            while await self._send(next(turns), prompt):
                pass

    async def _send(self, target: Target, prompt: str) -> bool:
        """One request, accounted for; True where it was aborted."""
        self.tally.sent += 1
        try:
            answer = await stream(self.session, target, prompt)
        except asyncio.CancelledError:
            self.tally.lose(f"{target.name} had not ended it at the end")
            raise
        except Exception as error:  # however a request fails, also by an answer that means nothing: it is lost
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
        self._news.set()  # wakes all that wait for it; the next answer has an event of its own
        self._news = asyncio.Event()
