"""Actors as frameworks have them: slime's and miles' engine, on a loopback server that each starts itself.

What is called, with what, and from when until when (seconds of this host's monotonic clock) goes into a file.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from lifecycle.adapters.loopback import LoopbackProcess

#: What weights and KV cache of an engine hold, in MiB.
TAGS_MIB = 72

#: The most seconds for which a method hangs that was told to.
HANGS_S = 60.0


def calls(log: Path, *names: str) -> list[dict[str, Any]]:
    """The recorded calls of these methods (of all unless named), by when they began."""
    if not log.exists():
        return []
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return sorted((each for each in lines if not names or each["call"] in names), key=lambda each: each["begin"])


class Recorded:
    """An actor whose calls are recorded, and of which one method can be told to fail.

    `fault` is (method, kind): `raises`, `refuses`, `dies`, `times out` before it asks the server, or `hangs` until the
    file `FOLDER/go` is there.
    """

    def __init__(self, folder: str, number: int = 0, **server: Any) -> None:
        self.folder, self.number = Path(folder), number
        self.fault: tuple[str, str] = ("", "")
        self.server: LoopbackProcess | None = None
        if server.pop("starts", True):
            fast = ("--abort-poll-s", "0.02", *server.pop("arguments", ()))
            self.server = LoopbackProcess.start(weights_mib=TAGS_MIB, kv_mib=TAGS_MIB, arguments=fast, **server)

    def about(self) -> dict[str, Any]:
        """What the test is told: the pid of the actor, and where its server is."""
        if self.server is None:
            return {"pid": os.getpid()}
        return {
            "pid": os.getpid(),
            "url": self.server.url,
            "server": self.server.pid,
            "weights": str(self.server.weights),
        }

    def set_fault(self, method: str, kind: str) -> None:
        self.fault = (method, kind)

    def _record(self, name: str, begin: float, **given: Any) -> None:
        line = {"actor": self.number, "call": name, "begin": begin, "end": time.monotonic(), **given}
        with (self.folder / "calls").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _recorded(self, name: str, work: Callable[[], Any], **given: Any) -> Any:
        begin = time.monotonic()
        try:
            self._fail(name)
            return work()
        finally:
            self._record(name, begin, **given)

    def _fail(self, name: str) -> None:
        method, kind = self.fault
        if method != name:
            return
        (self.folder / f"in-{name}-{self.number}").touch()
        if kind == "dies":
            os._exit(1)
        if kind == "raises":
            raise RuntimeError("out of patience")
        if kind == "times out":
            raise requests.exceptions.ReadTimeout("read timed out")
        until = time.monotonic() + HANGS_S
        while kind == "hangs" and not (self.folder / "go").exists() and time.monotonic() < until:
            time.sleep(0.02)

    def _post(self, path: str, body: Any) -> Any:
        assert self.server is not None
        refused = self.fault == (path, "refuses")
        response = requests.post(f"{self.server.url}/{path}", json="no object" if refused else body)
        response.raise_for_status()
        return response


class SlimeEngine(Recorded):
    """The signatures of slime's SGLangEngine. A sync actor: one call at a time."""

    def get_url(self) -> str:
        def work() -> str:
            assert self.server is not None, "it is not started"
            return self.server.url

        return self._recorded("get_url", work)

    def pause_generation(self) -> Any:
        return self._recorded("pause_generation", lambda: self._post("pause_generation", {}))

    def continue_generation(self) -> Any:
        return self._recorded("continue_generation", lambda: self._post("continue_generation", {}))

    def flush_cache(self) -> None:
        self._recorded("flush_cache", self._flush)

    def release_memory_occupation(self) -> Any:
        return self._recorded("release_memory_occupation", lambda: self._post("release_memory_occupation", {}).json())

    def resume_memory_occupation(self, tags: list[str] | None = None) -> Any:
        def work() -> Any:
            return self._post("resume_memory_occupation", {"tags": tags}).json()

        return self._recorded("resume_memory_occupation", work, tags=tags)

    def update_weights_from_tensor(self, serialized_named_tensors: list[str], weight_version: str | None = None) -> Any:
        given = {"weight_version": weight_version}
        return self._recorded("update_weights_from_tensor", lambda: len(serialized_named_tensors), **given)

    def update_weights_from_distributed(self, names: list[str], weight_version: str | None = None) -> None: ...

    def _flush(self) -> None:
        assert self.server is not None
        for _ in range(60):
            if requests.get(f"{self.server.url}/flush_cache").status_code == 200:
                return
            time.sleep(1)
        raise TimeoutError("Timeout while flushing cache.")


class MilesEngine(Recorded):
    """The signatures of miles' SGLangEngine, with tags and modes, as an async actor: calls run beside each other."""

    async def get_topology_info(self) -> dict[str, Any]:
        assert self.server is not None
        return {"url": self.server.url, "node_rank": 0}

    async def pause_generation(self, mode: str = "retract") -> Any:
        return await self._in_thread("pause_generation", {"mode": mode}, mode=mode)

    async def continue_generation(self) -> Any:
        return await self._in_thread("continue_generation", {})

    async def flush_cache(self) -> None:
        await self._in_thread("flush_cache", {})

    async def release_memory_occupation(self, tags: list[str] | None = None) -> Any:
        return await self._in_thread("release_memory_occupation", {"tags": tags}, tags=tags)

    async def resume_memory_occupation(self, tags: list[str] | None = None) -> Any:
        return await self._in_thread("resume_memory_occupation", {"tags": tags}, tags=tags)

    async def update_weights_from_disk(
        self, model_path: str, load_format: str | None = None, weight_version: str | None = None
    ) -> Any:
        body = {"model_path": model_path, "weight_version": weight_version}
        return await self._in_thread("update_weights_from_disk", body, weight_version=weight_version)

    async def begin_weight_update(self, selector: str = "all") -> Any: ...

    async def end_weight_update(self) -> Any: ...

    async def update_weights_from_tensor(self, serialized_named_tensors: list[str]) -> Any: ...

    async def update_weights_from_distributed(self, names: list[str]) -> Any: ...

    async def _in_thread(self, name: str, body: Any, **given: Any) -> Any:
        def work() -> Any:
            answer = self._post(name, body)
            return answer.json() if answer.headers.get("content-type") == "application/json" else answer.text

        return await asyncio.to_thread(self._recorded, name, work, **given)


async def until(holds: Callable[[], Any], deadline_s: float = 20.0) -> None:
    """Returns once this holds, or once what it returns was awaited and holds; an error after the deadline."""
    async with asyncio.timeout(deadline_s):
        while True:
            found = holds()
            if await found if inspect.isawaitable(found) else found:
                return
            await asyncio.sleep(0.02)
