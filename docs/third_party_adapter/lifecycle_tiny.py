"""An adapter for the tiny engine: its requests, declared as verbs. `tiny://HOST:PORT` is a URL of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lifecycle.adapters.declared import About, DeclaredAdapter, Verb, Verbs
from lifecycle.adapters.http import HttpClient

from lifecycle.nodes.address import Address

#: Bytes of each tag. An engine that tells them is asked; of one that does not, the first proved release measures them.
SIZES = {"weights": 96 << 20, "kv": 96 << 20}


class Refused(Exception):
    """The engine answered with an error: it refused, and nothing has changed."""


class TinyAdapter(DeclaredAdapter):
    """Drives one tiny engine. Options of its URL: `pid` and `agent`, which say where its processes are."""

    def __init__(self, address: Address) -> None:
        self._http = HttpClient(f"http://{address.only('pid', 'agent').authority}")
        harmless = {"repeatable": True, "refusal_is_untouched": True}
        verbs = Verbs(
            pause={"abort": Verb(call=self.pause, **harmless)},
            resume=Verb(call=self.resume, **harmless),
            release=Verb(call=self.free, effects={"weights": "discarded", "kv": "discarded"}, **harmless),
            restore=Verb(call=self.restore, effects={"weights": "resident", "kv": "resident"}, drops_cache=True),
            load=Verb(call=self.load, repeatable=True, drops_cache=True),
            admission=self.admission,
            running=self.running,
            boot=self.boot,
            label=self.label,
            answer=self.answer,
            barrier=self.boot,
        )
        about = About(engine="tiny", version="1", device="cpu", sizes=SIZES)
        options = "&".join(f"{name}={value}" for name, value in address.options.items())
        super().__init__(str(address), verbs, processes=f"{address}?{options}", about=about)

    # verbs: what changes the engine

    async def pause(self, deadline_s: float) -> Any:
        return await self._post("pause", deadline_s)

    async def resume(self, deadline_s: float) -> Any:
        return await self._post("resume", deadline_s)

    async def free(self, tags: Sequence[str], deadline_s: float) -> Any:
        return await self._post("free", deadline_s, tags=list(tags))

    async def restore(self, tags: Sequence[str], deadline_s: float) -> Any:
        return await self._post("restore", deadline_s, tags=list(tags))

    async def load(self, path: str, version: str, deadline_s: float) -> Any:
        return await self._post("load", deadline_s, file=path, version=version)

    # questions: what changes nothing

    async def admission(self, deadline_s: float) -> str:
        return "open" if (await self._post("status", deadline_s))["open"] else "closed"

    async def running(self, deadline_s: float) -> int:
        return int((await self._post("status", deadline_s))["running"])

    async def boot(self, deadline_s: float) -> str:
        return str((await self._post("status", deadline_s))["started"])

    async def label(self, deadline_s: float) -> str:
        return str((await self._post("status", deadline_s))["version"])

    async def answer(self, text: str, tokens: int, deadline_s: float) -> Any:
        return await self._post("generate", deadline_s, prompt=text, tokens=tokens)

    async def aclose(self) -> None:
        """Closes the connections; the engine is left as it is."""
        await self._http.aclose()

    async def _post(self, name: str, deadline_s: float, **body: Any) -> Any:
        answer = await self._http.request("POST", f"/{name}", deadline_s=deadline_s, json_body=body)
        if answer.status is None:
            raise ConnectionError(answer.error)  # it may have run, or run still
        if not answer.ok:
            raise Refused(answer.detail)
        return answer.json()
