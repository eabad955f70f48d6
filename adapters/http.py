"""HTTP requests to one server. The response is a value, and so is every failure on the way."""

from __future__ import annotations

import asyncio
import errno
import io
import json
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from lifecycle.core.errors import DETAIL_LIMIT
from lifecycle.core.units import MIB, mib

from .connections import KEPT_S, RECENT_S, Broken, Shared, Use

#: The most bytes of a response body, unless the caller gives more: a control answer fits in far less.
BODY_LIMIT = MIB

#: The most bytes of a body that aiohttp sends at once; more is sent in parts, so that the event loop goes on meanwhile.
SMALL = 1 << 16

#: The most objects and lists in a body that is parsed. Each takes some 64 bytes of memory and 3 bytes of the body.
MOST_CONTAINERS = 50_000

#: Parses JSON, with None for NaN and infinity.
_JSON = json.JSONDecoder(parse_constant=lambda constant: None)


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to one request, or the reason why there is none.

    `status` is None where no complete response arrived. `refused` then says that the request was never sent: it could
    not connect, or no time was left to send it. `nothing_listens` says that the host refused the connection, as it does
    where no process listens on the port. `late` says that the deadline passed. Where none is set, the connection broke.
    """

    status: int | None
    body: bytes = b""
    error: str = ""
    refused: bool = False
    nothing_listens: bool = False
    late: bool = False

    @property
    def ok(self) -> bool:
        """Whether the status is a success (2xx). A redirect is not."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def detail(self) -> str:
        """At most the first `DETAIL_LIMIT` bytes of the body, decoded; without a response, the error."""
        return self.body[:DETAIL_LIMIT].decode(errors="replace").strip() if self.status is not None else self.error

    def json(self) -> Any:
        """The body parsed as JSON, with None for NaN and infinity; None where it is not valid JSON, or too much of it.

        A body is too much where it nests deeper than the parser goes, or has more than `MOST_CONTAINERS` parts.
        """
        return parsed(self.body)


class HttpClient:
    """Sends requests to one server, over connections that are kept.

    A server closes an idle connection at a moment of its own. A request that meets that moment has no answer, as if it
    had run and its answer had been lost, and then the contents of an engine may be unknown. So a call that must not be
    sent twice goes over a new connection, or over one that answered within `RECENT_S`, and is sent once whatever
    happens. Other calls and reads use whichever is kept, and are sent once more where that one had ended.
    """

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url.rstrip("/")
        self._urls: dict[str, URL] = {}

    async def request(
        self,
        method: str,
        path: str,
        *,
        deadline_s: float,
        repeatable: bool | None = None,
        fresh: bool = False,
        json_body: Any = None,
        params: Mapping[str, str] | None = None,
        key: str | None = None,
        limit: int = BODY_LIMIT,
    ) -> Answer:
        """Sends the request and returns the response, within `deadline_s`. Redirects are not followed.

        A `repeatable` one is sent a second time, over a new connection, where a kept one ended without a byte of an
        answer. A GET is repeatable unless it is said not to be, and nothing else is unless it is said to be. A `fresh`
        one goes over a new connection.

        A response whose body has more than `limit` bytes counts as none. Of an error only the beginning is read.
        """
        if deadline_s <= 0:
            return Answer(None, error="no time was left to send it", refused=True, late=True)
        if repeatable is None:
            repeatable = method == "GET"
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        body = None
        if json_body is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(json_body).encode()
        sent_before = False
        try:
            async with asyncio.timeout(deadline_s):
                shared, server = await Shared.of(self, self.base_url)
                use = Use(server, None if fresh else KEPT_S if repeatable else RECENT_S)
                while True:
                    data = body if body is None or len(body) <= SMALL else io.BytesIO(body)
                    options = {"data": data, "params": params, "headers": headers}
                    try:
                        async with await shared.use(use, method, self._url(path), **options) as response:
                            return await _answer(response, path, limit)
                    except Broken:
                        if not (repeatable and use.stale and self in server.clients):  # not after `aclose`
                            raise
                    use, sent_before = Use(server, idle_s=None), method != "GET"
        except TimeoutError:
            return Answer(None, error=f"no answer in {deadline_s:.1f} s", late=True)
        except aiohttp.ClientConnectorError as error:
            why = f"could not connect: {error.os_error.strerror or error.os_error}"
            if sent_before:
                return Answer(None, error=f"the connection broke, and then it {why}")
            return Answer(None, error=why, refused=True, nothing_listens=error.os_error.errno == errno.ECONNREFUSED)
        except (aiohttp.ClientError, OSError) as error:
            return Answer(None, error=f"the connection broke ({str(error) or type(error).__name__})")

    def _url(self, path: str) -> URL:
        """The URL of this path, which is parsed once."""
        text = self.base_url + path
        url = self._urls.get(text)
        if url is None:
            url = self._urls[text] = URL(text)
        return url

    async def aclose(self) -> None:
        """Closes the connections to this server, unless another client in this event loop has the same address."""
        await Shared.leave(self, self.base_url)


async def _answer(response: aiohttp.ClientResponse, path: str, limit: int) -> Answer:
    if response.status >= 300:
        return Answer(response.status, (await read_body(response, DETAIL_LIMIT))[:DETAIL_LIMIT])
    body = await read_body(response, limit)
    if len(body) > limit:
        return Answer(None, error=f"its answer has more than {mib(limit)}, too much for {path}")
    return Answer(response.status, body)


async def together(*asks: Coroutine[Any, Any, Answer]) -> list[Answer]:
    """The answers to these requests, which are made at once. One alone is made in this task."""
    if len(asks) == 1:
        return [await asks[0]]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in asks]
    return [task.result() for task in tasks]


def parsed(body: bytes) -> Any:
    """A body parsed as JSON; None where it is not valid JSON, or too much of it.

    It is UTF-8, in which JSON is sent. Source: RFC 8259, section 8.1.
    """
    if len(body) > MOST_CONTAINERS and body.count(b"{") + body.count(b"[") > MOST_CONTAINERS:
        return None
    try:
        return _JSON.decode(body.decode(errors="surrogatepass"))
    except (ValueError, RecursionError):
        return None


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body of a response; of one that is longer than `limit`, more than that many bytes."""
    if response.content.is_eof():  # all of it has come with the head
        return response.content.read_nowait(limit + 1)
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > limit:
            break
    return b"".join(parts)
