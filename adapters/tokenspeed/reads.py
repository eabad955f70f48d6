"""Reads of a tokenspeed server, and the questions that it always refuses, which tell that what was sent has ended."""

from __future__ import annotations

from lifecycle.core.deadline import Deadline

from ..http import BODY_LIMIT, Answer, HttpClient
from .answers import LIMITS, is_refusal
from .plan import RELEASE, RESTORE

SERVER_INFO, WEIGHT_VERSION, LOADS = "/get_server_info", "/get_weight_version", "/v1/loads"

#: A tag that no engine has. A release or restore of it is refused before anything else is looked at.
NO_TAG = "lifecycle-asks"

_INVALID = "invalid tags"
_NO_SAVER = "memory saver not enabled"


#: The calls that move memory: what was sent of each has ended once a refused one behind it is answered.
KINDS = (RELEASE, RESTORE)


class Reads:
    """The requests to one server that change nothing.

    `/get_server_info` comes from the engine by gRPC. `/get_weight_version` and `/v1/loads` come from its RL control
    app, which takes a key of its own.
    """

    def __init__(self, http: HttpClient, key: str | None, control_key: str | None) -> None:
        self._http = http
        self._key = key
        self._control_key = control_key

    async def get(self, path: str, deadline_s: float, *, fresh: bool = False) -> Answer:
        """The answer of a GET; `fresh`: over a new connection, so that a balancer may choose another server."""
        key = self._key if path == SERVER_INFO else self._control_key
        limit = LIMITS.get(path, BODY_LIMIT)
        return await self._http.request("GET", path, deadline_s=deadline_s, key=key, limit=limit, fresh=fresh)

    async def has_ended(self, name: str, deadline_s: float) -> bool:
        """Whether no release (or restore) that was sent before may still take effect.

        The front end sends one call of a kind at a time to the scheduler, in the order in which they came. So one that
        is refused is answered after every earlier one. Also where nothing listens any more none can take effect.
        """
        answer = await self._http.request(
            "POST",
            f"/{name}",
            deadline_s=deadline_s,
            repeatable=True,
            json_body={"tags": [NO_TAG]},
            key=self._control_key,
        )
        no_saver = name == RELEASE and is_refusal(answer, _NO_SAVER)
        return answer.nothing_listens or no_saver or is_refusal(answer, _INVALID)

    async def all_ended(self, clock: Deadline) -> bool:
        """Whether no release and no restore that was sent before may still take effect, and its scheduler has gone on.

        Both are asked twice: what replaces weights ends after the calls that came with it were answered. And requests
        that came before the first answer are, before the second, in the load that it hands to its publishing thread.
        """
        for name in (*KINDS, *KINDS):
            if not await self.has_ended(name, clock.left_s):
                return False
        return True
