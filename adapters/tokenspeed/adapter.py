"""The adapter: one HTTP request for each call, one pause at a time, and reads that change nothing on the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from lifecycle.core.calls import Call, Reply
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command
from lifecycle.core.deadline import Deadline
from lifecycle.core.errors import ConfigurationError, NothingListens
from lifecycle.core.facts import Fact, Facts, Grade
from lifecycle.core.observation import Observation, Probe
from lifecycle.core.readings import Process
from lifecycle.core.verdicts import REQUESTS_RUN, Pending, Proved, Verdict
from lifecycle.nodes.address import Address

from ..http import Answer, HttpClient, together
from ..kinds import other_kind
from ..server_processes import ServerProcesses
from ..url_options import KEY_REFUSED, choice_of, key_of, keys_needed, sizes_of
from .answers import generated, info_of, replied, requests_of, was_resumed, weights_label, why_not
from .capabilities import TAGS, boot_of, capabilities_of, one_reply_of
from .plan import CONTINUE, NOT_SENT, PAUSE, PUSHES, plan, push, thaws
from .reads import LOADS, SERVER_INFO, WEIGHT_VERSION, Reads
from .versions import VERSIONS

OPTIONS = (
    "api_key",
    "api_key_env",
    "control_key",
    "control_key_env",
    "pid",
    "agent",
    "sizes",
    "unknown_version",
)

#: Seconds within which a live server answers a read.
READ_S = 10.0

#: Seconds for which it counts as open that generated a token, or said that it was resumed.
YOUNG_S = 2.0

#: Seconds in which an engine that admits requests is given to generate a token at connect.
TOKEN_S = 10.0

#: Seconds after which a request that no part of the engine counts waits at a closed front end.
UNCOUNTED_S = 1.0

#: Seconds between two questions whether the engine counts the request that is under way.
POLL_S = 0.25

#: Seconds after which a pause is given up. The control server gives it up after 600 without a byte.
PAUSE_S = 620.0


class TokenspeedAdapter:
    """Drives one tokenspeed server through its control server. Options of its URL:

    - `api_key_env`: the environment variable that holds the key of its gateway; `api_key` gives the key.
    - `control_key_env`: the same of `--rl-control-api-key`; `control_key` gives the key.
    - `pid`: the server's process, where the one that listens on the port is not it.
    - `agent`: HOST:PORT of the agent on the server's node.
    - `sizes`: TAG:BYTES,... for each rank, of weights and kv_cache; learned from the first release unless given.
    - `unknown_version=warn`: a version that is not in `versions.VERSIONS` is driven as the one before it.
    """

    #: The ranges of versions that it knows, in words.
    version_ranges = VERSIONS.known
    #: The option of its URL that gives the sizes of tags.
    sizes_option = "sizes"

    def __init__(self, address: Address) -> None:
        self._address = address.only(*OPTIONS)
        self._http = HttpClient(f"http://{address.authority}")
        self._key = key_of(address, "api_key")
        self._control_key = key_of(address, "control_key")
        self._reads = Reads(self._http, self._key, self._control_key)
        self._warns = choice_of(address, "unknown_version", ("refuse", "warn")) == "warn"
        self._sizes = sizes_of(address, TAGS)
        self._processes = ServerProcesses(address)
        self._capabilities: Capabilities | None = None
        self._known_by = ""
        #: The pause that is not answered yet. There is one at a time: those behind it would come after a resume.
        self._pausing: asyncio.Task[Answer] | None = None
        #: When an answer last said that the engine admits requests.
        self._opened_at_s: float | None = None
        #: Whether an answer said so, and no pause was sent since: what it counts runs then.
        self._admits = False
        #: Whether a call of a push got no answer: it may wait in the front end until no request runs.
        self._push_lost = False

    @property
    def url(self) -> str:
        """The address of the server, without its keys."""
        return str(self._address)

    @property
    def version_known_by(self) -> str:
        """The range of versions in which the server was found at connect, and what is known of it by; empty before."""
        return self._known_by

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """Reads the server's version and arguments, finds its processes, and has it generate a token.

        No read tells whether it admits requests: one that generates does. One that does not is asked no further.
        Raises ConfigurationError where no tokenspeed control server answers there, where its version is not known or
        cannot be driven, or where it refuses a key.
        """
        clock = Deadline(deadline_s)
        answer, control = await together(
            self._reads.get(SERVER_INFO, clock.left_s), self._reads.get(WEIGHT_VERSION, clock.left_s)
        )
        info = info_of(answer)
        if info is None or weights_label(control) is None:
            kind = NothingListens if answer.nothing_listens else ConfigurationError
            other = await other_kind("tokenspeed", self._http, {SERVER_INFO: answer}, self._key, clock.left_s)
            raise kind(f"{self.url}: {why_not(answer, control)}{other}")
        own = str(info["tokenspeed_version"])
        unknown = VERSIONS.unknown(own)
        if unknown is not None and not self._warns:
            raise ConfigurationError(f"{self.url}: {unknown}; unknown_version=warn drives it as the nearest of them")
        known = VERSIONS.nearest(own)
        if known.effects.undrivable is not None:
            why = f"tokenspeed {own} cannot be driven: {known.effects.undrivable}"
            raise ConfigurationError(f"{self.url}: {why}; use a later one ({VERSIONS.known})")
        several = one_reply_of(info)
        if several:
            raise ConfigurationError(f"{self.url}: {several}")
        self._known_by = f"{known}, {known.source}"
        notes = () if unknown is None else (f"{unknown}: driven as {known}",)
        self._capabilities = capabilities_of(info, own, sizes=self._sizes, notes=notes)
        await self._processes.find(boot_of(info), deadline_s=clock.left_s)
        await self._have_token(clock)
        return self._capabilities

    async def keys_needed(self, *, deadline_s: float) -> Mapping[str, bool]:
        """By name, whether each key that the URL gives is needed. Its gateway asks for one where it generates alone.

        Source: smg, the gateway of tokenspeed 0.1.1, server.rs: `/v1/models` is one of its public routes.
        """
        guarded = {"api_key": [("POST", "/generate")], "control_key": [("GET", WEIGHT_VERSION)]}
        return await keys_needed(self._address, self._http, guarded, deadline_s)

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """The calls of a command, in order; `send` makes each of them one request."""
        return plan(command, facts, self._known())

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """One call of a push: `how` is `init`, `distributed`, `mooncake` or `destroy`."""
        return push(how, args, version)

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Sends one request, once. A pause that is not answered yet is waited for, and none is sent behind it."""
        if call.name == NOT_SENT:
            return Reply("rejected", detail=call.args["why"])
        clock = Deadline(deadline_s)
        if call.name == PAUSE:
            return await self._pause(call, clock)
        answer = await self._post(call, clock.left_s)
        reply = replied(call, answer)
        if was_resumed(answer):
            self._is_open()
        if call.name in PUSHES.values() and reply.outcome == "lost" and not reply.refused:
            self._push_lost = True
        return await self._continued(reply, clock) if call.name == CONTINUE else reply

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """Makes the reads that tell what is wanted, all at once.

        None tells whether it admits requests. For a short while after an answer that said so it counts as open. What
        is counted of a closed engine may be held, and says nothing unless it is none.
        """
        clock = Deadline(min(deadline_s, READ_S))
        paths = [SERVER_INFO]
        paths += [LOADS] if Fact.RUNNING in want else []
        paths += [WEIGHT_VERSION] if Fact.CONTENTS in want else []
        answers = dict(
            zip(paths, await together(*(self._reads.get(each, clock.left_s) for each in paths)), strict=True)
        )
        info = info_of(answers[SERVER_INFO])
        silent = next((each for each in answers.values() if each.status is None), None)
        if info is None or silent is not None:
            return await self._unanswered(silent or answers[SERVER_INFO], clock)
        parts: dict[str, Any] = {"boot": await self._processes.boot(boot_of(info), clock)}
        if self._opened_at_s is not None and time.monotonic() - self._opened_at_s < YOUNG_S:
            parts["admission"] = "open"
        if LOADS in answers:
            requests = requests_of(info, answers[LOADS])
            parts["running"] = requests if self._admits or requests == 0 else None
        if WEIGHT_VERSION in answers:
            parts["weights_label"] = weights_label(answers[WEIGHT_VERSION])
        return Observation(alive=True, sampled_at=time.monotonic(), **parts)

    async def boot_anew(self, *, deadline_s: float) -> Observation:
        """The boot that `/get_server_info` tells over a new connection."""
        clock = Deadline(min(deadline_s, READ_S))
        answer = await self._reads.get(SERVER_INFO, clock.left_s, fresh=True)
        info = info_of(answer)
        if info is None:
            return await self._unanswered(answer, clock)
        boot = await self._processes.boot(boot_of(info), clock)
        return Observation(boot=boot, alive=True, sampled_at=time.monotonic())

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """Proved where a pause is answered: its scheduler has drained. Requests that it holds back run no step."""
        return await self._idle(facts, min(1.0, deadline_s / 2), Deadline(deadline_s))

    async def idle_within(self, facts: Facts, *, wait_s: float, deadline_s: float) -> Verdict:
        """As `prove_idle`. The server holds a pause back until its scheduler has drained."""
        return await self._idle(facts, min(wait_s, deadline_s * 0.9), Deadline(deadline_s))

    async def barrier(self, *, deadline_s: float) -> bool:
        """True once the pause that was sent has been answered, and calls that it always refuses, behind the others.

        A push that got no answer may wait until no request runs, which is asked too.
        """
        clock = Deadline(deadline_s)
        if await self._pause_answered(clock.left_s) is None and self._pausing is not None:
            return False
        if not await self._reads.all_ended(clock):
            return False
        if self._push_lost:
            seen = await self.observe(frozenset({Fact.RUNNING}), deadline_s=clock.left_s)
            if seen.boot is not None and seen.running != 0:
                return False
        self._push_lost = False
        return True

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Generates tokens. `/health_generate` says "ok" whatever is so."""
        verdict = generated(await self._generate(probe, deadline_s))
        if isinstance(verdict, Proved):
            self._is_open()
        return verdict

    async def processes(self) -> tuple[Process, ...] | None:
        """The process that listens on the port, or that of `pid=`: gateway, engine and ranks are below it."""
        return self._processes.roots

    async def aclose(self) -> None:
        """Closes the connections. The server is left as it is; a pause that it was asked for stays."""
        if self._pausing is not None:
            self._pausing.cancel()
            await asyncio.wait({self._pausing})
        await self._http.aclose()

    # calls

    async def _post(self, call: Call, deadline_s: float) -> Answer:
        return await self._http.request(
            "POST",
            f"/{call.name}",
            deadline_s=deadline_s,
            repeatable=call.repeatable,
            json_body=dict(call.args),
            key=self._control_key,
        )

    async def _pause(self, call: Call, clock: Deadline) -> Reply:
        """The reply to a pause, which comes once no request runs; late where that takes longer than there is time."""
        answer = await self._paused(call, clock.left_s)
        if answer is None:
            why = "requests still run: a pause by wait is answered once they have ended"
            return Reply("lost", detail=why, late=True)
        return replied(call, answer)

    async def _paused(self, call: Call, wait_s: float) -> Answer | None:
        """The answer to the pause that is under way, else to a new one; None where it does not come in this time.

        One that fails opens the front end, which its handler says by a 500.
        """
        self._opened_at_s, self._admits = None, False
        if self._pausing is None:
            self._pausing = asyncio.create_task(self._post(call, PAUSE_S))
        answer = await self._pause_answered(wait_s)
        if answer is not None and answer.status == 500 and replied(call, answer).outcome == "rejected":
            self._is_open()
        return answer

    async def _pause_answered(self, wait_s: float) -> Answer | None:
        """The answer to the pause that is under way; None where there is none, or no answer in this time."""
        pausing = self._pausing
        if pausing is None:
            return None
        await asyncio.wait({pausing}, timeout=max(0.0, wait_s))
        if not pausing.done():
            return None
        if self._pausing is pausing:
            self._pausing = None
        return pausing.result()

    async def _continued(self, reply: Reply, clock: Deadline) -> Reply:
        """The reply to a resume. A pause that waited is cut off by it, and one that came to its turn after it is not.

        Source: runtime/engine/scheduler_communicator.py: one call of a kind is with the scheduler at a time.
        """
        if reply.outcome != "done":
            return reply
        if self._pausing is not None:
            answer = await self._pause_answered(clock.left_s)
            if answer is None or answer.ok:
                why = "a pause that was asked for before it came to its turn after it, or may: resume it again"
                return Reply("lost", status=reply.status, detail=why)
        self._is_open()
        return reply

    async def _idle(self, facts: Facts, wait_s: float, clock: Deadline) -> Verdict:
        if facts.admission != "closed":
            return Pending(reason="it is not known to be paused, and asking would pause it")
        if thaws(facts):
            return await self._frozen(facts, clock)
        call = Call(PAUSE, {"mode": "wait"}, repeatable=True)
        answer = await self._paused(call, wait_s)
        if answer is None:
            return Pending(reason="requests still run", figures={REQUESTS_RUN: bool(await self._requests(clock))})
        reply = replied(call, answer)
        if reply.outcome == "done":
            return Proved(grade=Grade.REPORTED, reason="a pause was answered: its scheduler has drained")
        resumed = self._opened_at_s is not None
        return Pending(reason=f"/{PAUSE}: {reply.status or ''} {reply.detail[:160]}", figures={REQUESTS_RUN: resumed})

    async def _frozen(self, facts: Facts, clock: Deadline) -> Verdict:
        """Whether an engine is idle whose memory is, or may be, released: a pause would thaw its scheduler.

        One that is known to be released was drained for that. Of another a count may be of seconds before: it is asked
        for once the scheduler has gone on.
        """
        if not facts.unmapped() and not await self._reads.all_ended(clock):
            return Pending(reason="memory may be released, and calls that its scheduler always refuses got no answer")
        requests = await self._requests(clock)
        if requests == 0:
            return Proved(grade=Grade.REPORTED, reason="memory may be released, and no request is counted")
        if requests is None:
            return Pending(reason="it does not say how many requests it has")
        return Pending(reason=f"memory may be released, and it has {requests} requests")

    async def _requests(self, clock: Deadline) -> int | None:
        info, loads = await together(self._reads.get(SERVER_INFO, clock.left_s), self._reads.get(LOADS, clock.left_s))
        asked = info_of(info)
        return None if asked is None else requests_of(asked, loads)

    # reads

    async def _generate(self, probe: Probe, deadline_s: float) -> Answer:
        sampling = {"temperature": 0, "max_new_tokens": probe.tokens}
        body = {"text": probe.text, "sampling_params": sampling}
        return await self._http.request(
            "POST", "/generate", deadline_s=deadline_s, repeatable=True, json_body=body, key=self._key
        )

    async def _have_token(self, clock: Deadline) -> None:
        """Has the engine generate a token, if it does. A request that nothing counts waits at a closed front end.

        Raises ConfigurationError where its gateway refuses the key, which it asks for generations alone.
        """
        asking = asyncio.ensure_future(self._generate(Probe(), min(TOKEN_S, clock.left_s / 2)))
        trying = Deadline(TOKEN_S)
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=POLL_S)
                if asking.done() or trying.elapsed_s < UNCOUNTED_S:
                    continue
                if await self._requests(clock) == 0 and not asking.done():
                    return
            answer = asking.result()
        finally:
            asking.cancel()
            await asyncio.wait({asking})
        if answer.status in KEY_REFUSED:
            raise ConfigurationError(f"{self.url}: {why_not(answer)}")
        if isinstance(generated(answer), Proved):
            self._is_open()

    def _is_open(self) -> None:
        """An answer has said that the engine admits requests."""
        self._opened_at_s, self._admits = time.monotonic(), True

    async def _unanswered(self, answer: Answer, clock: Deadline) -> Observation:
        """The observation of a server that did not answer: not alive where its processes have ended, else unknown."""
        ended = await self._processes.end(clock) if answer.nothing_listens else None
        if ended is not None:
            return Observation(alive=False, detail=ended, sampled_at=time.monotonic())
        return Observation(detail=why_not(answer), sampled_at=time.monotonic())

    def _known(self) -> Capabilities:
        if self._capabilities is None:
            raise ConfigurationError(f"{self.url}: not connected yet")
        return self._capabilities
