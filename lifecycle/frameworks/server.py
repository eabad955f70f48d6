"""A rollout server's verbs over a fleet: offload, onload of weights, onload of KV, and the recovery of single engines.

The orders are slime's, and every step is a move or a step of the fleet, which proves it:

    offload          pause all, wait for all; drain (flush) all, wait for all; only then release any
    onload_weights   map the weights of all; nothing generates
    onload_kv        map KV cache and CUDA graphs of all, wait for all; then resume all, wait for all

Between the two onloads the trainer pushes, inside `updating_weights(version)`. Every verb passes over groups that do
not offload and over empty slots, and returns what the engines answered, in the groups' order; [] where nobody is left.
What becomes of the engines where some fail, the fleet's failure policy says.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from weakref import WeakSet

from ..core.commands import RestoreKV, RestoreWeights
from ..core.errors import ConfigurationError, FleetError, GuardRefused, LifecycleError
from ..core.facts import PauseMode, Tag
from ..core.readings import Reading
from ..core.sources import Kept, Pushed, PushTarget, Source
from ..core.states import State
from ..engine.engine import Engine
from ..engine.verify import VERIFY_S
from ..fleet.fleet import Fleet
from ..fleet.preflight import REFUSED, check_deadline
from ..rules import knowledge
from ..rules.decision import DECIDED, ReadBytes, Stay, decide
from ..rules.desired import needs_trainer
from ..rules.mapping import undecided
from .results import answers_of
from .slots import Members, Present
from .way_back import not_given_up

_log = logging.getLogger("lifecycle")

WEIGHTS = frozenset({"weights"})
#: What SGLang's servers have of the KV stage. Of an engine without one of them, the other is meant.
KV = frozenset({"kv_cache", "cuda_graph"})

#: Where an engine has its weights mapped.
_WEIGHTS_MAPPED = (State.SERVING, State.PAUSED, State.DRAINED, State.WEIGHTS_RESTORED, State.KV_RESTORED)


class AsyncRolloutServer:
    """The engines of a model, driven by the verbs that frameworks have. Every `deadline_s` bounds each phase.

    - `mode`: what becomes of requests in flight; None: the policy's.
    - `update_weights`: the trainer pushes weights in each window. Else the engines keep theirs through a release.
    - `by`: who answers for where an engine is that this process never drove and that nothing can observe. Then
      what a verb implies of it is asserted (`override_state`): before offload() it serves, before onload_weights() it
      is released, before onload_kv() its weights are back. Only a state that the evidence leaves open. None: refused.
    """

    def __init__(
        self, members: Members, *, mode: PauseMode | None = None, update_weights: bool = True, by: str | None = None
    ) -> None:
        if by is not None and not by.strip():
            raise ConfigurationError("by= must name who answers for it; leave it out where nobody does")
        self._members = members
        self._mode = mode
        self._update_weights = update_weights
        self._by = by
        self._windows = count(1)
        #: The engines that were there at a verb before: of those it is known where they are.
        self._driven: WeakSet[Engine] = WeakSet()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._members}>"

    async def engines(self) -> list[Engine]:
        """The engines that take part, in the groups' order."""
        present = await self._members.present()
        return [] if present is None else present.engines

    async def fleet(self) -> Fleet:
        """The fleet of all that are in slots now, for what no verb here does (`recover()`); not to be closed.

        Engines that are gone or in quarantine are among them. Raises ConfigurationError where no engine is there.
        """
        present = await self._members.present()
        if present is None or not present.fleet.participants():
            raise ConfigurationError("no engine is there: every slot is empty, or of a group that does not offload")
        return present.fleet

    async def offload(
        self, tags: Iterable[Tag] | None = None, *, weights: Source | None = None, deadline_s: float | None = None
    ) -> list[Any]:
        """Every engine is released, proved; what each answered to its release.

        `weights`: what they come back with, unless it is what the trainer pushes, or what they keep. An engine that
        was gone is verified first, and takes part where it was started again. FleetError where one in quarantine may
        hold a device of the others.
        """
        present = await self._present(State.SERVING, verify_s=_verify_s(deadline_s))
        if present is None:
            return []
        source = weights or (self._by_the_trainer() if self._update_weights else Kept())
        with answers_of(present.engines) as heard:
            async with not_given_up(present.fleet, present.engines, deadline_s):
                await present.fleet.offload(
                    tags, weights=source, mode=self._mode, engines=present.offloaded, deadline_s=deadline_s
                )
        return heard.of("release", present.engines)

    async def onload_weights(self, *, deadline_s: float | None = None) -> list[Any]:
        """The weights of every engine are mapped, and none of them generates; what each answered to the restore.

        Where some fail the others keep their weights, and another call goes on with those that have none.
        """
        present = await self._present(State.RELEASED)
        return [] if present is None else await self._restore_weights(present, present.engines, deadline_s)

    async def onload_kv(self, *, version: str | None = None, deadline_s: float | None = None) -> list[Any]:
        """Every engine serves: KV cache and CUDA graphs came back, then all resumed; what each answered to the restore.

        Refused, before anything is sent, where an engine has no weights, or the trainer has not pushed them.
        `version`: what is asserted of an engine's weights that nothing can observe (`by=`).
        """
        present = await self._present(State.WEIGHTS_RESTORED, version or f"asserted by {self._by}")
        if present is None:
            return []
        refused = [error for engine in present.engines if (error := _without_weights(engine)) is not None]
        if refused:
            raise FleetError.of(REFUSED, refused)
        with answers_of(present.engines) as heard:
            async with not_given_up(present.fleet, present.engines, deadline_s):
                await present.fleet.onload(engines=present.onloaded, deadline_s=deadline_s)
        return heard.of(RestoreKV.name, present.engines)

    async def onload(self, tags: Iterable[Tag] | None = None, *, deadline_s: float | None = None) -> list[Any]:
        """The memory of these tags is back: weights, KV cache with CUDA graphs, or all (None).

        With the KV stage every engine serves. All of it needs no push between: weights that the engines keep or load.
        """
        named = WEIGHTS | KV if tags is None else frozenset(tags)
        if not named or not named <= WEIGHTS | KV:
            known = ", ".join(sorted(WEIGHTS | KV))
            raise ConfigurationError(f"onload(tags={tags!r}): one or more of {known}, or None for all of them")
        done = await self.onload_weights(deadline_s=deadline_s) if named & WEIGHTS else []
        return done + (await self.onload_kv(deadline_s=deadline_s) if named & KV else [])

    @asynccontextmanager
    async def updating_weights(self, version: str, *, deadline_s: float | None = None) -> AsyncIterator[list[Engine]]:
        """Inside, the trainer pushes its weights, which are of `version`; after it every engine holds them, proved.

        It pushes by its own calls, or by `engine.push(...)`. An exception inside fails it for all. What opens an
        engine inside, as slime's update does, fails it too: KV is not back (`ClosedUntilRestored` holds that back).
        """
        present = await self._members.present()
        if present is None:
            yield []
            return
        update = present.fleet.updating_weights(version, engines=present.names, deadline_s=deadline_s)
        async with update as engines:
            yield list(engines)

    async def release(
        self, engine: Any, *, weights: Source | None = None, deadline_s: float | None = None
    ) -> list[Any]:
        """This engine alone was drained and released; what it answered. The others are not asked anything."""
        present = await self._present(State.SERVING, verify_s=_verify_s(deadline_s))
        chosen = self._chosen(present, [engine])
        if present is None:
            return []
        source = weights or (self._by_the_trainer() if self._update_weights else Kept())
        with answers_of(chosen) as heard:
            await present.fleet.offload(weights=source, mode=self._mode, engines=chosen, deadline_s=deadline_s)
        return heard.of("release", chosen)

    async def recover(self, engines: Iterable[Any] | None = None, *, deadline_s: float | None = None) -> list[Any]:
        """These engines, started anew while the others wait for weights, are where those are: weights_restored.

        Each is drained, released, and has its weights mapped. None: those whose slots were filled since the last verb,
        and those that were gone and are there again. Returns what each answered to the restore.
        """
        before = await self._there(_verify_s(deadline_s))
        new = [] if before is None else self._new(before)
        present = await self._present(State.SERVING)
        chosen = self._chosen(present, new if engines is None else engines)
        if present is None or not chosen:
            return []
        source = self._by_the_trainer() if self._update_weights else Kept()
        await present.fleet.offload(weights=source, mode=self._mode, engines=chosen, deadline_s=deadline_s)
        return await self._restore_weights(present, chosen, deadline_s)

    async def aclose(self) -> None:
        """What was opened here is closed; the engines are left as they are."""
        await self._members.aclose()

    async def __aenter__(self) -> AsyncRolloutServer:
        await self._members.present()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def _restore_weights(
        self, present: Present, engines: Sequence[Engine], deadline_s: float | None
    ) -> list[Any]:
        lacking = [engine for engine in engines if engine.state not in _WEIGHTS_MAPPED]
        if not lacking:
            return []
        with answers_of(lacking) as heard:
            try:
                await present.fleet.restore_weights(engines=lacking, deadline_s=deadline_s)
            except FleetError as error:
                where = ", ".join(f"{engine.name} {engine.state}" for engine in engines)
                error.add_note(f"nothing was resumed ({where}); onload_weights() goes on with those that have none")
                raise
        return heard.of(RestoreWeights.name, lacking)

    def _by_the_trainer(self) -> Pushed:
        """What the trainer will push in this window; `updating_weights` names its version."""
        return Pushed(_not_pushed, f"window-{next(self._windows)}")

    async def _there(self, verify_s: float | None) -> Present | None:
        """Who is there; nobody here drove an engine that came back before."""
        present = await self._members.present(verify_s=verify_s)
        self._driven.difference_update([] if present is None else present.came_back)
        return present

    async def _present(
        self, implied: State, version: str | None = None, *, verify_s: float | None = None
    ) -> Present | None:
        """Who is there. One that nobody here drove before, and that nothing can observe, is as the verb implies."""
        present = await self._there(verify_s)
        for engine in [] if present is None else self._new(present):
            if self._by is not None:
                await self._assert(engine, implied, version)
            self._driven.add(engine)
        return present

    def _new(self, present: Present) -> list[Engine]:
        return [engine for engine in present.engines if engine not in self._driven]

    async def _assert(self, engine: Engine, implied: State, version: str | None) -> None:
        unknown = _without_known_weights(engine)
        if engine.state is implied and version is not None and unknown:
            why = f"its weights hold contents that are not known ({', '.join(unknown)})"
        elif engine.state is State.FAILED and implied in await _candidates(engine):
            why = engine.reason
        else:
            return
        assert self._by is not None
        reason = f"its framework's verb implies it, and nothing can observe it ({why})"
        engine.override_state(implied, by=self._by, reason=reason, version=version)
        _log.warning("%s is taken to be %s, as %s answers for: %s", engine.name, implied, self._by, why)

    def _chosen(self, present: Present | None, engines: Iterable[Any]) -> list[Engine]:
        """These engines, in the groups' order; KeyError where one of them is not there."""
        here = [] if present is None else present.engines
        wanted = [self._members.name_of(each) for each in engines]
        unknown = [name for name in wanted if name not in [engine.name for engine in here]]
        if unknown:
            raise KeyError(f"no engine {unknown[0]!r}; there are {', '.join(engine.name for engine in here) or 'none'}")
        return [engine for engine in here if engine.name in wanted]


def _verify_s(deadline_s: float | None) -> float:
    """Seconds in which engines that are gone are verified, of a verb with this deadline for each phase."""
    check_deadline(deadline_s)
    return VERIFY_S if deadline_s is None else min(VERIFY_S, deadline_s)


async def _not_pushed(engines: Sequence[PushTarget]) -> None:
    raise ConfigurationError(PUSH_FIRST)


PUSH_FIRST = "the trainer has not pushed its weights; push them first: with server.updating_weights(VERSION): ..."


def _without_weights(engine: Engine) -> LifecycleError | None:
    """Why the KV cache of this engine cannot come back yet."""
    weights = engine.capabilities.stage("weights")
    if engine.state is State.RELEASED and any(engine.facts.mapped.get(tag) is not True for tag in weights):
        return engine.advised(engine.not_allowed("onload_kv", "; its weights come first: onload_weights()"))
    if engine.state is State.WEIGHTS_RESTORED and needs_trainer(engine.record, engine.capabilities):
        why = f"{engine.weights_refusal()}: {PUSH_FIRST}"
        return engine.advised(GuardRefused({"weights_valid": why}, **engine.about("onload_kv")))
    return None


def _without_known_weights(engine: Engine) -> list[Tag]:
    """The tags of its weights of which nothing is known."""
    tags = engine.capabilities.stage("weights")
    return sorted(tag for tag in tags if engine.facts.contents.get(tag) is None)


async def _candidates(engine: Engine) -> tuple[State, ...]:
    """The states in which a failed engine may be, by what was observed of it and what is resident now.

    Weights of which nothing is known may be worth serving.
    """
    capabilities, record = engine.capabilities, engine.record
    supposed = knowledge.weights_supposed(record, capabilities)
    reading = await engine.read_residual()
    open_still = undecided(record, reading, capabilities, engine.policy) if isinstance(reading, Reading) else DECIDED
    step = decide(supposed, capabilities, tried=frozenset({ReadBytes}), may_close=False, undecided=open_still)
    return step.candidates if isinstance(step, Stay) else ()
