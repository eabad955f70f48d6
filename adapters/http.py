"""HTTP requests to one server, each sent exactly once. The response is a value, and so is every failure on the way."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from lifecycle.core.errors import DETAIL_LIMIT
from lifecycle.core.units import MIB, mib

#: The most bytes of a response body, unless the caller gives more: a control answer fits in far less.
BODY_LIMIT = MIB

#: The most objects and lists in a body that is parsed. Each takes some 64 bytes of memory and 3 bytes of the body.
MOST_CONTAINERS = 50_000


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to one request, or the reason why there is none.

    `status` is None where no complete response arrived. `refused` then says that the request was never sent: no
    process listened on the port, or no time was left to send it. `late` says that the deadline passed. Where neither is
    set, the connection broke.
    """

    status: int | None
    body: bytes = b""
    error: str = ""
    refused: bool = False
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
    """Sends requests to one server, each on a new connection.

    A kept-alive connection that the server has closed meanwhile looks like a lost response. After a lost response to a
    call that must not be sent twice, the contents of the engine are unknown.
    """

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        deadline_s: float,
        json_body: Any = None,
        params: Mapping[str, str] | None = None,
        key: str | None = None,
        limit: int = BODY_LIMIT,
    ) -> Answer:
        """Sends the request once and returns the response, within `deadline_s`. Redirects are not followed.

        A response whose body has more than `limit` bytes counts as none. Of an error only the beginning is read.
        """
        if deadline_s <= 0:
            return Answer(None, error="no time was left to send it", refused=True, late=True)
        headers = {"Accept-Encoding": "identity"}  # a compressed body may be any size
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        data = None
        if json_body is not None:
            headers["Content-Type"] = "application/json"
            data = io.BytesIO(json.dumps(json_body).encode())
        try:
            async with (
                asyncio.timeout(deadline_s),
                self._open().request(
                    method,
                    self.base_url + path,
                    data=data,
                    params=params,
                    headers=headers,
                    allow_redirects=False,
                ) as response,
            ):
                if response.status >= 300:
                    return Answer(response.status, (await read_body(response, DETAIL_LIMIT))[:DETAIL_LIMIT])
                body = await read_body(response, limit)
                if len(body) > limit:
                    return Answer(None, error=f"its answer has more than {mib(limit)}, too much for {path}")
                return Answer(response.status, body)
        except TimeoutError:
            return Answer(None, error=f"no answer in {deadline_s:.1f} s", late=True)
        except aiohttp.ClientConnectorError as error:
            return Answer(None, error=f"could not connect: {error.os_error.strerror or error.os_error}", refused=True)
        except (aiohttp.ClientError, OSError) as error:
            return Answer(None, error=f"the connection broke ({str(error) or type(error).__name__})")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            no_limit = aiohttp.ClientTimeout(total=None, sock_connect=None)
            self._session = aiohttp.ClientSession(connector=connector, timeout=no_limit, auto_decompress=False)
        return self._session

    async def aclose(self) -> None:
        """Closes the HTTP session."""
        if self._session is not None:
            await self._session.close()


def parsed(body: bytes) -> Any:
    """A body parsed as JSON; None where it is not valid JSON, or too much of it."""
    if body.count(b"{") + body.count(b"[") > MOST_CONTAINERS:
        return None
    try:
        return json.loads(body, parse_constant=lambda constant: None)
    except (ValueError, RecursionError):
        return None


async def read_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body of a response; of one that is longer than `limit`, more than that many bytes."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > limit:
            break
    return b"".join(parts)
