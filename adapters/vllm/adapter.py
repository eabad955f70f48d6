"""The adapter: one HTTP request for each call, and reads that change nothing on the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from lifecycle.core.calls import Call, Reply
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command
from lifecycle.core.deadline import Deadline
from lifecycle.core.errors import ConfigurationError, NothingListens
from lifecycle.core.facts import Admission, Fact, Facts, Grade
from lifecycle.core.observation import Observation, Probe
from lifecycle.core.readings import Process
from lifecycle.core.requests import RequestCounts
from lifecycle.core.verdicts import Proved, Verdict
from lifecycle.nodes.address import Address

from ..http import Answer, HttpClient, together
from ..kinds import other_kind
from ..server_processes import ServerProcesses
from ..url_options import KEY_REFUSED, choice_of, key_of, keys_needed, sizes_of
from .answers import (
    RANKS_DISAGREE,
    config_of,
    generated,
    model_name,
    paused,
    refusal,
    server_load,
    version_of,
    weights_label,
    why_not,
)
from .capabilities import (
    TAGS,
    boot_of,
    capabilities_of,
    counts_requests_alone,
    first_core_speaks,
    one_front_end,
    tells_faults,
)
from .counts import request_counts
from .idle import READ_S, paused_again
from .plan import CLOSE_PUSH, NOT_SENT, close_push, plan, push
from .reads import SERVER_INFO, Reads
from .versions import VERSIONS, Effects

OPTIONS = ("api_key", "api_key_env", "pid", "agent", "sizes", "checksum", "unknown_version")

#: Seconds for which the answer that connect() was given serves the first observation.
YOUNG_S = 2.0

#: Seconds after which a pause that waits for its requests is left to wait by itself.
WAIT_LEFT_S = 0.5

#: Seconds that a completion may take before the adapter checks whether it only waits behind kept requests.
QUEUED_S = 2.0

#: Seconds between two questions whether `/load` counts the request that is under way.
LOAD_S = 0.02

#: The calls whose arguments are a JSON body; those of every other are the query, and a body would be ignored.
BODIES = frozenset(
    {
        "collective_rpc",
        "update_weight_version",
        "init_weight_transfer_engine",
        "shutdown_weight_transfer_engine",
        "start_weight_update",
        "update_weights",
        "finish_weight_update",
    }
)


class VLLMAdapter:
    """Drives one vLLM server, which runs with VLLM_SERVER_DEV_MODE=1. Options of its URL:

    - `api_key_env`: the environment variable that holds the key of its generation endpoints; `api_key` gives the key.
    - `pid`: the server's process, where the one that listens on the port is not it.
    - `agent`: HOST:PORT of the agent on the server's node.
    - `sizes`: TAG:BYTES,... for each rank, of weights and kv_cache; learned from the first release unless given.
    - `checksum=true`: weights are compared by checksum, from 0.32 on. Every load then reads all weights twice.
    - `unknown_version=warn`: a version that is not in `versions.VERSIONS` is driven as the one before it.
    """

    #: The versions of vLLM on which this adapter was measured.
    measured_on = ("0.32.0",)
    #: The ranges of versions that it knows, in words.
    version_ranges = VERSIONS.known
    #: The option of its URL that gives the sizes of tags.
    sizes_option = "sizes"

    def __init__(self, address: Address) -> None:
        self._address = address.only(*OPTIONS)
        self._http = HttpClient(f"http://{address.authority}")
        self._key = key_of(address, "api_key")
        self._reads = Reads(self._http, self._key)
        self._checksums = choice_of(address, "checksum", ("false", "true")) == "true"
        self._warns = choice_of(address, "unknown_version", ("refuse", "warn")) == "warn"
        self._sizes = sizes_of(address, TAGS)
        self._processes = ServerProcesses(address)
        self._capabilities: Capabilities | None = None
        self._effects = Effects()
        self._known_by = ""
        self._config: Mapping[str, Any] = {}
        self._model: str | None = None
        #: The boot of which `/load` was seen to count a request: of another it may be 0 whatever runs.
        self._counted: str | None = None
        #: The boot of which that was tried.
        self._tested: str | None = None
        #: What was answered at connect and when, until the first observation after it, which it serves.
        self._at_connect: tuple[Answer, float] | None = None

    @property
    def url(self) -> str:
        """The address of the server, without its key."""
        return str(self._address)

    @property
    def version_known_by(self) -> str:
        """The range of versions in which the server was found at connect, and what is known of it by; empty before."""
        return self._known_by

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """Reads the server's version and configuration, and finds its processes.

        Raises ConfigurationError where no vLLM server answers there, where its development mode is off, where its
        version is not known, or where it refuses the key.
        """
        clock = Deadline(deadline_s)
        info, version = await together(
            self._reads.get(SERVER_INFO, clock.left_s), self._reads.get("/version", clock.left_s)
        )
        config, own = config_of(info), version_of(version)
        if config is None or own is None:
            kind = NothingListens if info.nothing_listens else ConfigurationError
            other = await other_kind("vllm", self._http, {"/server_info": info}, self._key, clock.left_s)
            raise kind(f"{self.url}: {why_not(info if config is None else version, version)}{other}")
        unknown = VERSIONS.unknown(own)
        if unknown is not None and not self._warns:
            raise ConfigurationError(f"{self.url}: {unknown}; unknown_version=warn drives it as the nearest of them")
        known = VERSIONS.nearest(own)
        self._effects, self._config, self._known_by = known.effects, config, f"{known}, {known.source}"
        models = await self._reads.get("/v1/models", clock.left_s)
        if models.status in KEY_REFUSED:
            raise ConfigurationError(f"{self.url}: it refuses the key; give api_key_env=NAME")
        self._model = model_name(models)
        label = None
        if self._effects.labels and not await self._fault(clock):
            label = weights_label(await self._reads.get("/weight_info", clock.left_s))
        notes = () if unknown is None else (f"{unknown}: driven as {known}",)
        capabilities = capabilities_of(config, own, self._effects, sizes=self._sizes, label=label, notes=notes)
        self._capabilities = replace(capabilities, observable=self._observable())
        await self._processes.find(boot_of(config), deadline_s=clock.left_s)
        self._at_connect = info, time.monotonic()
        return self._capabilities

    async def keys_needed(self, *, deadline_s: float) -> Mapping[str, bool]:
        """By name, whether each key that the URL gives is needed."""
        return await keys_needed(self._address, self._http, {"api_key": [("GET", "/v1/models")]}, deadline_s)

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """The calls of a command, in order; `send` makes each of them one request."""
        return plan(command, facts, self._known(), self._effects)

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """One call of a push: `how` is `init`, `update` or `shutdown`."""
        return push(how, args)

    def close_push_call(self) -> Call:
        """Ends a push that failed."""
        return close_push(self._known())

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Sends one request, once. A 200 that does not say that it was done counts as a refusal."""
        if call.name == NOT_SENT:
            return Reply("rejected", detail=call.args["why"])
        clock = Deadline(deadline_s)
        waits = call.name == "pause" and call.args["mode"] == "wait"
        reply = await self.pause_once(call, min(WAIT_LEFT_S, deadline_s / 2) if waits else deadline_s)
        return await self._left_waiting(clock) if waits and reply.late else reply

    async def pause_once(self, call: Call, deadline_s: float) -> Reply:
        """The reply to one request, whatever it is."""
        answer = await self._post(call, deadline_s)
        if answer.status is None:
            return Reply("lost", detail=answer.error, refused=answer.refused, late=answer.late)
        why = refusal(call, answer, self._effects)
        if why is not None:
            return Reply("rejected", status=answer.status, detail=why)
        return Reply("done", status=answer.status, value=answer.json())

    async def admission(self, deadline_s: float) -> tuple[Admission | None, str]:
        """Whether `/is_paused` says that requests are admitted, and what it answered."""
        asked = await self._reads.get("/is_paused", deadline_s)
        return paused(asked), str(asked.status or asked.error)

    def counts_requests_alone(self) -> bool:
        """Whether a pause that waits says that requests run."""
        return counts_requests_alone(self._config)

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """Makes the reads that tell what is wanted, all at once.

        `/is_paused` tells whether it is open or closed. `/is_sleeping` is not asked: it is true after a mere pause.
        Requests are counted by `/load`, once that is known to count. Of a closed engine it says nothing, since it
        counts kept and queued ones too, and never that there are none, since it drifts (ADR 25). An answer that
        connect() would refuse is silence. So is an engine process that says of itself that it is broken: it answers
        nothing until it is repaired, and releases nothing.
        """
        whole_s, clock = Deadline(deadline_s), Deadline(min(deadline_s, READ_S))
        fault = await self._fault(clock)
        if fault:
            return Observation(detail=fault, sampled_at=time.monotonic())
        answers = self._met() if want == {Fact.BOOT} else {}
        answers = answers or await self._reads.of_facts(want, self._observable(), clock.left_s)
        silent = next((each for each in answers.values() if each.status is None), None)
        info = answers.get(SERVER_INFO)
        config = None if info is None else config_of(info)
        if info is not None and config is None:
            return await self._unanswered(info, clock)
        if silent is not None:
            return await self._unanswered(silent, clock)
        if await self._reads.core_died(answers, clock.left_s):
            return Observation(
                detail="its engine process has ended, and its front end lives", sampled_at=time.monotonic()
            )
        asked = answers.get("/is_paused")
        admission = None if asked is None else paused(asked)
        if admission == "closed" and first_core_speaks(self._config, self._effects):
            admission = None  # the others may be open; that a pause was answered says that all are closed
        parts: dict[str, Any] = {"admission": admission}
        if config is not None:
            parts["boot"] = await self._processes.boot(boot_of(config), clock)
            self._config = config
        if "/load" in answers:
            # no count of a closed server is one of requests that run, and 0 is none where it has drifted
            parts["running"] = (self._counts(answers["/load"]) or None) if admission == "open" else None
        if "/weight_info" in answers:
            parts["weights_label"] = weights_label(answers["/weight_info"])
        if Fact.CHECKSUM in want & self._observable():
            parts["checksum"] = await self._reads.checksum(whole_s.left_s)
        if asked is not None and RANKS_DISAGREE in asked.detail:
            parts["disagreement"] = f"its data-parallel ranks disagree ({asked.detail[:200]})"
        return Observation(alive=True, sampled_at=time.monotonic(), **parts)

    async def boot_anew(self, *, deadline_s: float) -> Observation:
        """The boot that `/server_info` tells over a new connection."""
        clock = Deadline(min(deadline_s, READ_S))
        answer = await self._reads.get(SERVER_INFO, clock.left_s, fresh=True)
        config = config_of(answer)
        if config is None:
            return await self._unanswered(answer, clock)
        boot = await self._processes.boot(boot_of(config), clock)
        return Observation(boot=boot, alive=True, sampled_at=time.monotonic())

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """Proved where a second pause is answered: no step runs, and no request holds KV memory.

        It drops the prefix cache, and says nothing of requests that are kept or queued, which hold no memory.
        """
        return await paused_again(self, facts, min(1.0, deadline_s / 3), deadline_s)

    async def idle_within(self, facts: Facts, *, wait_s: float, deadline_s: float) -> Verdict:
        """As `prove_idle`. The scheduler holds `/pause?mode=wait` back until it is idle."""
        return await paused_again(self, facts, min(wait_s, deadline_s / 2), deadline_s)

    async def barrier(self, *, deadline_s: float) -> bool:
        """True once `/is_paused` has answered. It queues behind everything sent to the engine process before.

        True also where nothing listens any more: no call can take effect then. Not where its engine process is broken:
        a repair lets it take up what was sent.
        """
        clock = Deadline(deadline_s)
        if await self._fault(clock):
            return False
        answer = await self._reads.get("/is_paused", clock.left_s)
        return answer.nothing_listens or paused(answer) is not None or RANKS_DISAGREE in answer.detail

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Generates a token. Where the request only queues behind kept ones, tokens of those count.

        While the first one runs `/load` is asked whether it counts it: without --enable-server-load-tracking it is 0.
        """
        clock = Deadline(deadline_s)
        body = {"prompt": probe.text, "max_tokens": probe.tokens, "temperature": 0, "return_token_ids": True}
        body |= {} if self._model is None else {"model": self._model}
        request = self._http.request(
            "POST", "/v1/completions", deadline_s=deadline_s, repeatable=True, json_body=body, key=self._key
        )
        asking = asyncio.ensure_future(request)
        try:
            await self._test_load(asking, clock)
            while not asking.done():
                await asyncio.wait({asking}, timeout=max(0.05, min(QUEUED_S, clock.left_s)))
                if not asking.done() and await self._reads.steps_run(clock.left_s) and not asking.done():
                    return Proved(grade=Grade.MEASURED, reason="kept requests get tokens; a new one queues")
            return generated(asking.result())
        finally:
            asking.cancel()
            await asyncio.wait({asking})

    async def request_counts(self, *, deadline_s: float) -> RequestCounts | None:
        """What the front end counts of requests; those that are open only where `/load` is known to count."""
        metrics, load = await together(self._reads.get("/metrics", deadline_s), self._reads.get("/load", deadline_s))
        return request_counts(metrics, self._counts(load), refuses_new=self._effects.refuses_new)

    async def processes(self) -> tuple[Process, ...] | None:
        """The process that listens on the port, or that of `pid=`. The probe measures its whole process tree."""
        return self._processes.roots

    async def aclose(self) -> None:
        """Closes the connections. The server is left as it is."""
        await self._http.aclose()

    # calls

    async def _post(self, call: Call, deadline_s: float) -> Answer:
        name = "finish_weight_update" if call.name == CLOSE_PUSH else call.name
        path, body = f"/{name}", dict(call.args)
        if name in BODIES:
            return await self._http.request(
                "POST", path, deadline_s=deadline_s, repeatable=call.repeatable, json_body=body, key=self._key
            )
        path += f"?{urlencode(body, doseq=True)}" if body else ""
        return await self._http.request("POST", path, deadline_s=deadline_s, repeatable=call.repeatable, key=self._key)

    async def _left_waiting(self, clock: Deadline) -> Reply:
        """The reply to a pause whose requests still run: it stays when its caller leaves, which `/is_paused` says."""
        asked = await self._reads.get("/is_paused", clock.left_s)
        if paused(asked) == "closed":
            return Reply("done", status=asked.status)
        why = f"it was asked to pause and wait, and does not say that it is paused ({asked.status or asked.error})"
        return Reply("lost", detail=why, late=True)

    # reads

    def _observable(self) -> frozenset[Fact]:
        """What reads of the server tell. Which tags are asleep none does."""
        facts = {Fact.BOOT, Fact.ADMISSION, Fact.CLOSED, Fact.RUNNING}
        facts |= {Fact.CONTENTS} if self._effects.labels else set()
        return frozenset(facts | ({Fact.CHECKSUM} if self._checksums and self._effects.checks_weights else set()))

    def _met(self) -> dict[str, Answer]:
        """The answer of `/server_info` that connect() was given, where it is young and none was asked since."""
        at_connect, self._at_connect = self._at_connect, None
        young = at_connect is not None and time.monotonic() - at_connect[1] < YOUNG_S
        return {SERVER_INFO: at_connect[0]} if at_connect is not None and young else {}

    def _counts(self, load: Answer) -> int | None:
        """The open calls, where `/load` is known to count: a process that does not says 0 for ever."""
        count = server_load(load)
        if count and one_front_end(self._config):
            self._counted = boot_of(self._config)
        return count if self._counted == boot_of(self._config) else None

    async def _test_load(self, asking: asyncio.Future[Answer], clock: Deadline) -> None:
        """Whether `/load` counts the request that is under way.

        Asked once of each process: one that does not count says 0 for ever.
        """
        identity = boot_of(self._config) if self._config else None
        if identity is None or self._tested == identity or not one_front_end(self._config):
            return
        self._tested, trying = identity, Deadline(min(clock.left_s / 2, QUEUED_S))
        while not asking.done() and trying.left_s > 0:
            if await self._reads.load(trying.left_s):
                self._counted = identity
                return
            await asyncio.wait({asking}, timeout=LOAD_S)

    async def _unanswered(self, answer: Answer, clock: Deadline) -> Observation:
        """The observation of a server that did not answer: not alive where its processes have ended, else unknown."""
        ended = await self._processes.end(clock) if answer.nothing_listens else None
        if ended is not None:
            return Observation(alive=False, detail=ended, sampled_at=time.monotonic())
        # a front end never ends by itself where its engine process died while it carried out a call
        left = self._processes.left() if answer.nothing_listens else ""
        why = why_not(answer) + (f"; {left}, unless it is starting" if left else "")
        return Observation(detail=why, sampled_at=time.monotonic())

    async def _fault(self, clock: Deadline) -> str:
        """What is wrong with its engine process, where the server tells; empty where nothing is."""
        return await self._reads.fault(clock.left_s) if tells_faults(self._config, self._effects) else ""

    def _known(self) -> Capabilities:
        if self._capabilities is None:
            raise ConfigurationError(f"{self.url}: not connected yet")
        return self._capabilities
