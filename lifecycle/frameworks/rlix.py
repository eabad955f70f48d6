"""rlix: part of the engines give their devices to another pipeline and take them back, by index.

    manager = RolloutManager(fleet)                          # RolloutManager.blocking: without await
    await manager.shrink_engines([2, 3], post_sleep_vram_threshold_gb=3.0)
    await manager.expand_engines([2, 3], weights=Pushed(sync, "step-7"))
    await manager.resize_infer([], [2, 3])                   # one of the two

A shrink closes the router, which must be confirmed, aborts, drains, pauses, releases, and measures what is resident; it
ends well only where every engine holds no more than the threshold. Where it fails its engines serve again, and the
router sends to them; where an expand fails its engines are released again. Neither leaves a GPU to the next tenant of
which it was not measured that it is free: the ledger (`tenants=` of the fleet) has what each engine may hold.

Source: miles with rlix (ray/rollout.py: shrink_engines, expand_engines, activate_routing, get_engine_states) and
rlix/pipeline (resize_infer, validate_resize_params), 2026.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from ..core.errors import ConfigurationError, FleetError, LifecycleError
from ..core.facts import PauseMode
from ..core.frozen import replace
from ..core.policy import Policy, positive
from ..core.sources import Kept, Source
from ..core.states import State
from ..core.units import GIB
from ..engine.engine import Engine
from ..fleet.fleet import Fleet
from ..sync import Blocking, blocking
from ..sync import Fleet as BlockingFleet
from .way_back import serving_again

#: rlix' words for where an engine is. `failed` is ours: nothing is claimed of it.
EngineState = Literal["shell", "loading", "active", "disabling", "offloaded", "failed"]

#: Seconds that each phase of a shrink may take, its drain among them. Source: miles, shrink_engines.
SHRINK_S = 30.0
#: Seconds within which an engine that is to be measured has to be offloaded, and between two looks. Source: rlix.
OFFLOADED_S, POLL_S = 60.0, 0.1

_STATES: Mapping[State, EngineState] = {
    State.DETACHED: "shell",
    State.GONE: "shell",
    State.FAILED: "failed",
    State.SERVING: "active",
    State.RELEASED: "offloaded",
    **dict.fromkeys(
        (State.PAUSING, State.REPAUSING, State.PAUSED, State.DRAINING, State.DRAINED, State.RELEASING), "disabling"
    ),
    **dict.fromkeys(
        (
            State.RESTORING_WEIGHTS,
            State.WEIGHTS_RESTORED,
            State.UPDATING_WEIGHTS,
            State.UPDATING_IN_PLACE,
            State.UPDATING_LIVE,
            State.RESTORING_KV,
            State.KV_RESTORED,
            State.RESUMING,
        ),
        "loading",
    ),
}


class RolloutManager:
    """The engines of a fleet by index: their place in the fleet, unless `names` maps each index to a name."""

    def __init__(self, fleet: Fleet, *, names: Mapping[int, str] | None = None, mode: PauseMode = "abort") -> None:
        self._fleet = fleet
        self._mode = mode
        self._engines = dict(enumerate(fleet)) if names is None else {at: fleet[name] for at, name in names.items()}
        once = {engine.name for engine in self._engines.values()}
        if len(once) < len(self._engines):
            raise ConfigurationError("names= has one engine under two indices; each engine has one")

    async def shrink_engines(
        self,
        engine_indices: Iterable[int],
        *,
        post_sleep_vram_threshold_gb: float | None = None,
        weights: Source | None = None,
        deadline_s: float = SHRINK_S,
    ) -> list[int]:
        """Those of these engines whose devices are free, measured: all of them. An empty list does nothing.

        `post_sleep_vram_threshold_gb`, in GiB, is what each may keep of a device (None: its policy's); `>` refuses, and
        it holds from here on. `weights`: what they come back with (None: their rollback source, or what they keep).
        Raises KeyError for an unknown index, FleetError where some fail: then all serve again as far as they can.
        """
        chosen = self._chosen(engine_indices)
        engines = list(chosen.values())
        with _held_to(engines, post_sleep_vram_threshold_gb):
            if engines:
                source = weights or _kept(engines)
                async with serving_again(self._fleet, engines, deadline_s):
                    await self._fleet.offload(weights=source, mode=self._mode, engines=engines, deadline_s=deadline_s)
        return [index for index, engine in chosen.items() if engine.memory_is_free]

    async def expand_engines(
        self, engine_indices: Iterable[int], *, weights: Source | None = None, deadline_s: float | None = None
    ) -> list[int]:
        """Those of these engines that serve, with the router open for them: all of them. An empty list does nothing.

        `weights` is what they are given before that (None: what they were released with): FromDisk, or Pushed with the
        function that syncs them. Raises KeyError for an unknown index, FleetError where some fail: those are released
        again, and the others serve.
        """
        chosen = self._chosen(engine_indices)
        if chosen:
            await self._fleet.onload(weights=weights, engines=list(chosen.values()), deadline_s=deadline_s)
        return [index for index, engine in chosen.items() if engine.state is State.SERVING]

    async def resize_infer(
        self,
        dp_ranks_to_remove: Sequence[int],
        dp_ranks_to_add: Sequence[int],
        *,
        post_sleep_vram_threshold_gb: float | None = None,
        weights: Source | None = None,
        deadline_s: float | None = None,
    ) -> list[int]:
        """One of the two, whichever is not empty; ValueError where both are, or none is. Else as those verbs."""
        if bool(dp_ranks_to_remove) == bool(dp_ranks_to_add):
            raise ValueError(
                f"exactly one of dp_ranks_to_remove and dp_ranks_to_add must be non-empty, got {dp_ranks_to_remove!r} "
                f"and {dp_ranks_to_add!r}"
            )
        if dp_ranks_to_add:
            return await self.expand_engines(dp_ranks_to_add, weights=weights, deadline_s=deadline_s)
        return await self.shrink_engines(
            dp_ranks_to_remove,
            post_sleep_vram_threshold_gb=post_sleep_vram_threshold_gb,
            weights=weights,
            deadline_s=SHRINK_S if deadline_s is None else deadline_s,
        )

    async def get_engine_states(self, engine_indices: Iterable[int] | None = None) -> dict[int, EngineState]:
        """Where each of these engines (None: all) is, in rlix' words. `offloaded` only where its memory is free."""
        chosen = self._of(self._engines if engine_indices is None else engine_indices)
        return {index: _word(engine) for index, engine in chosen.items()}

    async def check_residual(
        self,
        engine_indices: Iterable[int],
        *,
        post_sleep_vram_threshold_gb: float | None = None,
        deadline_s: float = OFFLOADED_S,
    ) -> dict[int, float]:
        """GiB that each of these engines keeps of a device at most, measured now, once each is offloaded.

        Raises TimeoutError where one is not in `deadline_s`, and FleetError where one keeps more than it may.
        """
        chosen = self._chosen(engine_indices)
        end = time.monotonic() + positive("deadline_s", deadline_s)
        while waiting := [each for each in chosen.values() if each.state not in (State.RELEASED, State.GONE)]:
            if time.monotonic() > end:
                where = ", ".join(f"{engine.name} {engine.state}" for engine in waiting)
                raise TimeoutError(f"not offloaded within {deadline_s} s, so nothing was measured: {where}")
            await asyncio.sleep(POLL_S)
        with _held_to(list(chosen.values()), post_sleep_vram_threshold_gb):
            await asyncio.gather(*(engine.verify() for engine in chosen.values()))
            refused = [error for engine in chosen.values() if (error := _not_free(engine)) is not None]
            if refused:
                raise FleetError.of(f"{len(refused)} of {len(chosen)} engines keep their devices", refused)
        return {index: _resident_gib(engine) for index, engine in chosen.items()}

    def _of(self, indices: Iterable[int]) -> dict[int, Engine]:
        """These engines by index, each once and in order; KeyError where there is no such index."""
        wanted = sorted({int(index) for index in indices})
        unknown = [index for index in wanted if index not in self._engines]
        if unknown:
            raise KeyError(f"unknown engine_index {unknown[0]}; there are {', '.join(map(str, sorted(self._engines)))}")
        return {index: self._engines[index] for index in wanted}

    def _chosen(self, indices: Iterable[int]) -> dict[int, Engine]:
        """As `_of`; ConfigurationError where one is of a group that is never offloaded: nothing would happen to it."""
        chosen = self._of(indices)
        for index, engine in chosen.items():
            if not engine.offloads:
                raise ConfigurationError(
                    f"engine_index {index} ({engine.name}) is of group {engine.group}, which has offload=False; leave "
                    "it out, or let its group be offloaded"
                )
        return chosen


class BlockingRolloutManager(Blocking):
    """A RolloutManager over a blocking fleet, with the same verbs."""

    _wrapped: RolloutManager

    def __init__(
        self, fleet: BlockingFleet, *, names: Mapping[int, str] | None = None, mode: PauseMode = "abort"
    ) -> None:
        super().__init__(RolloutManager(fleet._wrapped, names=names, mode=mode), fleet._loop)

    shrink_engines = blocking(RolloutManager.shrink_engines)
    expand_engines = blocking(RolloutManager.expand_engines)
    resize_infer = blocking(RolloutManager.resize_infer)
    get_engine_states = blocking(RolloutManager.get_engine_states)
    check_residual = blocking(RolloutManager.check_residual)


def _kept(engines: Iterable[Engine]) -> Source | None:
    """What engines come back with that keep their weights through a release; None where one of them does not."""
    kept = all(
        engine.capabilities.spec(tag).on_release in ("kept", "as_wanted")
        for engine in engines
        for tag in engine.capabilities.stage("weights")
    )
    return Kept() if kept else None


def _word(engine: Engine) -> EngineState:
    """Where an engine is, in rlix' words: one that is released, and whose memory is in question, is not offloaded."""
    word = _STATES[engine.state]
    return "disabling" if word == "offloaded" and not engine.memory_is_free else word


def _not_free(engine: Engine) -> LifecycleError | None:
    if engine.memory_is_free:
        return None
    condition = engine.conditions.get("memory_returned")
    why = f"memory_returned is {condition.verdict}" if condition else "it is not known what it keeps"
    return engine.advised(engine.not_allowed("a hand-over", f"; {why}"))


def _resident_gib(engine: Engine) -> float:
    """What an engine was measured to keep of a device, at most; 0 where its process is gone."""
    condition = engine.conditions.get("memory_returned")
    figures = {} if condition is None or engine.state is State.GONE else condition.verdict.figures
    return float(figures.get("resident_bytes", 0)) / GIB


@contextmanager
def _held_to(engines: Sequence[Engine], threshold_gib: float | None) -> Iterator[None]:
    """The engines may keep so much of a device from here on; as before, where an error comes through."""
    if threshold_gib is None:
        yield
        return
    positive("post_sleep_vram_threshold_gb", threshold_gib)
    before: list[tuple[Engine, Policy]] = []
    try:
        for engine in engines:
            policy = engine.policy
            engine.hold_to(replace(policy, residual_threshold_gib=threshold_gib))
            before.append((engine, policy))
        yield
    except BaseException:
        for engine, policy in before:
            engine.hold_to(policy)
        raise
