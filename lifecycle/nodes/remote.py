"""Another host, asked through its agent."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ..core.readings import Process, Reading
from ..core.verdicts import Unmeasurable, Verdict
from .agent_protocol import PROTOCOL, holders_in, launched_in, processes_in, processes_out, reading_in, verdict_in
from .nvml import Scope
from .port import Free, Kind
from .process_env import Launched

#: The variable that holds the token, on both ends.
TOKEN = "LIFECYCLE_AGENT_TOKEN"

T = TypeVar("T")


class RemoteNode:
    """The host whose agent listens at `address` ("host:port"). `threshold_gib` is told to it with every reading."""

    def __init__(self, address: str, *, token: str | None = None, threshold_gib: float | None = None) -> None:
        self.address = address
        self._token = token
        self._threshold_gib = threshold_gib

    async def about(self, *, deadline_s: float) -> Mapping[str, Any] | Unmeasurable:
        """What the agent says of itself: version, node, threshold in force, driver, devices."""
        return await self._ask("about", {}, lambda told: dict(told), deadline_s)

    async def find(self, *, port: int, deadline_s: float) -> tuple[Process, ...] | Unmeasurable:
        """The topmost processes that listen on this port there."""
        return await self._ask("find", {"port": port}, self._processes, deadline_s)

    async def find_pid(self, *, pid: int, deadline_s: float) -> tuple[Process, ...] | Unmeasurable:
        """The process of this pid there, with its start time."""
        return await self._ask("find", {"pid": pid}, self._processes, deadline_s)

    async def any_alive(self, processes: Sequence[Process], *, deadline_s: float) -> bool | None:
        """Whether any of these very processes still exists there; None where the agent does not answer."""
        body = {"processes": processes_out(processes)}
        told = await self._ask("alive", body, lambda answer: bool(answer["alive"]), deadline_s)
        return None if isinstance(told, Unmeasurable) else told

    async def read(
        self, processes: Sequence[Process], *, kind: Kind, scope: Scope, deadline_s: float
    ) -> Reading | Unmeasurable:
        """What the trees below these processes hold there."""
        body = {
            "processes": processes_out(processes),
            "kind": kind,
            "scope": scope,
            "deadline_s": deadline_s,
            "threshold_gib": self._threshold_gib,
        }
        return await self._ask("residual", body, reading_in, deadline_s)

    async def hook_mode(self, processes: Sequence[Process], *, deadline_s: float) -> Verdict:
        """Whether the hook mode with which these trees were started is safe on their GPUs."""
        body = {"processes": processes_out(processes), "deadline_s": deadline_s}
        return await self._ask("hook_mode", body, verdict_in, deadline_s)

    async def launched(self, processes: Sequence[Process], *, deadline_s: float) -> tuple[Launched, ...] | Unmeasurable:
        """How every process of these trees was started there."""
        body = {"processes": processes_out(processes), "deadline_s": deadline_s}
        return await self._ask("launched", body, launched_in, deadline_s)

    async def free(
        self, devices: Sequence[str], processes: Sequence[Process], *, need_bytes: int, deadline_s: float
    ) -> Mapping[str, Free] | Unmeasurable:
        """What is free of each of these devices there."""
        body = {
            "devices": list(devices),
            "processes": processes_out(processes),
            "need_bytes": need_bytes,
            "deadline_s": deadline_s,
        }
        return await self._ask("free", body, _free_in, deadline_s)

    def _processes(self, told: Mapping[str, Any]) -> tuple[Process, ...]:
        return processes_in(told["processes"], node=str(told["node"]), agent=self.address)

    async def _ask(
        self, what: str, body: Mapping[str, Any], take: Callable[[Mapping[str, Any]], T], deadline_s: float
    ) -> T | Unmeasurable:
        try:
            async with asyncio.timeout(deadline_s):
                status, told = await self._post(what, body)
        except TimeoutError:
            return Unmeasurable(reason=f"the agent at {self.address} gave no answer in {deadline_s:.1f} s")
        except OSError as error:
            return Unmeasurable(
                reason=f"the agent at {self.address} cannot be reached ({error}); run `lifecycle agent` there"
            )
        refusal = self._refusal(status, told)
        if refusal is not None:
            return Unmeasurable(reason=refusal)
        try:
            return take(told)
        except (KeyError, TypeError, ValueError) as error:
            return Unmeasurable(reason=f"the agent at {self.address} gave an answer that means nothing ({error!r})")

    def _refusal(self, status: int, told: Any) -> str | None:
        who = f"the agent at {self.address}"
        if status in (401, 403):
            return f"{who} refuses the token; set {TOKEN} to the one that it was started with"
        if not isinstance(told, dict) or "protocol" not in told:
            return f"what listens at {self.address} is no lifecycle agent (it answered {status})"
        if told["protocol"] != PROTOCOL:
            return (
                f"{who} speaks protocol {told['protocol']} (engine-lifecycle {told.get('version', 'unknown')}), "
                f"and this is {PROTOCOL}; install the same version of engine-lifecycle on both"
            )
        return None if status == 200 else f"{who} answered {status}: {told.get('detail', 'no reason given')}"

    async def _post(self, what: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        import aiohttp  # only where an agent is asked: it takes 0.24 s

        token = self._token if self._token is not None else os.environ.get(TOKEN, "")
        headers = {"Authorization": f"Bearer {token}"}
        url = f"http://{self.address}/v1/{what}"
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(url, json=dict(body), allow_redirects=False) as response,
        ):
            raw = await response.content.read(1 << 22)
        try:
            return response.status, json.loads(raw)
        except ValueError:
            return response.status, None


def _free_in(told: Mapping[str, Any]) -> Mapping[str, Free] | Unmeasurable:
    if "unmeasurable" in told:
        return Unmeasurable(reason=str(told["unmeasurable"]))
    return {device: Free(int(each["free_bytes"]), holders_in(each["holders"])) for device, each in told["free"].items()}
