"""The adapter: the port over verbs that a user declared. It is also the base class of adapters over handles."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lifecycle.core.calls import Call, Reply
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command
from lifecycle.core.deadline import Deadline
from lifecycle.core.errors import ConfigurationError
from lifecycle.core.facts import Fact, Facts, Grade
from lifecycle.core.observation import Observation, Probe
from lifecycle.core.readings import Process
from lifecycle.core.verdicts import REQUESTS_RUN, Pending, Proved, Refuted, Unmeasurable, Verdict

from ..home import Ended, HomeInTurn
from ..server_processes import ServerProcesses
from .declaration import DEADLINE, FACTS, About, Declaration, Placed, Verbs
from .plan import NOT_SENT, PUSH_BEGINS, PUSH_ENDS, plan, push
from .processes import Declared, finder
from .verbs import NotCalled, judged, words

#: Seconds within which an engine that lives answers a question that does not depend on its load.
READ_S = 10.0

#: The share of its deadline that a verb is told: what ends by itself is to have ended before nobody waits for it.
OWN_SHARE = 0.9


class DeclaredAdapter:
    """Drives one engine by the verbs that are declared of it.

    - `name`: what it is called, in the form of a URL (`ray:policy-0`): what is known of it is kept under this name.
    - `processes`: what holds its memory: pids, `Process`es, its URL where it listens on a port, or a function that
      returns those. Every node of it counts, and not the one alone that answers.
    - `about`: what no verb tells: sizes, device, ranks.

    A call is never cancelled. One that outlasts its deadline goes on, and nothing else is called until it has ended.
    """

    def __init__(
        self, name: str, verbs: Verbs, *, processes: Declared | None = None, about: About | None = None
    ) -> None:
        try:
            self.declared = Declaration(verbs, about or About(), processes is not None)
        except ConfigurationError as wrong:
            raise ConfigurationError(f"{name}: {wrong}") from None
        self._name = name
        #: What tells it from other engines where no boot is asked for: of two of one kind each has its own lease.
        self._by_name = f"{self.declared.about.engine} {name}"[:80]
        self._home = HomeInTurn()
        self._processes = ServerProcesses(finder(processes, name, self._home))
        self._capabilities = self.declared.capabilities()
        #: Whether a call got no answer since the last barrier: what it did may not have ended with it.
        self._unanswered = False

    @property
    def url(self) -> str:
        """The name that it was given."""
        return self._name

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """What was declared. Its processes are looked for, and its boot is asked for where there is a question for it.

        Raises ConfigurationError where it does not answer that, or where there is no such process.
        """
        clock = Deadline(deadline_s)
        own = await self._own_identity(clock)
        if own is None:
            raise ConfigurationError(f"{self.url}: it does not say which process it is ({self._silence})")
        await self._processes.find(own, deadline_s=clock.left_s)
        if "boot" not in self.declared.placed and not self._processes.roots:
            raise ConfigurationError(f"{self.url}: no process of it was found, and no question boot= is declared")
        self._capabilities = self.declared.capabilities(await self.version(clock.left_s))
        return self._capabilities

    def is_known(self, capabilities: Capabilities) -> None:
        """Plans go by these capabilities, which an adapter of the same engine found out elsewhere."""
        self._capabilities = capabilities

    async def version(self, deadline_s: float) -> str:
        """The version of the engine, for messages. A subclass may ask for it."""
        return self.declared.about.version

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """The verbs of a command, in order."""
        return plan(command, facts, self._capabilities, self.declared)

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """One call of a push, by a word that was declared."""
        return push(how, args, self.declared)

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Calls one verb, once, and reads what its ranks answered.

        Where some did it and others did not, what is so is unknown, whatever a refusal of all of them would mean.
        """
        if call.name == NOT_SENT:
            return Reply("rejected", detail=call.args["why"])
        if call.name in (PUSH_BEGINS, PUSH_ENDS) and self.declared.has(call.name) is None:
            return Reply("done")
        placed = self.declared.by_call(call.name)
        limit_s = min(deadline_s, placed.verb.deadline_s or math.inf)
        outcome = await self._run(placed, call.args, limit_s)
        match outcome.what:
            case "waited":
                why = f"it was not called: {self._home.last_name}(), called before, still runs"
                return Reply("lost", detail=why, refused=True, late=True)
            case "runs":
                return Reply("lost", detail=f"it still runs after {limit_s:.1f} s", late=True)
            case "cancelled":
                self._unanswered = True
                return Reply("lost", detail=_of(outcome))
            case "raised":
                return self._raised(placed, outcome)
        said = judged(placed.verb, outcome.value)
        self._unanswered |= said.unanswered
        if said.unclear:
            return Reply("lost", detail=f"none that is clear, and of all ranks: {said.why}", value=outcome.value)
        return Reply("done" if said.done else "rejected", detail=said.why, value=outcome.value)

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """Asks the questions that tell what is wanted, one after the other.

        It is alive where one was answered, or where all of its processes exist. One whose processes have all ended is
        gone, whatever is silent.
        """
        clock = Deadline(min(deadline_s, READ_S))
        asking = Deadline(clock.total_s / 2)  # the other half is for whether its processes have ended
        said: dict[str, Any] = {}
        for name, fact in FACTS.items():
            asked = fact in want or (fact is Fact.ADMISSION and Fact.CLOSED in want)
            if name not in self.declared.placed or not asked:
                continue
            answer = await self._ask(name, asking.left_s)
            if answer is None:
                return await self._silent(clock)
            said[name] = answer.value
        asked_for_boot = Fact.BOOT in want and "boot" not in said
        if asked_for_boot or not said:
            ended = await self._processes.end(clock)
            if ended is not None:
                return Observation(alive=False, detail=ended, sampled_at=time.monotonic())
            if not said and not self._processes.all_there():
                return await self._silent(clock)
        parts = self._read(said)
        if Fact.BOOT in want:
            parts["boot"] = await self._processes.boot(str(said.get("boot", self._by_name))[:80], clock)
        return Observation(alive=True, sampled_at=time.monotonic(), **parts)

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """What the question `idle` says, else how many requests run; else that its pause was acknowledged."""
        clock = Deadline(deadline_s)
        idle = self.declared.has("idle")
        if idle is not None:
            outcome = await self._call(idle, clock.left_s)
            said = judged(idle.verb, outcome.value) if outcome.what == "returned" else None
            if said is not None and said.done:
                figures = {"cache_dropped": True} if idle.verb.drops_cache else {}
                return Proved(grade=Grade.REPORTED, reason=f"{idle.name}() says so", figures=figures)
            why = f"{idle.name}(): {said.why if said is not None else _of(outcome)}"
            return Pending(reason=why, figures={REQUESTS_RUN: bool(await self._running(clock))})
        if "running" in self.declared.placed:
            count = await self._running(clock)
            if count is None:
                return Unmeasurable(reason=f"it does not say how many requests run ({self._silence})")
            if count:
                return Pending(reason=f"{count} requests run", figures={REQUESTS_RUN: True})
            return Proved(grade=Grade.REPORTED, reason="it says that no request runs")
        if facts.admission != "closed":
            return Unmeasurable(reason="no pause was acknowledged, and no question is declared: idle= or running=")
        return Proved(grade=Grade.ACKNOWLEDGED, reason="its pause was acknowledged; no question asks (idle=)")

    async def barrier(self, *, deadline_s: float) -> bool:
        """True once every call has ended, and, after one that got no answer, once the verb `barrier` has answered.

        Without that verb only the end of its processes tells that such a call runs no more.
        """
        clock = Deadline(deadline_s)
        if not await self._home.all_ended(clock.left_s / 2) or self._home.busy:
            return False
        if not self._unanswered:
            return True
        over = "barrier" in self.declared.placed and await self._ask("barrier", clock.left_s / 2) is not None
        self._unanswered = not (over or await self._processes.end(clock) is not None)
        return not self._unanswered

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Whether the question `answer` returned tokens, as ids or as text."""
        placed = self.declared.has("answer")
        if placed is None:
            return Unmeasurable(reason="no verb generates a token: declare answer=")
        outcome = await self._call(placed, deadline_s, {"text": probe.text, "tokens": probe.tokens})
        if outcome.what in ("runs", "waited", "cancelled"):
            return Pending(reason=f"{placed.name}(): {_of(outcome)}")
        if outcome.what == "raised":
            return Refuted(reason=f"{placed.name}() generated nothing: {_of(outcome)}")
        tokens = outcome.value
        if not tokens or not isinstance(tokens, str | Sequence):
            return Refuted(reason=f"{placed.name}() generated nothing: it answered {tokens!r:.200}")
        ids = all(isinstance(each, int) for each in tokens)
        return Proved(
            grade=Grade.MEASURED,
            reason="it generated a token",
            figures={"output_ids": tuple(tokens)} if ids else {},
        )

    async def processes(self) -> tuple[Process, ...] | None:
        """The processes that were declared. The probe measures their whole trees."""
        return self._processes.roots

    async def aclose(self) -> None:
        """Nothing is let go: what the verbs hold belongs to whoever declared them. A subclass closes what it opened."""

    # what a subclass may use

    async def _call(self, placed: Placed, deadline_s: float, offered: Mapping[str, Any] | None = None) -> Ended:
        """What became of a verb that changes nothing."""
        given = {name: value for name, value in (offered or {}).items() if name in placed.takes}
        return await self._run(placed, given, min(deadline_s, placed.verb.deadline_s or math.inf))

    async def _run(self, placed: Placed, args: Mapping[str, Any], limit_s: float) -> Ended:
        """What became of a verb that is given these arguments, and its deadline where it takes that."""
        given = {**args, DEADLINE: OWN_SHARE * limit_s} if DEADLINE in placed.takes else args
        return await self._home.run(placed.name, partial(placed.verb.call, **given), limit_s)

    async def _ask(self, name: str, deadline_s: float) -> Ended | None:
        """The answer to a question; None where there is none that counts, and `_silence` says why."""
        placed = self.declared.placed[name]
        outcome = await self._call(placed, deadline_s)
        said = judged(placed.verb, outcome.value) if outcome.what == "returned" else None
        if said is not None and said.done:
            return outcome
        self._silence = f"{placed.name}(): {said.why if said is not None else _of(outcome)}"
        return None

    _silence: str = "no question was answered, and not all of its processes exist"

    async def _running(self, clock: Deadline) -> int | None:
        """How many requests run, where it says so."""
        if "running" not in self.declared.placed:
            return None
        said = await self._ask("running", min(clock.left_s, READ_S))
        return None if said is None else _whole(said.value)

    async def _own_identity(self, clock: Deadline) -> str | None:
        """What it says of its boot; its kind and its name where that is not asked for."""
        if "boot" not in self.declared.placed:
            return self._by_name
        said = await self._ask("boot", min(clock.left_s, READ_S))
        return None if said is None else str(said.value)[:80]

    async def _silent(self, clock: Deadline) -> Observation:
        """The observation of an engine that did not answer: not alive where its processes have ended, else unknown."""
        ended = await self._processes.end(clock)
        detail = self._silence if ended is None else ended
        return Observation(alive=None if ended is None else False, detail=detail, sampled_at=time.monotonic())

    def _raised(self, placed: Placed, outcome: Ended) -> Reply:
        if isinstance(outcome.error, NotCalled):
            return Reply("lost", detail=f"it was not called: {outcome.error}", refused=True)
        if isinstance(outcome.error, placed.verb.unanswered):
            self._unanswered = True
            return Reply("lost", detail=_of(outcome))
        return Reply("rejected", detail=_of(outcome))

    def _read(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """The parts of an observation that were said. What is not of the kind that was asked for says nothing."""
        parts: dict[str, Any] = {}
        if said.get("admission") in ("open", "closed"):
            parts["admission"] = said["admission"]
        if "running" in said:
            parts["running"] = _whole(said["running"])
        released = said.get("released")
        if isinstance(released, list | tuple | set | frozenset):
            parts["released_tags"] = frozenset(released) & frozenset(self.declared.tags)
        if isinstance(said.get("label"), str):
            parts["weights_label"] = said["label"]
        checksum = said.get("checksum")
        if isinstance(checksum, Mapping):
            parts["checksums"] = {str(role): str(each) for role, each in checksum.items()}
        elif checksum is not None:
            parts["checksum"] = str(checksum)
        return parts


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _of(outcome: Ended) -> str:
    """What became of a call that returned nothing, in words."""
    if outcome.error is not None:
        return words(outcome.error)
    return "a call before it still runs" if outcome.what == "waited" else "it still runs"
