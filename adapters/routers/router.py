"""The client of a router's `/workers`: an engine is closed by removing its worker, and opened by adding it again.

`POST` and `DELETE` are queued (202) by sglang-router and smg, and a queued addition cannot be taken back. So whatever
is asked is confirmed by the listing, until the deadline:

- **closed** is a worker that is not listed any more, or that is listed as draining. Requests in flight end normally
  through the router after that. Source: sglang-router 0.3.2, smg 1.13.0, measured with streams of 10 s.
- **open** is a worker that is listed as healthy, with the settings that it had when it was removed.

The routers' health checks ask `/health`, which does harm to a paused SGLang. They ask a listed worker only, and none
that drains (measured on all three), so that an engine which is closed before it is paused is not asked.

A worker that is not listed may be one that the router knows by another URL. Only where that cannot be is it closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lifecycle.core.deadline import Deadline, growing
from lifecycle.core.errors import ConfigurationError, RouterError
from lifecycle.core.policy import positive
from lifecycle.core.ports import WorkerURL
from lifecycle.core.units import MIB
from lifecycle.nodes.address import Address

from ..http import Answer, HttpClient
from ..url_options import KEY_REFUSED, key_of
from .kept import Kept, KeptWorkers
from .workers import Worker, apart, changes, creation_of, listed, place_of

OPTIONS = ("api_key", "api_key_env", "worker_api_key", "worker_api_key_env", "deadline_s")

#: Seconds within which the router confirms, unless `deadline_s` says otherwise. Additions take 1 to 2 s, measured.
DEADLINE_S = 30.0

#: Seconds within which a router that lives answers a read.
READ_S = 10.0

#: The longest time between two reads of the listing.
POLL_S = 0.2

#: A worker of smg with its load takes 2.3 KB of the listing.
LISTING_LIMIT = 16 * MIB


#: In place of the id of an addition for which no answer came, or which was asked for elsewhere.
NO_ID = "?"


class WorkersRouter:
    """One router. Options of its URL:

    - `api_key_env`: the environment variable that holds its key. `api_key` gives the key itself.
    - `worker_api_key_env`, `worker_api_key`: the key that the router sends to workers; its own one unless given. No
      router tells the key that a worker had.
    - `deadline_s`: within which it confirms that a worker was removed or added.
    """

    #: Whether it counts the requests in flight of every worker under every policy.
    counts = False

    def __init__(self, address: Address) -> None:
        self._address = address.only(*OPTIONS)
        self._http = HttpClient(f"http://{address.authority}")
        self._key = key_of(address, "api_key")
        self._worker_key = key_of(address, "worker_api_key") or self._key
        self._deadline_s = _deadline(address)
        self._workers: dict[str, WorkerURL] = {}
        self._kept = KeptWorkers(address.authority)

    @property
    def url(self) -> str:
        """The address of the router, without keys."""
        return str(self._address)

    def knows(self, workers: Mapping[str, WorkerURL]) -> None:
        """These engines are workers of this router."""
        self._workers |= workers

    async def check(self, engines: Sequence[str]) -> None:
        """The router lists its workers, and each of these engines is one of them, or certainly none."""
        self._refuse_unknown(engines, await self._list(READ_S))

    async def close(self, engines: Sequence[str]) -> None:
        """Removes the workers of these engines; each was listed no more, or as draining.

        RouterError, before any is removed, where one may be listed by another URL.
        """
        clock, asked, first = Deadline(self._deadline_s), set[str](), True
        for wait_s in growing(POLL_S):
            workers = await self._list(clock.left_s)
            if first:
                self._refuse_unknown(engines, workers)
            first = False
            mine = {name: self._of(name, workers) for name in engines}
            open_ = {name: [each for each in found if not each.draining] for name, found in mine.items()}
            adding = [name for name, found in mine.items() if not found and await self._is_adding(name, clock)]
            left = [*(name for name, found in open_.items() if found), *adding]
            if not left:
                return
            removing = []
            for name, found in open_.items():
                new = [each for each in found if each.path not in asked]
                if new:
                    self._keep(name, Kept(dict(new[0].entry), closed=True))
                removing += new
            asked |= {each.path for each in await _those(self._remove(each, clock.left_s) for each in removing)}
            if clock.left_s == 0:
                raise self._error(
                    f"{', '.join(left)} {'is' if len(left) == 1 else 'are'} not removed after {self._deadline_s:g} s"
                    f"{self._being_added(adding)}. It may still be; see GET /workers, and the router's log"
                )
            await asyncio.sleep(min(wait_s, clock.left_s))

    async def open(self, engines: Sequence[str]) -> None:
        """Adds the workers of these engines with the settings that they had; each is listed as healthy again.

        One that is listed is left as it is. One of which nothing is known is added with the router's defaults;
        RouterError where it may be listed by another URL, since it would be a worker twice then.
        """
        clock, asked, refused = Deadline(self._deadline_s), set[str](), dict[str, str]()
        for wait_s in growing(POLL_S):
            workers = await self._list(clock.left_s)
            left = [name for name in engines if not self._serves(name, workers)]
            if not left:
                break
            missing = [name for name in left if not self._of(name, workers)]
            self._refuse_unknown(missing, workers)
            for name in missing:
                if name in refused:
                    raise self._error(f"it does not add {name}: {refused[name]}")
            if clock.left_s == 0:
                raise self._error(
                    f"after {self._deadline_s:g} s it does not list as healthy {', '.join(left)}"
                    f"{await self._why(left)}. It may still come about; does the router reach the engine?"
                )
            new = [name for name in missing if name not in asked]
            added = await asyncio.gather(*(self._add(name, workers, clock.left_s) for name in new))
            refused |= {name: why for name, why in zip(new, added, strict=True) if why}
            asked |= set(new)
            await asyncio.sleep(min(wait_s, clock.left_s))
        self._confirm(engines, workers, asked)

    async def is_open(self, engine: str) -> bool | None:
        """Whether a worker of this engine is listed, and not as draining; None where that cannot be told.

        An unhealthy one counts: the router sends to it again once its health check succeeds.
        """
        try:
            workers = await self._list(READ_S)
        except RouterError:
            return None
        mine = self._of(engine, workers)
        if mine:
            return not all(each.draining for each in mine)
        uncertain = self._kept.load(self._place(engine)).adding is not None or not self._is_no_worker(engine, workers)
        return None if uncertain else False

    async def in_flight(self, engine: str) -> int | None:
        """Requests in flight, as the listing has them; None where the router does not count them.

        smg counts all. sglang-router and vllm-router count under the policy cache_aware only, and say 0 under others,
        so that their 0 is not believed. None counts those of a worker that was removed. Source: sglang-router 0.3.2,
        smg 1.13.0, vllm-router 0.1.17, measured.
        """
        try:
            mine = self._of(engine, await self._list(READ_S))
        except RouterError:
            return None
        loads = [each.load for each in mine]
        count = sum(load for load in loads if load is not None)
        return None if not loads or None in loads or (count == 0 and not self.counts) else count

    async def aclose(self) -> None:
        """Closes the connections. The router is left as it is."""
        await self._http.aclose()

    # which worker an engine is

    def _place(self, engine: str) -> str:
        return place_of(self._worker(engine).url)

    def _worker(self, engine: str) -> WorkerURL:
        if engine not in self._workers:
            raise self._error(f"it was not told at which URL it reaches {engine}; give its fleet this router")
        return self._workers[engine]

    def _of(self, engine: str, workers: Iterable[Worker]) -> list[Worker]:
        place = self._place(engine)
        return [each for each in workers if place_of(each.url) == place]

    def _serves(self, engine: str, workers: Iterable[Worker]) -> bool:
        mine = self._of(engine, workers)
        return bool(mine) and all(each.healthy for each in mine)

    def _is_no_worker(self, engine: str, workers: Iterable[Worker]) -> bool:
        """Whether an engine that is not listed is no worker by another URL either.

        It is none where its URL is given, or it was removed by that; and where every listed worker is another engine.
        """
        if self._worker(engine).exact or self._kept.load(self._place(engine)).closed:
            return True
        return {place_of(each.url) for each in workers} <= {self._place(name) for name in self._workers}

    def _refuse_unknown(self, engines: Sequence[str], workers: Collection[Worker]) -> None:
        unknown = [each for each in engines if not self._of(each, workers) and not self._is_no_worker(each, workers)]
        if unknown:
            urls = ", ".join(f"{name} ({self._worker(name).url})" for name in unknown)
            raise self._error(
                f"it does not list {urls}, and may have it under another URL: it lists "
                f"{', '.join(each.url for each in workers)}. Give the engine's URL the option worker= with the URL by "
                "which the router reaches it"
            )

    # requests

    async def _list(self, left_s: float) -> tuple[Worker, ...]:
        """The workers that are listed now."""
        answer = await self._ask("GET", "/workers", left_s)
        workers = listed(answer.json()) if answer.ok else None
        if workers is None:
            said = answer.status if not answer.ok else f"what lists no workers ({answer.detail[:80]!r})"
            why = "this is no router that this library knows; is its URL that of an engine?"
            raise self._error(f"GET /workers answered {said}: {why}")
        return workers

    async def _remove(self, worker: Worker, left_s: float) -> Worker | None:
        """The worker where its removal was accepted, or it is not there; None where no answer came."""
        answer = await self._ask("DELETE", worker.path, left_s, repeatable=True, silent=True)
        if answer.status is None:
            return None
        if not answer.ok and answer.status != 404:
            raise self._error(f"it does not remove {worker.url}: {answer.status} {answer.detail}")
        return worker

    async def _add(self, engine: str, workers: Collection[Worker], left_s: float) -> str:
        """Asks for the addition; returns why it was refused, else nothing. Whether it came about the listing says."""
        kept = self._kept.load(self._place(engine))
        if kept.worker is None and apart(workers):
            raise self._error(
                f"it has prefill and decode workers, and of {engine} is not known which it was: add it by "
                f"POST /workers with its worker_type, as {self._worker(engine).url}"
            )
        body = {"url": _http(self._worker(engine).url)} if kept.worker is None else creation_of(kept.worker)
        if self._worker_key is not None:
            body["api_key"] = self._worker_key
        self._keep(engine, replace(kept, adding=NO_ID))
        answer = await self._ask("POST", "/workers", left_s, body=body, silent=True)
        if answer.status in (None, 409):  # it may have been sent, or another addition is under way
            return ""
        found = answer.json() if answer.ok else None
        name = found.get("worker_id") if isinstance(found, dict) else None
        self._keep(engine, replace(kept, adding=str(name or NO_ID) if answer.ok else None))
        return "" if answer.ok else f"{answer.status} {answer.detail}"

    async def _ask(
        self,
        method: str,
        path: str,
        left_s: float,
        *,
        body: Any = None,
        repeatable: bool | None = None,
        silent: bool = False,
    ) -> Answer:
        """One request. RouterError where the key is refused or nothing listens; else also where no answer came.

        With `silent` an answer that did not come is returned as it is.
        """
        answer = await self._http.request(
            method,
            path,
            deadline_s=max(left_s, 0.05),
            json_body=body,
            key=self._key,
            repeatable=repeatable,
            limit=LISTING_LIMIT,
        )
        if answer.refused:
            raise self._error(f"nothing listens there ({answer.error}): start it, or correct its URL")
        if answer.status is None and not silent:
            raise self._error(f"{method} {path}: {answer.error}; is it up?")
        if answer.status in KEY_REFUSED:
            raise self._error(f"it refuses the key ({answer.status}): give its URL api_key_env=NAME")
        return answer

    # additions that were not confirmed

    async def _is_adding(self, engine: str, clock: Deadline) -> bool:
        """Whether an addition that was asked for here may still come about, so that the worker is not closed."""
        kept = self._kept.load(self._place(engine))
        if kept.adding is None:
            return False
        status = await self._status(kept.adding, clock.left_s)
        if status is None or (status.get("job_type"), status.get("status")) != ("AddWorker", "failed"):
            return True
        self._keep(engine, replace(kept, adding=None))
        return False

    async def _status(self, worker_id: str, left_s: float) -> Mapping[str, Any] | None:
        """How far the last job of this worker is, as the router says; None where it does not say."""
        if worker_id == NO_ID:
            return None
        answer = await self._ask("GET", f"/workers/{worker_id}", left_s)
        if answer.status == 404:  # it was added, and somebody removed it
            return {"job_type": "AddWorker", "status": "failed", "message": "it is not known any more"}
        body = answer.json()
        status = body.get("job_status") if isinstance(body, dict) else None
        return status if isinstance(status, dict) else None

    async def _why(self, engines: Sequence[str]) -> str:
        """What the router says of additions that it does not confirm."""
        said = []
        for name in engines:
            status = await self._status(self._kept.load(self._place(name)).adding or NO_ID, READ_S)
            if status is not None:
                said.append(f"{name}: {status.get('status')} {status.get('message') or ''}".strip())
        return f" ({'; '.join(said)})" if said else ""

    def _being_added(self, adding: Sequence[str]) -> str:
        return f" ({', '.join(adding)}: an addition that it has not confirmed is still queued)" if adding else ""

    def _confirm(self, engines: Sequence[str], workers: Sequence[Worker], added: Collection[str]) -> None:
        """Each engine's addition has ended. RouterError where one that was added is not what it was."""
        wrong = []
        for name in engines:
            kept = self._kept.load(self._place(name))
            if kept.adding is not None or kept.closed:
                self._keep(name, replace(kept, adding=None, closed=False))
            if name in added and kept.worker is not None:
                now = self._of(name, workers)[0].entry
                wrong += [f"{name}: {each}" for each in changes(kept.worker, now)]
        if wrong:
            raise self._error(f"a worker was added again, and is not as it was: {'; '.join(wrong)}")

    def _keep(self, engine: str, kept: Kept) -> None:
        self._kept.save(self._place(engine), kept)

    def _error(self, why: str) -> RouterError:
        return RouterError(f"the router {self.url}: {why}")


class SGLangRouter(WorkersRouter):
    """sglang-router. Measured: 0.3.2."""


class SMGRouter(WorkersRouter):
    """smg, in which sglang-router goes on. Measured: 1.13.0."""

    counts = True


class VLLMRouter(WorkersRouter):
    """vllm-router, which answers once a worker was removed or added. Measured: 0.1.17."""


async def _those(asking: Iterable[Awaitable[Worker | None]]) -> list[Worker]:
    return [each for each in await asyncio.gather(*asking) if each is not None]


def _http(url: str) -> str:
    """An engine's URL as a router takes it."""
    scheme, _, rest = url.partition("://")
    return url if scheme in ("http", "https", "grpc", "grpcs") else f"http://{rest}"


def _deadline(address: Address) -> float:
    given = address.options.get("deadline_s", str(DEADLINE_S))
    try:
        return positive("deadline_s", float(given))
    except ValueError:
        raise ConfigurationError(f"{address}: deadline_s must be a finite number > 0, got {given!r}") from None
