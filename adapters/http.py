"""One HTTP call, once: what was answered is a value, and so is everything that can go wrong on the way."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from lifecycle.core.errors import DETAIL_LIMIT

#: Bytes of an answer that are read; an engine's state fits in far less.
BODY_LIMIT = 16 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request. `status` is None where no whole answer came: `refused` (nobody listened, so it was
    never sent), `late` (no time was left), else the connection broke.
    """

    status: int | None
    body: bytes = b""
    error: str = ""
    refused: bool = False
    late: bool = False

    @property
    def ok(self) -> bool:
        """Whether it is a success: 2xx. A redirect is not."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def detail(self) -> str:
        """The beginning of what it said, any bytes, at most `DETAIL_LIMIT` of them; else what went wrong."""
        return self.body[:DETAIL_LIMIT].decode(errors="replace").strip() if self.status is not None else self.error

    def json(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class HttpClient:
    """Requests to one server. Every request has a connection of its own.

    A kept-alive connection that the server has closed meanwhile looks like a lost answer, and a lost answer to a call
    that must not be repeated costs an engine.
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
    ) -> Answer:
        """The answer to this request, sent once, within `deadline_s`; redirects are not followed."""
        if deadline_s <= 0:
            return Answer(None, error="no time was left to send it", refused=True, late=True)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
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
                limit = BODY_LIMIT if response.status < 300 else DETAIL_LIMIT
                return Answer(response.status, await _read(response, limit))
        except TimeoutError:
            return Answer(None, error=f"no answer in {deadline_s:.1f} s", late=True)
        except aiohttp.ClientConnectorError as error:
            return Answer(None, error=f"nobody listens ({error.os_error.strerror or error.os_error})", refused=True)
        except (aiohttp.ClientError, OSError) as error:
            return Answer(None, error=f"the connection broke ({str(error) or type(error).__name__})")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            no_limit = aiohttp.ClientTimeout(total=None, sock_connect=None)
            self._session = aiohttp.ClientSession(connector=connector, timeout=no_limit)
        return self._session

    async def aclose(self) -> None:
        """The connections are closed."""
        if self._session is not None:
            await self._session.close()


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size >= limit:
            break
    return b"".join(parts)[:limit]
