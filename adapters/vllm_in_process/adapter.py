"""The adapter: the port's calls are methods of the object, made at its home. They are joined and never cancelled."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import Any

from lifecycle.core.calls import Call, Reply
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command
from lifecycle.core.deadline import Deadline
from lifecycle.core.errors import ConfigurationError
from lifecycle.core.facts import Admission, Fact, Facts, Grade
from lifecycle.core.observation import Observation, Probe
from lifecycle.core.readings import Process
from lifecycle.core.verdicts import NotApplicable, Pending, Proved, Refuted, Verdict
from lifecycle.nodes.locate import ended
from lifecycle.nodes.processes import said_ended
from lifecycle.nodes.trees import with_all_below
from lifecycle.rules.identity import boot_identity

from ..home import HomeClosed, Outcome
from ..vllm.answers import NO_UPDATE, RANKS_DISAGREE
from ..vllm.capabilities import TAGS, boot_of, capabilities_of, counts_requests_alone
from ..vllm.idle import READ_S, paused_again
from ..vllm.plan import CLOSE_PUSH, NOT_SENT, close_push, opens, plan, push
from ..vllm.versions import VERSIONS, Effects
from .config import config_of
from .objects import driven, why_not_sent

#: Seconds after which a pause that waits for its requests is left to wait by itself.
WAIT_LEFT_S = 0.5

#: Seconds that a probe may take before the adapter checks whether it only waits behind kept requests.
QUEUED_S = 2.0

#: Seconds between two reads of the counter of tokens.
COUNT_S = 0.2

#: Seconds for which a close waits for calls that were begun.
CLOSE_S = 30.0

_numbers = itertools.count(1)


class InProcessVLLM:
    """Drives one vLLM in this process: `Engine(InProcessVLLM(llm, name="rollout-0"))`.

    - `llm`: an `AsyncLLM`, or an `LLM`.
    - `name`: must be its own on this host, since leases and what is kept across processes go by it.
    - `loop`: the event loop of an `AsyncLLM`, where that is not known by itself: it has handled a request, or this is
      constructed on it. It must run while engines are moved, and no caller may block it.
    - `sizes`: bytes of weights and kv_cache for each rank; learned from the first release unless given.
    - `unknown_version`: `warn` drives a version that is not in `versions.VERSIONS` as the one before it.

    An `LLM` blocks, so that its calls run in one thread of this adapter. While a command is under way nobody else may
    call it. It has no `wait` where its core is in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0).
    """

    #: The versions of vLLM on which this adapter was measured.
    measured_on = ("0.32.0",)

    def __init__(
        self,
        llm: Any,
        *,
        name: str | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        sizes: Mapping[str, int] | None = None,
        unknown_version: str = "refuse",
    ) -> None:
        self.url = f"vllm-in-process:{name or f'{os.getpid()}-{next(_numbers)}'}"
        if unknown_version not in ("refuse", "warn"):
            raise ConfigurationError(f"{self.url}: unknown_version must be refuse or warn, got {unknown_version!r}")
        if not all(tag in TAGS and type(size) is int and size > 0 for tag, size in (sizes or {}).items()):
            raise ConfigurationError(f"{self.url}: sizes must be bytes of {' and '.join(TAGS)}, got {sizes!r}")
        self._engine = driven(llm, self.url, loop)
        self._warns, self._sizes = unknown_version == "warn", sizes
        self._config = config_of(self._engine.vllm_config)
        self._effects = Effects()
        self._capabilities: Capabilities | None = None
        self._roots: tuple[Process, ...] | None = None
        self._family: tuple[Process, ...] = ()

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """Reads its version and configuration, and finds the processes of its engine core.

        Raises ConfigurationError where its version is not known, its engine core has ended, or it does not answer.
        """
        clock = Deadline(deadline_s)
        own = str(import_module("vllm").__version__)
        unknown = VERSIONS.unknown(own)
        if unknown is not None and not self._warns:
            raise ConfigurationError(f"{self.url}: {unknown}; unknown_version='warn' drives it as the nearest of them")
        known = VERSIONS.nearest(own)
        self._effects = replace(known.effects, labels=known.effects.labels and self._engine.labels)
        label = await self._answered(self._engine.label, clock) if self._effects.labels else None
        if not self._effects.labels:
            await self._answered(self._engine.paused, clock)
        capabilities = capabilities_of(
            self._config,
            own,
            self._effects,
            sizes=self._sizes,
            label=label,
            notes=() if unknown is None else (f"{unknown}: driven as {known}",),
        )
        modes = {mode: traits for mode, traits in capabilities.pause.items() if mode not in self._engine.lacks}
        facts = {Fact.BOOT, Fact.ADMISSION, Fact.CLOSED, Fact.RUNNING}
        observable = frozenset(facts | ({Fact.CONTENTS} if self._effects.labels else set()))
        self._capabilities = replace(capabilities, pause=modes, cancellable=False, observable=observable)
        self._roots = self._engine.processes()
        with suppress(TimeoutError):  # without them silence is never taken for an end
            self._family = await with_all_below(self._roots or (), deadline_s=clock.left_s)
        return self._capabilities

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """The calls of a command, in order; `send` makes each of them one call of the object."""
        return plan(command, facts, self._known(), self._effects)

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """One call of a push: `how` is `init`, `update` or `shutdown`."""
        return push(how, args)

    def close_push_call(self) -> Call:
        """Ends a push that failed."""
        return close_push(self._known())

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Makes one call, once. One that outlasts the deadline runs on, and `barrier` waits for it.

        A pause that waits for its requests is left to wait where the object takes calls beside it: it stays, and its
        answer says no more than that the engine is idle.
        """
        if call.name == NOT_SENT:
            return Reply("rejected", detail=call.args["why"])
        clock = Deadline(deadline_s)
        if call.name != "pause" or call.args["mode"] != "wait" or not self._engine.beside:
            return await self._made(call, deadline_s)
        reply = await self._made(call, min(WAIT_LEFT_S, deadline_s / 2), joined=False)
        if reply.late and (await self.admission(clock.left_s))[0] == "closed":
            return Reply("done")
        return reply

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """Asks the object what is wanted. Every observation asks its engine core whether it is paused.

        The number of requests counts kept and queued ones too, so that of a closed engine only none says anything.
        """
        clock = Deadline(min(deadline_s, READ_S))
        asked = await self._engine.home.run(self._engine.paused, clock.left_s)
        admission, said = _admission(asked)
        disagree = RANKS_DISAGREE in said
        if admission is None and not disagree:
            return await self._silent(said, clock)
        parts: dict[str, Any] = {"admission": admission}
        if Fact.BOOT in want:
            parts["boot"] = boot_identity(boot_of(self._config), self._roots or ())
        if Fact.RUNNING in want:
            count = self._engine.unfinished()
            parts["running"] = count if count == 0 or admission == "open" else None
        if Fact.CONTENTS in want and self._effects.labels:
            label = await self._engine.home.run(self._engine.label, clock.left_s)
            parts["weights_label"] = label.value if label is not None else None
        if disagree:
            parts["detail"] = f"its data-parallel ranks disagree ({said[:200]})"
        return Observation(alive=True, sampled_at=time.monotonic(), **parts)

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """Proved where a second pause is answered: no step runs, and no request holds KV memory. Drops the cache."""
        return await paused_again(self, facts, min(1.0, deadline_s / 3), deadline_s)

    async def idle_within(self, facts: Facts, *, wait_s: float, deadline_s: float) -> Verdict:
        """As `prove_idle`. The scheduler holds a pause that waits back until it is idle."""
        return await paused_again(self, facts, min(wait_s, deadline_s / 2), deadline_s)

    async def barrier(self, *, deadline_s: float) -> bool:
        """True once every call that was begun has ended, and the engine core has answered behind them.

        True also where the engine core has ended: no call can take effect then, and some never return.
        """
        clock = Deadline(deadline_s)
        joined = await self._engine.home.all_ended(clock.left_s / 2)
        if joined and (await self.admission(clock.left_s))[0] is not None:
            return True
        return await self._has_ended(clock)

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Generates a token. Where the request only queues behind kept ones, tokens of those count."""
        clock, request_id = Deadline(deadline_s), f"lifecycle-probe-{os.getpid()}-{next(_numbers)}"
        generate = self._engine.home.run(lambda: self._engine.generate(probe, request_id), deadline_s)
        asking = asyncio.ensure_future(generate)
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=max(0.05, min(QUEUED_S, clock.left_s)))
                if not asking.done() and await _steps_run(clock.left_s) and not asking.done():
                    return Proved(grade=Grade.MEASURED, reason="kept requests get tokens; a new one queues")
            return _generated(asking.result(), deadline_s)
        finally:
            if not asking.done() or asking.result() is None:
                await self._engine.home.run(lambda: self._engine.give_up(request_id), READ_S)
            asking.cancel()
            await asyncio.wait({asking})

    async def processes(self) -> tuple[Process, ...] | None:
        """The processes of its engine core, or this one where its core is in it. The probe measures their trees."""
        return self._roots

    async def aclose(self) -> None:
        """The home's thread has ended, once the calls that were begun have; the object is left as it is."""
        await self._engine.home.aclose(CLOSE_S)

    # what `idle.paused_again` asks

    async def admission(self, deadline_s: float) -> tuple[Admission | None, str]:
        """Whether it admits requests, and its answer in words where it does not say that."""
        return _admission(await self._engine.home.run(self._engine.paused, deadline_s))

    async def pause_once(self, call: Call, deadline_s: float) -> Reply:
        """The reply to this pause, which may be left to wait."""
        if call.args["mode"] == "wait" and "wait" in self._engine.lacks:
            call = replace(call, args={**call.args, "mode": "keep"})  # nothing steps there beside this call
        return await self._made(call, deadline_s, joined=False)

    def counts_requests_alone(self) -> bool:
        """Whether a pause that waits says that requests run."""
        return counts_requests_alone(self._config)

    # calls

    async def _made(self, call: Call, deadline_s: float, *, joined: bool = True) -> Reply:
        why = why_not_sent(call)
        if why is not None:
            return Reply("rejected", detail=why)
        outcome = await self._engine.home.run(lambda: self._engine.perform(call), deadline_s, joined=joined)
        if outcome is None:
            return Reply("lost", detail=f"it still runs after {deadline_s:.1f} s", late=True)
        error = outcome.error
        if isinstance(error, HomeClosed):
            return Reply("lost", detail=str(error), refused=not error.begun)
        if error is not None and self._engine.died():
            return Reply("lost", detail=f"its engine core has ended ({_message(error)})")
        if call.name == CLOSE_PUSH and error is not None and NO_UPDATE in str(error):
            return Reply("done")
        why = _message(error) if error is not None else _refusal(call, outcome.value)
        return Reply("done", value=outcome.value) if why is None else Reply("rejected", detail=why)

    async def _answered(self, ask: Any, clock: Deadline) -> Any:
        """What it answers at connect."""
        outcome = await self._engine.home.run(ask, clock.left_s)
        if outcome is None:
            raise ConfigurationError(
                f"{self.url}: it did not answer in {clock.total_s:.1f} s; its event loop or thread may be blocked, "
                "or a call of somebody else be under way"
            )
        if outcome.error is not None:
            raise ConfigurationError(f"{self.url}: {_message(outcome.error)}") from outcome.error
        return outcome.value

    async def _silent(self, said: str, clock: Deadline) -> Observation:
        """The observation of one that did not answer: not alive where its processes have ended, else unknown."""
        if await self._has_ended(clock):
            return Observation(alive=False, detail=said_ended(self._family), sampled_at=time.monotonic())
        return Observation(detail=said, sampled_at=time.monotonic())

    async def _has_ended(self, clock: Deadline) -> bool:
        """Whether all processes of its engine core are known to have ended. Never where that is this one."""
        return bool(self._family) and await ended(self._family, deadline_s=clock.look_s())

    def _known(self) -> Capabilities:
        if self._capabilities is None:
            raise ConfigurationError(f"{self.url}: not connected yet")
        return self._capabilities


def _admission(asked: Outcome | None) -> tuple[Admission | None, str]:
    """Whether requests are admitted, from what a question whether it is paused came to."""
    if asked is None:
        return None, "no answer in time"
    if asked.error is not None or not isinstance(asked.value, bool):
        return None, repr(asked.value) if asked.error is None else _message(asked.error)
    return "closed" if asked.value else "open", ""


def _refusal(call: Call, value: Any) -> str | None:
    """Why what a call returned does not say that it was done, in words; None where it does, or says nothing."""
    if call.name == "wake_up" and isinstance(value, bool) and value is not opens(call):
        tags = ", ".join(call.args["tags"])
        return f"it says that {'everything' if value else 'not everything'} is awake, after the wake of {tags}"
    if call.name == "resume" and value is False:
        return "it says that memory is asleep still, so that it was not resumed"
    if call.name in ("pause", "reset_prefix_cache") and value is False:
        return "the prefix cache was not reset: requests hold blocks of it"
    if call.name == "collective_rpc" and not isinstance(value, list):
        return f"it returned no result of each worker ({str(value)[:80]!r})"
    return None


def _generated(outcome: Outcome | None, deadline_s: float) -> Verdict:
    if outcome is None:
        return Pending(reason=f"it generated nothing in {deadline_s:.1f} s")
    if outcome.error is not None:
        return Refuted(reason=f"it generated nothing: {_message(outcome.error)}")
    if outcome.value is None:
        return NotApplicable(reason="requests were enqueued: whoever generates now would be given their outputs")
    if not outcome.value:
        return Refuted(reason="it generated no token")
    return Proved(grade=Grade.MEASURED, reason="it generated a token", figures={"output_ids": outcome.value})


async def _steps_run(deadline_s: float) -> bool:
    """Whether engines of vLLM in this process generate tokens: their number grows."""
    before = _tokens()
    await asyncio.sleep(min(COUNT_S, deadline_s))
    return before < _tokens()


def _tokens() -> float:
    """How many tokens were generated; 0 where nothing counts them (disable_log_stats=True)."""
    snapshot = import_module("vllm.v1.metrics.reader").get_metrics_snapshot()
    return sum((each.value for each in snapshot if each.name == "vllm:generation_tokens"), 0.0)


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
