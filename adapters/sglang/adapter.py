"""The adapter: one HTTP request for each call, and reads that change nothing on the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lifecycle.core.calls import Call, Reply
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command
from lifecycle.core.deadline import Deadline
from lifecycle.core.errors import ConfigurationError, NothingListens
from lifecycle.core.facts import Admission, Fact, Facts, Grade
from lifecycle.core.observation import Observation, Probe
from lifecycle.core.readings import Process
from lifecycle.core.requests import RequestCounts
from lifecycle.core.verdicts import NotApplicable, Pending, Proved, Refuted, Verdict
from lifecycle.nodes.address import Address

from ..http import Answer, HttpClient
from ..kinds import other_kind
from ..server_processes import ServerProcesses
from ..url_options import KEY_REFUSED, choice_of, key_of, keys_needed, sizes_of
from .answers import generated, model_info, server_info, version_of, weights_label, whole, why_not
from .capabilities import Boots, aborts_by_retract, capabilities_of, counts_requests_alone, disaggregated, tags_of
from .checksums import read_checksums
from .counts import SETTLED_S, request_counts
from .idle import Idle
from .plan import CLOSE_PUSH, NO_SESSION, close_push, explained, plan, push
from .reads import Reads, in_turn, together
from .versions import VERSIONS, Effects

OPTIONS = (
    *("api_key", "admin_api_key", "api_key_env", "admin_api_key_env", "pid", "agent", "tags", "sizes", "checksum"),
    *("abort", "unknown_version"),
)

#: Seconds within which a live server answers a read that does not depend on its load.
READ_S = 10.0

#: What reads of the server tell, if its version has them all. Which tags are released none does.
OBSERVABLE = frozenset({Fact.BOOT, Fact.ADMISSION, Fact.CLOSED, Fact.RUNNING, Fact.CONTENTS})

#: Seconds for which the answer that connect() was given serves the first observation.
YOUNG_S = 2.0

#: The most seconds in which a server that admits requests generates a token, where nothing else tells that it does.
ADMITS_S = 5.0

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
    - `checksum=true`: weights are compared by checksum, from 0.5.12 on. Every load then reads all weights twice.
    - `abort=retract`: a pause by abort is a retract and an abort of all requests, from 0.5.23 on. It takes some ten
      milliseconds, and SGLang's own (`abort=own`) a second where requests run. Calls that are no streams lose tokens.
    - `unknown_version=warn`: a version that is not in `versions.VERSIONS` is driven as the one before it.
    """

    #: The versions of SGLang on which this adapter was measured.
    measured_on = ("0.5.23",)
    #: The ranges of versions that it knows, in words.
    version_ranges = VERSIONS.known
    #: The option of its URL that gives the sizes of tags.
    sizes_option = "sizes"
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
        self._warns = choice_of(address, "unknown_version", ("refuse", "warn")) == "warn"
        self._own_abort = choice_of(address, "abort", ("own", "retract")) == "own"
        self._tags = tags_of(address)
        self._sizes = sizes_of(address, self._tags)
        self._processes = ServerProcesses(address)
        self._boots = Boots()
        self._capabilities: Capabilities | None = None
        self._effects = Effects()
        self._known_by = ""
        self._disaggregated = False
        #: Whether a pause by abort is a retract and an abort of all requests.
        self._retracts = False
        #: Whether a pause of this adapter was acknowledged, and no continue sent since.
        self._closed_here = False
        #: Whether it was started with --enable-metrics.
        self._has_metrics = False
        #: What was answered at connect and when, until the first observation after it, which it serves.
        self._at_connect: tuple[Mapping[str, Answer], float] | None = None

    @property
    def url(self) -> str:
        """The address of the server, without its keys."""
        return str(self._address)

    @property
    def version_known_by(self) -> str:
        """The range of versions in which the server was found at connect, and what is known of it by; empty before."""
        return self._known_by

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """Reads the server's capabilities, and finds its processes, so that its exit can be distinguished from silence.

        Raises ConfigurationError where no SGLang server answers there, where its version is not known, or where it
        refuses a key.
        """
        clock = Deadline(deadline_s)
        answer, early = await together(
            self._reads.get("/server_info", clock.left_s), self._processes.found_early(clock)
        )
        info = server_info(answer)
        if info is None:
            kind = NothingListens if answer.nothing_listens else ConfigurationError
            other = await other_kind("sglang", self._http, {"/server_info": answer}, self._key, clock.left_s)
            raise kind(f"{self.url}: {why_not(answer)}{other}")
        unknown = VERSIONS.unknown(version_of(info))
        if unknown is not None and not self._warns:
            raise ConfigurationError(f"{self.url}: {unknown}; unknown_version=warn drives it as the nearest of them")
        # An abort without a body passes the key check of the control endpoints and is then refused with 400. A version
        # that accepted it would abort nothing, since it names no request.
        control = await self._http.request("POST", "/abort_request", deadline_s=clock.left_s, key=self._admin_key)
        if control.status in KEY_REFUSED:
            raise ConfigurationError(f"{self.url}: the control endpoints refuse the key; give admin_api_key_env=NAME")
        model = await self._reads.get("/model_info", clock.left_s)
        self._knows(info, None if unknown is None else f"{unknown}: driven as {{}}", model)
        own = self._boots.read(answer, info) or ""
        await self._processes.find(own, deadline_s=clock.left_s, early=early)
        self._at_connect = {"/server_info": answer, "/model_info": model}, time.monotonic()
        return self._known()

    async def keys_needed(self, *, deadline_s: float) -> Mapping[str, bool]:
        """By name, whether each key that the URL gives is needed. Control endpoints take either where one is given."""
        guarded = {"api_key": [("GET", "/server_info")], "admin_api_key": [("POST", "/abort_request")]}
        if self._admin_key == self._key:
            guarded["api_key"] += guarded["admin_api_key"]
        return await keys_needed(self._address, self._http, guarded, deadline_s)

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """The calls of a command, in order; `send` makes each of them one request."""
        return plan(command, facts, self._known(), retracts=self._retracts, sessions=self._effects.sessions)

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
        if closes and not self._effects.sessions:
            return await self._push_over(deadline_s)
        if call.name == "continue_generation":
            self._closed_here = False
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
        self._closed_here = self._closed_here or call.name == "pause_generation"
        return Reply("done", status=answer.status, value=value)

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """Makes the reads that tell what is wanted, all at once. Never reads `/health`.

        `/server_info` passes through the scheduler and tells the boot. `/ready` tells whether it is open, with `/ping`
        that it says itself that it is closed. `/model_info` has the label, `/v1/loads` the requests. An answer that
        connect() would refuse is silence, and never another process; without an answer nothing else counts. A version
        that has no `/ready` is asked for a token, unless this adapter has closed it.
        """
        whole_s, clock = Deadline(deadline_s), Deadline(min(deadline_s, READ_S))
        end, met = time.monotonic() + clock.total_s, self._met()
        run = in_turn if met else together  # a connection costs more than an answer
        said, traffic, model = await run(
            self._server_info(met, clock) if Fact.BOOT in want or not want & OBSERVABLE else None,
            self._reads.traffic(want, end) if want & {Fact.ADMISSION, Fact.RUNNING} else None,
            self._model_info(met, clock) if Fact.CONTENTS in want else None,
        )
        ready, admission, running = traffic or (None, None, None)
        if Fact.ADMISSION in want and not self._effects.ready:
            admission = await self._admits(clock)
        answer, boot = said or (None, None)
        if answer is not None and boot is None:
            return await self._unanswered(answer, clock)
        silent = next((each for each in (model, ready) if each is not None and each.status is None), None)
        if silent is not None and boot is None:
            return await self._unanswered(silent, clock)
        parts: dict[str, Any] = {"admission": admission, "running": running}
        if boot is not None:
            parts["boot"] = await self._processes.boot(boot, clock)
        if model is not None:
            parts["weights_label"] = weights_label(model)
        if Fact.CHECKSUM in want and self._checksums and self._effects.checksums:
            parts |= await read_checksums(self._http, self._admin_key, whole_s.left_s)
        return Observation(alive=True, sampled_at=time.monotonic(), **parts)

    async def boot_anew(self, *, deadline_s: float) -> Observation:
        """The boot that `/server_info` tells over a new connection."""
        clock = Deadline(min(deadline_s, READ_S))
        answer = await self._reads.get("/server_info", clock.left_s, fresh=True)
        boot = self._boots.read(answer)
        if boot is None:
            return await self._unanswered(answer, clock)
        return Observation(boot=await self._processes.boot(boot, clock), alive=True, sampled_at=time.monotonic())

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
        own = {"wait"} if self._retracts else {"abort", "wait"}
        waits = self._idle.dp_size == 1 and facts.paused_by in own and deadline_s > 2 * wait_s
        return await self._idle.flushed(wait_s if waits else None, deadline_s)

    async def barrier(self, *, deadline_s: float) -> bool:
        """True once `/server_info` has answered. It queues behind everything sent to the scheduler before.

        True also where nothing listens any more: no call can take effect then. Source: sglang 0.5.23, measured: sent
        after a release whose client had disconnected, it returned when the release had run.
        """
        answer = await self._reads.get("/server_info", deadline_s)
        return answer.nothing_listens or self._boots.read(answer) is not None

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Generates a token, then checks `/ready`, where there is one.

        Where `/ready` is not 200, `/health` is asked once first. A `/health` that another client asked while the server
        was paused leaves `/ready` at 503 until the next one succeeds. Source: sglang 0.5.23, measured.
        """
        clock = Deadline(deadline_s)
        if self._disaggregated:
            token: Verdict = NotApplicable(reason="a prefill or decode engine cannot answer a request alone")
        else:
            token = await self._token(probe, clock.left_s)
        if isinstance(token, Refuted | Pending) or not self._effects.ready:
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
        return self._processes.roots

    async def aclose(self) -> None:
        """Closes the connections. The server is left as it is."""
        await self._http.aclose()

    # reads

    def _met(self) -> Mapping[str, Answer]:
        """The answers that connect() was given, by path, where they are young and nothing was observed since."""
        at_connect, self._at_connect = self._at_connect, None
        young = at_connect is not None and time.monotonic() - at_connect[1] < YOUNG_S
        return at_connect[0] if at_connect is not None and young else {}

    async def _server_info(self, met: Mapping[str, Answer], clock: Deadline) -> tuple[Answer, str | None]:
        """The answer of `/server_info`, and the boot that it tells."""
        answer = met.get("/server_info") or await self._reads.get("/server_info", clock.left_s)
        return answer, self._boots.read(answer)

    async def _model_info(self, met: Mapping[str, Answer], clock: Deadline) -> Answer:
        return met.get("/model_info") or await self._reads.get("/model_info", clock.left_s)

    async def _admits(self, clock: Deadline) -> Admission | None:
        """Open where it generates a token; else unknown. One that this adapter has closed is not asked.

        A request that a pause holds back stays when its client leaves, and gets its token after the continue.
        Source: sglang 0.5.23, measured; the gate of the older ones is the same.
        """
        if self._closed_here or self._disaggregated:
            return None
        body = {"text": Probe().text, "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
        answer = await self._http.request(
            "POST", "/generate", deadline_s=min(ADMITS_S, clock.left_s / 2), json_body=body, key=self._key
        )
        return "open" if isinstance(generated(answer), Proved) else None

    async def _push_over(self, deadline_s: float) -> Reply:
        """Nothing ends a push where there are no sessions: it is over once the scheduler has taken its last tensors."""
        if await self.barrier(deadline_s=deadline_s):
            return Reply("done")
        return Reply("lost", detail="/server_info was not answered", late=True)

    async def _unanswered(self, answer: Answer, clock: Deadline) -> Observation:
        """The observation of a server that did not answer: not alive where its processes have ended, else unknown."""
        ended = await self._processes.end(clock) if answer.nothing_listens else None
        if ended is not None:
            return Observation(alive=False, detail=ended, sampled_at=time.monotonic())
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

    # configuration

    def _knows(self, info: Mapping[str, Any], unknown: str | None, model: Answer) -> None:
        """What the server says of itself decides what it can do, and how it is asked."""
        known = VERSIONS.nearest(version_of(info))
        self._effects, self._known_by = known.effects, f"{known}, {known.source}"
        self._disaggregated = disaggregated(info)
        self._has_metrics = info.get("enable_metrics") is True
        self._retracts = not self._own_abort and aborts_by_retract(info, known.effects)
        self._reads.effects = known.effects
        self._idle.dp_size = whole(info.get("dp_size")) or 1
        self._idle.counts_requests_alone = counts_requests_alone(info)
        notes = () if unknown is None else (unknown.format(known),)
        capabilities = capabilities_of(
            info, self._tags, self._sizes, model=model_info(model), notes=notes, own_abort=self._own_abort
        )
        self._capabilities = replace(capabilities, observable=self._observable())

    def _observable(self) -> frozenset[Fact]:
        """What reads of this server tell."""
        closed = set() if self._effects.ping_is_health else {Fact.CLOSED}
        checksum = {Fact.CHECKSUM} if self._checksums and self._effects.checksums else set()
        return frozenset((OBSERVABLE - closed) | checksum)

    def _known(self) -> Capabilities:
        if self._capabilities is None:
            raise ConfigurationError(f"{self.url}: not connected yet")
        return self._capabilities
