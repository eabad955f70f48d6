"""Another node, queried through its agent."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.readings import Process, Reading
from ..core.verdicts import Unmeasurable, Verdict
from .agent_protocol import (
    PROTOCOL,
    Question,
    decode_alive,
    decode_free_memory,
    decode_process_env,
    decode_processes,
    decode_reading,
    decode_verdict,
    encode_processes,
)
from .port import FreeMemory, Kind, ProcessEnv, Scope

if TYPE_CHECKING:
    import aiohttp

#: The variable that holds the token, on both ends.
TOKEN = "LIFECYCLE_AGENT_TOKEN"

#: Bytes of an agent's reply that are read, and objects and lists in it that are parsed.
MAX_REPLY_BYTES = 1 << 22
MAX_REPLY_PARTS = 100_000

T = TypeVar("T")


class RemoteNode:
    """The node whose agent listens at `address` ("HOST:PORT"). See `port.Node` for what each method returns.

    `token` defaults to the variable LIFECYCLE_AGENT_TOKEN, read at each question. `threshold_gib` is the residual
    threshold that the agent is given with every reading. An agent that cannot be reached, that refuses the token or
    that has another protocol makes every answer Unmeasurable, with the remedy.
    """

    def __init__(self, address: str, *, token: str | None = None, threshold_gib: float | None = None) -> None:
        self.address = address
        self._token = token
        self._threshold_gib = threshold_gib

    async def about(self, *, deadline_s: float) -> Mapping[str, Any] | Unmeasurable:
        """Returns what the agent says of itself: version, node, threshold in force, driver, devices."""
        return await self._ask("about", {}, dict, deadline_s)

    async def find(
        self, *, port: int, host: str | None = None, deadline_s: float
    ) -> tuple[Process, ...] | Unmeasurable:
        """Returns the root processes that listen there."""
        return await self._ask("find", {"port": port, "host": host}, self._found, deadline_s)

    async def find_pid(self, *, pid: int, deadline_s: float) -> tuple[Process, ...] | Unmeasurable:
        """Returns the process of this pid there, with its start time."""
        return await self._ask("find", {"pid": pid}, self._found, deadline_s)

    async def any_alive(self, processes: Sequence[Process], *, deadline_s: float) -> bool | None:
        """Returns whether any of these processes still exists there; None where the agent does not answer."""
        body = _about_processes(processes, deadline_s)
        alive = await self._ask("alive", body, decode_alive, deadline_s)
        return None if isinstance(alive, Unmeasurable) else alive

    async def read(
        self, processes: Sequence[Process], *, kind: Kind, scope: Scope, deadline_s: float
    ) -> Reading | Unmeasurable:
        """Returns the bytes that the trees hold there."""
        body = _about_processes(processes, deadline_s, kind=kind, scope=scope, threshold_gib=self._threshold_gib)
        return await self._ask("residual", body, decode_reading, deadline_s)

    async def hook_mode(self, processes: Sequence[Process], *, deadline_s: float) -> Verdict:
        """Returns the agent's verdict on the hook mode of these trees."""
        return await self._ask("hook_mode", _about_processes(processes, deadline_s), decode_verdict, deadline_s)

    async def process_env(
        self, processes: Sequence[Process], *, deadline_s: float
    ) -> tuple[ProcessEnv, ...] | Unmeasurable:
        """Returns the variables that the agent may share of every process of these trees."""
        return await self._ask("process_env", _about_processes(processes, deadline_s), decode_process_env, deadline_s)

    async def free_memory(
        self, devices: Sequence[str], processes: Sequence[Process], *, need_bytes: int, deadline_s: float
    ) -> Mapping[str, FreeMemory] | Unmeasurable:
        """Returns the free bytes of each of these devices there."""
        body = _about_processes(processes, deadline_s, devices=list(devices), need_bytes=need_bytes)
        return await self._ask("free_memory", body, decode_free_memory, deadline_s)

    def _found(self, answer: Mapping[str, Any]) -> tuple[Process, ...]:
        return decode_processes(answer["processes"], node=str(answer["node"]), agent=self.address)

    async def _ask(
        self, question: Question, body: Mapping[str, Any], decode: Callable[[Mapping[str, Any]], T], deadline_s: float
    ) -> T | Unmeasurable:
        """The decoded answer, or why there is none."""
        try:
            async with asyncio.timeout(deadline_s):
                status, answer = await self._post(question, body)
        except TimeoutError:
            return self._no_answer(f"gave no answer in {deadline_s:.1f} s")
        except OSError as error:
            return self._no_answer(f"cannot be reached ({error}); run `lifecycle agent` there")
        refusal = self._refusal(status, answer)
        if refusal is not None:
            return refusal
        try:
            return decode(answer)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            return self._no_answer(f"gave an answer that cannot be decoded ({error!r:.200})")

    def _refusal(self, status: int, answer: Any) -> Unmeasurable | None:
        """Why this reply carries no answer; None where it does."""
        if status in (401, 403):
            return self._no_answer(f"refuses the token; set {TOKEN} to the one that it was started with")
        if not isinstance(answer, dict) or "protocol" not in answer:
            return Unmeasurable(reason=f"what listens at {self.address} is no lifecycle agent (it answered {status})")
        if answer["protocol"] != PROTOCOL:
            version = answer.get("version", "unknown")
            return self._no_answer(
                f"speaks protocol {answer['protocol']!s:.20} (engine-lifecycle {version!s:.20}), "
                f"and this is {PROTOCOL}; install the same version of engine-lifecycle on both"
            )
        if status != 200:
            return self._no_answer(f"answered {status}: {answer.get('detail', 'no reason given')!s:.500}")
        return None

    def _no_answer(self, reason: str) -> Unmeasurable:
        return Unmeasurable(reason=f"the agent at {self.address} {reason}")

    async def _post(self, question: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """The status and the JSON of the reply, None in place of what is no JSON. Raises OSError without a reply."""
        import aiohttp  # imported on first use: it takes 0.24 s

        token = self._token if self._token is not None else os.environ.get(TOKEN, "")
        headers = {"Authorization": f"Bearer {token}"}
        url = f"http://{self.address}/v1/{question}"
        try:
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.post(url, json=dict(body), allow_redirects=False) as response,
            ):
                status, raw = response.status, await _read(response.content)
        except aiohttp.ClientError as error:
            # Not every one of them is an OSError: a connection that the agent closes is not.
            raise ConnectionError(str(error)) from error
        if raw.count(b"{") + raw.count(b"[") > MAX_REPLY_PARTS:
            return status, None
        try:
            return status, json.loads(raw)
        except (ValueError, RecursionError):
            return status, None


async def _read(content: aiohttp.StreamReader) -> bytes:
    """The body of a reply; nothing of one that is longer than it may be."""
    raw = b""
    async for part in content.iter_any():
        raw += part
        if len(raw) > MAX_REPLY_BYTES:
            return b""
    return raw


def _about_processes(processes: Sequence[Process], deadline_s: float, **rest: Any) -> dict[str, Any]:
    """The body of a question about these processes."""
    return {"processes": encode_processes(processes), "deadline_s": deadline_s, **rest}
