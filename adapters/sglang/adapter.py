"""The adapter: one HTTP request for each call, and reads that change nothing on the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from lifecycle.core.calls import Call, Reply
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command
from lifecycle.core.deadline import Deadline
from lifecycle.core.errors import ConfigurationError, NothingListens
from lifecycle.core.facts import Fact, Facts, Grade
from lifecycle.core.observation import Observation, Probe
from lifecycle.core.readings import Process
from lifecycle.core.requests import RequestCounts
from lifecycle.core.verdicts import NotApplicable, Pending, Proved, Refuted, Verdict
from lifecycle.nodes.address import Address
from lifecycle.nodes.locate import ended, find_processes
from lifecycle.nodes.processes import is_alive
from lifecycle.nodes.trees import with_all_below
from lifecycle.rules.identity import boot_identity

from ..http import Answer, HttpClient
from ..url_options import choice_of, key_of
from .answers import LIMITS, generated, server_info, weights_label, whole, why_not
from .capabilities import boot_of, capabilities_of, counts_requests_alone, sizes_of
from .checksums import by_role, of_engine
from .counts import SETTLED_S, request_counts
from .idle import Idle
from .plan import CLOSE_PUSH, NO_SESSION, close_push, explained, plan, push
from .reads import Reads, in_turn, together

OPTIONS = ("api_key", "admin_api_key", "api_key_env", "admin_api_key_env", "pid", "agent", "tags", "sizes", "checksum")

#: Seconds within which a live server answers a read that does not depend on its load.
READ_S = 10.0

#: What reads of the server tell. Which tags are released none does.
OBSERVABLE = frozenset({Fact.BOOT, Fact.ADMISSION, Fact.CLOSED, Fact.RUNNING, Fact.CONTENTS})

#: Seconds for which the answer that connect() was given serves the first observation.
YOUNG_S = 2.0

#: Seconds that a generate request may take before the adapter checks whether it only waits in the queue.
#: Source: sglang 0.5.23, measured: 33 s behind four kept requests of 600 tokens on a server that runs four at once.
QUEUED_S = 2.0


class SGLangAdapter:
    """Drives one SGLang server. Options of its URL:

    - `api_key_env`, `admin_api_key_env`: the environment variables that hold the keys. `api_key` and `admin_api_key`
      give the keys themselves.
    - `pid`: the server's process, where the one that listens on the port is not it.
    - `agent`: HOST:PORT of the agent on the server's node.
    - `tags`: the tags to release, separated by commas; weights,kv_cache unless given.
    - `sizes`: TAG:BYTES,... for each rank, where the figures of `/server_info` are wrong.
    - `checksum=true`: weights are compared by checksum. Every load then reads all weights twice.
    """

    #: The versions of SGLang on which this adapter was measured.
    measured_on = ("0.5.23",)
    #: A GET of this path while the server is paused makes `/ready` and `/ping` answer 503, until one succeeds.
    poisoned_by = "/health"

    def __init__(self, address: Address) -> None:
        self._address = address.only(*OPTIONS)
        self._http = HttpClient(f"http://{address.authority}")
        self._key = key_of(address, "api_key")
        self._reads = Reads(self._http, self._key)
        self._admin_key = key_of(address, "admin_api_key") or self._key
        self._idle = Idle(self._http, self._reads, self._admin_key)
        self._checksums = choice_of(address, "checksum", ("false", "true")) == "true"
        self._sizes = sizes_of(address)
        self._capabilities: Capabilities | None = None
        self._disaggregated = False
        self._has_metrics = False
        self._own_identity = ""
        self._processes: tuple[Process, ...] | None = None
        self._family: tuple[Process, ...] = ()
        self._were_found = False
        #: What was answered at connect and when, until the first observation after it, which it serves.
        self._at_connect: tuple[Answer, Mapping[str, Any], float] | None = None

    @property
    def url(self) -> str:
        """The address of the server, without its keys."""
        return str(self._address)

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """Reads the server's capabilities, and finds its processes, so that its exit can be distinguished from silence.

        Raises ConfigurationError where no SGLang server answers there, or where it refuses a key.
        """
        clock = Deadline(deadline_s)
        answer, early = await together(self._reads.get("/server_info", clock.left_s), self._found_early(clock))
        info = server_info(answer)
        if info is None:
            kind = NothingListens if answer.refused else ConfigurationError
            raise kind(f"{self.url}: {why_not(answer)}")
        # An abort without a body passes the key check of the control endpoints and is then refused with 400. A version
        # that accepted it would abort nothing, since it names no request.
        control = await self._http.request("POST", "/abort_request", deadline_s=clock.left_s, key=self._admin_key)
        if control.status in (401, 403):
            raise ConfigurationError(f"{self.url}: the control endpoints refuse the key; give admin_api_key_env=NAME")
        self._disaggregated = info.get("disaggregation_mode") not in (None, "null")
        self._has_metrics = info.get("enable_metrics") is True
        self._idle.dp_size = whole(info.get("dp_size")) or 1
        self._idle.counts_requests_alone = counts_requests_alone(info)
        observable = OBSERVABLE | ({Fact.CHECKSUM} if self._checksums else frozenset())
        self._capabilities = replace(capabilities_of(info, self._tags(), self._sizes), observable=observable)
        self._own_identity = boot_of(info)
        if early and all(is_alive(each) for each in early[0]):
            self._processes, self._family = early
        else:
            await self._has(await find_processes(self._address, deadline_s=clock.left_s))
        self._were_found = bool(self._processes)
        self._at_connect = answer, info, time.monotonic()
        return self._capabilities

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """The calls of a command, in order; `send` makes each of them one request."""
        return plan(command, facts, self._known())

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """One call of a push: `how` is `tensor` or `distributed`."""
        return push(how, args, version)

    def close_push_call(self) -> Call:
        """Closes the session of a push that failed."""
        return close_push(self._known())

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Sends one request, once. `success: false` in a 200 counts as a refusal."""
        if call.name == "await_idle":
            return await self._idle.awaited(deadline_s)
        if Fact.ADMISSION in call.effect:  # another pause, or none: what ran may run again
            self._idle.found_at_s = None
        closes = call.name == CLOSE_PUSH
        path, body = "/end_weight_update" if closes else f"/{call.name}", dict(call.args)
        answer = await self._http.request(
            "POST", path, deadline_s=deadline_s, repeatable=call.repeatable, json_body=body, key=self._admin_key
        )
        if answer.status is None:
            return Reply("lost", detail=answer.error, refused=answer.refused, late=answer.late)
        value = answer.json()
        refused = isinstance(value, dict) and value.get("success") is False
        if closes and refused and NO_SESSION in answer.detail:
            return Reply("done", status=answer.status, detail=answer.detail)
        if not answer.ok or refused:
            return Reply("rejected", status=answer.status, detail=explained(call, answer.detail))
        return Reply("done", status=answer.status, value=value)

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """Makes the reads that tell what is wanted, all at once. Never reads `/health`.

        `/server_info` passes through the scheduler and tells the boot. `/ready` tells whether it is open, with `/ping`
        that it says itself that it is closed. `/model_info` has the label, `/v1/loads` the requests. An answer that
        connect() would refuse is silence, and never another process; without an answer nothing else counts.
        """
        whole_s, clock = Deadline(deadline_s), Deadline(min(deadline_s, READ_S))
        end = time.monotonic() + clock.total_s
        run = together if self._at_connect is None else in_turn  # a connection costs more than an answer
        said, traffic, model = await run(
            self._server_info(clock) if Fact.BOOT in want or not want & OBSERVABLE else None,
            self._reads.traffic(want, end) if want & {Fact.ADMISSION, Fact.RUNNING} else None,
            self._reads.get("/model_info", clock.left_s) if Fact.CONTENTS in want else None,
        )
        ready, admission, running = traffic or (None, None, None)
        answer, info = said or (None, None)
        if answer is not None and info is None:
            return await self._unanswered(answer, clock)
        silent = next((each for each in (model, ready) if each is not None and each.status is None), None)
        if silent is not None and info is None:
            return await self._unanswered(silent, clock)
        parts: dict[str, Any] = {"admission": admission, "running": running}
        if info is not None:
            parts["boot"] = await self._boot(boot_of(info), clock)
        if model is not None:
            parts["weights_label"] = weights_label(model)
        if Fact.CHECKSUM in want and self._checksums:
            parts |= await self._checksums_now(whole_s.left_s)
        return Observation(alive=True, sampled_at=time.monotonic(), **parts)

    async def boot_anew(self, *, deadline_s: float) -> Observation:
        """The boot that `/server_info` tells over a new connection."""
        clock = Deadline(min(deadline_s, READ_S))
        answer = await self._reads.get("/server_info", clock.left_s, fresh=True)
        info = server_info(answer)
        if info is None:
            return await self._unanswered(answer, clock)
        return Observation(boot=await self._boot(boot_of(info), clock), alive=True, sampled_at=time.monotonic())

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """Proved where `/flush_cache` answers 200, which needs an idle scheduler. Drops the prefix cache.

        Requests that a retract has put back into the queue do not count. Source: sglang 0.5.23, measured.
        """
        return await self._idle.flushed(None, deadline_s)

    async def idle_within(self, facts: Facts, *, wait_s: float, deadline_s: float) -> Verdict:
        """As `prove_idle`. The scheduler holds `/flush_cache?timeout=` back until it is idle, or the time has passed.

        Not after a retract: such a flush waits for the queue to empty, which a paused scheduler never does. Nor with
        several data-parallel ranks, of which only the first waits. Source: sglang 0.5.23, measured.
        """
        waits = self._idle.dp_size == 1 and facts.paused_by in ("abort", "wait") and deadline_s > 2 * wait_s
        return await self._idle.flushed(wait_s if waits else None, deadline_s)

    async def barrier(self, *, deadline_s: float) -> bool:
        """True once `/server_info` has answered. It queues behind everything sent to the scheduler before.

        True also where nothing listens any more: no call can take effect then. Source: sglang 0.5.23, measured: sent
        after a release whose client had disconnected, it returned when the release had run.
        """
        answer = await self._reads.get("/server_info", deadline_s)
        return answer.refused or server_info(answer) is not None

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Generates a token, then checks `/ready`.

        Where `/ready` is not 200, `/health` is asked once first. A `/health` that another client asked while the server
        was paused leaves `/ready` at 503 until the next one succeeds. Source: sglang 0.5.23, measured.
        """
        clock = Deadline(deadline_s)
        if self._disaggregated:
            token: Verdict = NotApplicable(reason="a prefill or decode engine cannot answer a request alone")
        else:
            token = await self._token(probe, clock.left_s)
        if isinstance(token, Refuted | Pending):
            return token
        ready = await self._reads.get("/ready", clock.left_s)
        if not ready.ok:
            await self._reads.get("/health", clock.left_s)
            ready = await self._reads.get("/ready", clock.left_s)
        return token if ready.ok else Refuted(reason=f"/ready answered {ready.status or ready.error}")

    async def request_counts(self, *, deadline_s: float) -> RequestCounts | None:
        """What the server counts of requests; it is asked only where it runs with --enable-metrics."""
        if not self._has_metrics:
            return None
        idle_s = self._idle.since_s()
        metrics = await self._reads.get("/metrics", deadline_s)
        return request_counts(metrics, settled=idle_s is not None and idle_s > SETTLED_S)

    async def processes(self) -> tuple[Process, ...] | None:
        """The process that listens on the port, or that of `pid=`. The probe measures its whole process tree."""
        return self._processes

    async def aclose(self) -> None:
        """Closes the connections. The server is left as it is."""
        await self._http.aclose()

    # reads

    async def _has(self, processes: tuple[Process, ...] | None) -> None:
        self._processes, self._family = processes, await _family(processes or ())

    async def _found_early(self, clock: Deadline) -> tuple[tuple[Process, ...], tuple[Process, ...]] | None:
        """The processes of this host behind the address, and those below them, found while the server answers.

        One that listened before and lives afterwards is the one that answered. So all engines that are connected at
        once share one scan of the host. None where they are to be looked for afterwards.
        """
        if "agent" in self._address.options:
            return None
        try:
            found = await find_processes(self._address, deadline_s=clock.left_s / 2)
            return (found, await _family(found)) if found else None
        except Exception:  # what is wrong is said afterwards, where a server answers
            return None

    async def _server_info(self, clock: Deadline) -> tuple[Answer, Mapping[str, Any] | None]:
        """The answer of `/server_info`, and what it says; at first those which connect() was given, while young."""
        at_connect, self._at_connect = self._at_connect, None
        if at_connect is not None and time.monotonic() - at_connect[2] < YOUNG_S:
            return at_connect[:2]
        answer = await self._reads.get("/server_info", clock.left_s)
        return answer, server_info(answer)

    async def _boot(self, own_identity: str, clock: Deadline) -> str:
        """The boot identity of the server that answered. Its processes are looked for where they are not as before.

        Where none is found, those from before count as its own still, unless it is another server and they have ended:
        who has ended since it answered is known to have ended by them, and of two identities in one process
        `rules.identity` takes neither for a fresh one.
        """
        before = self._processes or ()
        gone = self._were_found and not (before and all(is_alive(each) for each in before if each.agent is None))
        if own_identity != self._own_identity or gone:
            found = None
            with suppress(ConfigurationError):  # `pid=` named a process of the server before the restart
                found = await find_processes(self._address, deadline_s=clock.look_s())
            same = own_identity == self._own_identity
            if not found and before and (same or not await ended(before, deadline_s=clock.look_s())):
                found = before
            self._own_identity = own_identity
            await self._has(found)
        return boot_identity(own_identity, self._processes or ())

    async def _unanswered(self, answer: Answer, clock: Deadline) -> Observation:
        """The observation of a server that did not answer: not alive where its processes have ended, else unknown."""
        if answer.refused and self._family and await ended(self._family, deadline_s=clock.left_s):
            pids = ", ".join(str(process.pid) for process in self._family)
            return Observation(alive=False, detail=f"pid {pids} has ended", sampled_at=time.monotonic())
        return Observation(detail=why_not(answer), sampled_at=time.monotonic())

    async def _token(self, probe: Probe, deadline_s: float) -> Verdict:
        """Generates a token. Where the request only queues behind kept requests, a token of one of those counts."""
        clock = Deadline(deadline_s)
        body = {"text": probe.text, "sampling_params": {"max_new_tokens": probe.tokens, "temperature": 0}}
        request = self._http.request(
            "POST", "/generate", deadline_s=deadline_s, repeatable=True, json_body=body, key=self._key
        )
        asking = asyncio.ensure_future(request)
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=max(0.05, min(QUEUED_S, clock.left_s)))
                if not asking.done() and await self._others_get_tokens(clock) and not asking.done():
                    return Proved(grade=Grade.MEASURED, reason="kept requests get tokens; a new one queues")
            return generated(asking.result())
        finally:
            asking.cancel()
            await asyncio.wait({asking})

    async def _others_get_tokens(self, clock: Deadline) -> bool:
        """Whether running requests get tokens.

        `/health` of a busy server answers 200 when any request gets its next token. Source: sglang 0.5.23, measured.
        """
        running = await self._reads.running(time.monotonic() + min(clock.left_s, READ_S))
        return bool(running) and (await self._reads.get("/health", clock.left_s)).ok

    async def _checksums_now(self, deadline_s: float) -> dict[str, Any]:
        """The checksum of all weights and those of each model role, from one response."""
        body = {"action": "checksum"}
        answer = await self._http.request(
            "POST",
            "/weights_checker",
            deadline_s=deadline_s,
            repeatable=True,
            json_body=body,
            key=self._admin_key,
            limit=LIMITS["/weights_checker"],
        )
        report = answer.json() if answer.ok else None
        return {"checksum": of_engine(report), "checksums": by_role(report)} if isinstance(report, dict) else {}

    # configuration

    def _known(self) -> Capabilities:
        if self._capabilities is None:
            raise ConfigurationError(f"{self.url}: not connected yet")
        return self._capabilities

    def _tags(self) -> tuple[str, ...]:
        named = self._address.options.get("tags", "weights,kv_cache")
        tags = tuple(tag.strip() for tag in named.split(",") if tag.strip())
        if not tags:
            raise ConfigurationError(f"{self.url}: tags names none; leave it out to mean weights,kv_cache")
        return tags


async def _family(processes: tuple[Process, ...]) -> tuple[Process, ...]:
    """These and all below them; none where they could not be listed: silence is never taken for an end then."""
    with suppress(TimeoutError):
        return await with_all_below(processes, deadline_s=READ_S)
    return ()
