"""The adapter: the port's calls are coroutines of the engine, run on its loop. They are joined and never cancelled.

An answer is told from another by their order alone, so that a call which was given up half-way would have the next one
take its answer.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import psutil

from lifecycle.core.calls import Call, Reply
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command
from lifecycle.core.deadline import Deadline
from lifecycle.core.errors import ConfigurationError
from lifecycle.core.facts import Fact, Facts, Grade, Tag
from lifecycle.core.observation import Observation, Probe
from lifecycle.core.readings import Process
from lifecycle.core.verdicts import REQUESTS_RUN, NotApplicable, Pending, Proved, Refuted, Unmeasurable, Verdict
from lifecycle.nodes.locate import ended
from lifecycle.rules.identity import boot_identity

from ..home import HomeClosed, LentLoop, Outcome
from ..sglang.answers import token_in, version_of, whole
from ..sglang.capabilities import boot_of, capabilities_of, counts_requests_alone, disaggregated
from ..sglang.plan import CLOSE_PUSH, NO_SESSION, close_push, explained, plan, push
from ..sglang.versions import VERSIONS, Effects
from .calls import SGLangCalls

#: Seconds within which a live engine answers a read.
READ_S = 10.0

#: Seconds that a probe may take before it is checked whether it only waits behind kept requests.
QUEUED_S = 2.0

#: Seconds for which a close waits for calls that were begun.
CLOSE_S = 30.0

_numbers = itertools.count(1)


class InProcessSGLang:
    """Drives one `sglang.Engine` in this process: `Engine(InProcessSGLang(engine, name="rollout-0"))`.

    - `name`: must be its own on this host, since leases and what is kept across processes go by it.
    - `tags`, `sizes`: the tags to release, and their bytes for each rank where SGLang's figures are wrong.
    - `unknown_version`: `warn` drives a version that is not in `versions.VERSIONS` as the one before it.

    Calls run one after another on the loop of the engine. Where its requests are coroutines (`async_generate`) that
    loop runs anyway. Where its blocking methods are used it runs only while one of them does: then a thread of this
    adapter runs it for the time of a call, and a method that is called meanwhile raises "already running".

    There is no mode `wait`: nothing in this process would close it to new requests meanwhile. Where a scheduler dies
    SGLang ends the whole process, and this library with it.
    """

    #: The versions of SGLang on which this adapter was measured.
    measured_on = ("0.5.23",)

    def __init__(
        self,
        engine: Any,
        *,
        name: str | None = None,
        tags: Sequence[Tag] = ("weights", "kv_cache"),
        sizes: Mapping[Tag, int] | None = None,
        unknown_version: str = "refuse",
    ) -> None:
        self.url = f"sglang-in-process:{name or f'{os.getpid()}-{next(_numbers)}'}"
        if not hasattr(getattr(engine, "tokenizer_manager", None), "pause_generation"):
            raise ConfigurationError(f"{self.url}: give an sglang.Engine, not {type(engine).__name__}")
        if unknown_version not in ("refuse", "warn"):
            raise ConfigurationError(f"{self.url}: unknown_version must be refuse or warn, got {unknown_version!r}")
        if isinstance(tags, str) or not tags:
            raise ConfigurationError(f"{self.url}: tags must be a sequence of one or more, got {tags!r}")
        if not all(tag in tags and type(size) is int and size > 0 for tag, size in (sizes or {}).items()):
            raise ConfigurationError(f"{self.url}: sizes must be bytes of {' and '.join(tags)}, got {sizes!r}")
        self._calls = SGLangCalls(engine)
        self._home = LentLoop(self._calls.loop, self.url)
        self._tags, self._sizes, self._warns = tuple(tags), sizes, unknown_version == "warn"
        self._capabilities: Capabilities | None = None
        self._effects = Effects()
        self._info: Mapping[str, Any] = {}
        self._roots: tuple[Process, ...] = ()

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """Reads its arguments and the state of its schedulers, and finds their processes.

        Raises ConfigurationError where its version is not known, or where it does not answer.
        """
        info = await self._home.run(self._calls.server_info, deadline_s)
        if info is None or info.error is not None:
            why = f"it did not answer in {deadline_s:.1f} s; a call of somebody else may block its event loop"
            raise ConfigurationError(f"{self.url}: {why if info is None else _message(info.error)}")
        self._info = info.value
        own = version_of(self._info)
        unknown = VERSIONS.unknown(own)
        if unknown is not None and not self._warns:
            raise ConfigurationError(f"{self.url}: {unknown}; unknown_version='warn' drives it as the nearest of them")
        known = VERSIONS.nearest(own)
        self._effects = known.effects
        notes = () if unknown is None else (f"{unknown}: driven as {known}",)
        model = self._calls.model_info()
        found = capabilities_of(self._info, self._tags, self._sizes, model=model, notes=notes, own_abort=True)
        self._capabilities = replace(
            found,
            pause={mode: traits for mode, traits in found.pause.items() if mode != "wait"},
            cancellable=False,
            observable=frozenset({Fact.BOOT, Fact.ADMISSION, Fact.CLOSED, Fact.RUNNING, Fact.CONTENTS}),
        )
        try:
            self._roots = self._calls.processes()
        except psutil.NoSuchProcess as gone:
            raise ConfigurationError(f"{self.url}: a process of it has ended ({gone}); start it again") from gone
        return self._capabilities

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """The calls of a command, in order; `send` makes each of them one coroutine."""
        return plan(command, facts, self._known(), sessions=self._effects.sessions)

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """One call of a push: `how` is `tensor` or `distributed`."""
        return push(how, args, version)

    def close_push_call(self) -> Call:
        """Closes the session of a push that failed."""
        return close_push(self._known())

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Makes one call, once. One that outlasts the deadline runs on, and `barrier` waits for it."""
        if call.name == CLOSE_PUSH and not self._effects.sessions:
            return Reply("done") if await self.barrier(deadline_s=deadline_s) else Reply("lost", late=True)
        outcome = await self._home.run(lambda: self._calls.perform(call), deadline_s)
        if outcome is None:
            return Reply("lost", detail=f"it still runs after {deadline_s:.1f} s", late=True)
        if isinstance(outcome.error, HomeClosed):
            return Reply("lost", detail=str(outcome.error), refused=not outcome.error.begun)
        if outcome.error is not None:
            return Reply("rejected", detail=_message(outcome.error))
        done, said, value = outcome.value
        if done or (call.name == CLOSE_PUSH and NO_SESSION in said):
            return Reply("done", detail=said, value=value)
        return Reply("rejected", detail=explained(call, said))

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """Asks the scheduler for its state, behind everything that was sent to it; the rest is known in this process.

        The number of requests counts kept ones too, so that of a closed engine only none says anything.
        """
        clock = Deadline(min(deadline_s, READ_S))
        info = await self._home.run(self._calls.server_info, clock.left_s)
        if info is None or info.error is not None:
            said = "no answer in time" if info is None else _message(info.error)
            if await self._has_ended(clock):
                return Observation(alive=False, detail="its processes have ended", sampled_at=time.monotonic())
            return Observation(detail=said, sampled_at=time.monotonic())
        paused, count = self._calls.is_paused(), self._calls.unfinished()
        label = self._calls.model_info().get("weight_version")
        return Observation(
            boot=boot_identity(boot_of(info.value), self._roots),
            alive=True,
            admission="closed" if paused else "open",
            running=None if paused and count else count,
            weights_label=label if isinstance(label, str) else None,
            sampled_at=time.monotonic(),
        )

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """Proved where a flush was done, which needs an idle scheduler. Drops the prefix cache.

        Requests that a retract has put back into the queue do not count. With several data-parallel ranks, of which
        the first alone answers, there must be no request at all.
        """
        return await self._flushed(None, deadline_s)

    async def idle_within(self, facts: Facts, *, wait_s: float, deadline_s: float) -> Verdict:
        """As `prove_idle`. The scheduler holds a flush back until it is idle: not after a retract, which never is."""
        retracted = facts.paused_by != "abort"
        waits = not retracted and self._ranks() == 1 and deadline_s > 2 * wait_s
        return await self._flushed(wait_s if waits else None, deadline_s)

    async def barrier(self, *, deadline_s: float) -> bool:
        """True once the scheduler has answered behind every call that was begun: they run one after another.

        A pause that keeps requests is not acknowledged by the scheduler: it has taken effect once that answers the next
        question. True also where its processes have ended.
        """
        clock = Deadline(deadline_s)
        asked = await self._home.run(self._calls.server_info, clock.left_s)
        return (asked is not None and asked.error is None) or await self._has_ended(clock)

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Generates a token. Where the request only queues behind kept ones, a token of one of those counts."""
        if disaggregated(self._info):
            return NotApplicable(reason="a prefill or decode engine cannot answer a request alone")
        if self._calls.is_paused():
            return Pending(reason="it is paused, and would hold the request back")
        outcome = await self._home.run(
            lambda: self._calls.generate(probe, max(0.1, deadline_s * 0.8), QUEUED_S), deadline_s
        )
        return _generated(outcome, deadline_s)

    async def processes(self) -> tuple[Process, ...] | None:
        """The processes that the engine started. The probe measures their trees."""
        return self._roots or None

    async def aclose(self) -> None:
        """The home's thread has ended, once the calls that were begun have; the engine is left as it is."""
        await self._home.aclose(CLOSE_S)

    async def _flushed(self, wait_s: float | None, deadline_s: float) -> Verdict:
        outcome = await self._home.run(lambda: self._calls.flush(wait_s), deadline_s)
        if outcome is None or outcome.error is not None:
            why = "no answer in time" if outcome is None else _message(outcome.error)
            return Pending(reason=f"a flush was not done: {why}")
        flushed, said, _ = outcome.value
        if not flushed:
            alone = counts_requests_alone(self._info)
            return Pending(reason=f"requests still run ({said})", figures={REQUESTS_RUN: alone})
        if self._ranks() > 1 and self._calls.unfinished():
            return Unmeasurable(reason="it has several data-parallel ranks, and requests that have not ended")
        return Proved(grade=Grade.REPORTED, reason="a flush was done", figures={"cache_dropped": True})

    def _ranks(self) -> int:
        return whole(self._info.get("dp_size")) or 1

    async def _has_ended(self, clock: Deadline) -> bool:
        return bool(self._roots) and await ended(self._roots, deadline_s=clock.look_s())

    def _known(self) -> Capabilities:
        if self._capabilities is None:
            raise ConfigurationError(f"{self.url}: not connected yet")
        return self._capabilities


def _generated(outcome: Outcome | None, deadline_s: float) -> Verdict:
    if outcome is None or (outcome.error is None and outcome.value is None):
        return Pending(reason=f"it generated nothing in {deadline_s:.1f} s")
    if outcome.error is not None:
        return Refuted(reason=f"it generated nothing: {_message(outcome.error)}")
    if isinstance(outcome.value, str):
        return Proved(grade=Grade.MEASURED, reason=outcome.value)
    return token_in(outcome.value)


def _message(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}"
