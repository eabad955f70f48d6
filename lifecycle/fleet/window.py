"""A window: engines that gave their memory to a trainer, and how they are brought back, in steps and on an error.

Inside, the trainer may bring the engines back step by step: their weights, an update of these, their KV cache. Each
step is an onload that ends after that phase, so what fails in it is treated as in any onload. A step is
level-triggered: an engine that is there already is sent nothing, and a step that failed half can be asked for again.
Leaving the window goes on from wherever the engines are; a step that is under way then is waited for.

An error that leaves the body brings the engines home. Where an update inside the window has ended on every engine they
serve it: nothing else is proved of all of them. Otherwise all go back to the weights of before the window, those too
that were updated already, so that no fleet is left with two versions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from types import MappingProxyType
from typing import Any, Protocol, overload

from ..core.commands import Command, RestoreKV, RestoreWeights, UpdateWeights
from ..core.errors import ConfigurationError, EngineBusy
from ..core.record import Desired
from ..core.sources import Source, version_of
from ..core.states import UNCLAIMED, State
from ..core.transition import Transition
from ..engine.engine import RECOVER_S, Engine
from ..rules.planner import Goal
from .preflight import stays_behind
from .recovery import recovered
from .updating import ended, updating

#: What a task is given up by.
CANCELLED = (asyncio.CancelledError,)


class Restores(Protocol):
    """An onload of some engines that ends after a phase; `weights` for all, or by group."""

    async def __call__(
        self,
        engines: Sequence[Engine],
        until: type[Command],
        weights: Source | Mapping[str, Source] | None,
        deadline_s: float | None,
    ) -> list[Transition]:
        """The results of that phase."""


class Window(Sequence[Transition]):
    """What `offloaded()` yields: the releases, and the steps that bring the engines back inside the window.

    It is the sequence of the releases (`transitions`). `engines` are those whose memory the trainer has.
    """

    def __init__(
        self, engines: Sequence[Engine], transitions: Sequence[Transition], restores: Restores, durations_s: float
    ) -> None:
        self.engines = list(engines)
        self.transitions = tuple(transitions)
        self._restores = restores
        self._durations_s = {"offload": durations_s}
        self._open = True
        self._under_way: set[asyncio.Task[list[Transition]]] = set()

    # the steps

    async def restore_weights(self, *, deadline_s: float | None = None) -> list[Transition]:
        """The weights of every engine are mapped again; their contents may be garbage until updated."""
        return await self._step(RestoreWeights, None, deadline_s)

    async def update_weights(
        self, source: Source | Mapping[str, Source] | None = None, *, deadline_s: float | None = None
    ) -> list[Transition]:
        """Every engine holds the weights of `source`, proved. None: of what it is to serve. By group: each its own.

        Restores the weights first where they are not mapped. An engine that holds that version already is sent nothing.
        Where a mapping names sources by group, engines of other groups get what they are to serve.
        """
        return await self._step(UpdateWeights, source, deadline_s)

    async def restore_kv(self, *, deadline_s: float | None = None) -> list[Transition]:
        """All memory is mapped again, and the weights are valid: what is missing before that is restored first."""
        return await self._step(RestoreKV, None, deadline_s)

    def updating_weights(
        self, version: str, *, deadline_s: float | None = None
    ) -> AbstractAsyncContextManager[Sequence[Engine]]:
        """Inside, the engines wait for the trainer's push (`engine.push(...)`); after it they hold `version`."""
        return updating(self.engines, version, lambda source: self.update_weights(source, deadline_s=deadline_s))

    # what is known

    @property
    def is_open(self) -> bool:
        """Whether the window was not left yet."""
        return self._open

    @property
    def versions(self) -> Mapping[str, str | None]:
        """The version that the weights of each engine are of, by name; None while they are not valid."""
        return {engine.name: engine.weights_version for engine in self.engines}

    @property
    def returned_bytes(self) -> Mapping[str, int | None]:
        """What each release was seen to give back, by engine: the least over its devices; None where not measured."""
        return {each.engine: each.returned_bytes for each in self.transitions}

    @property
    def durations_s(self) -> Mapping[str, float]:
        """Seconds that the offload and each kind of step took, all calls of it together, by name."""
        return MappingProxyType(self._durations_s)

    @overload
    def __getitem__(self, index: int) -> Transition: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Transition]: ...
    def __getitem__(self, index: int | slice) -> Transition | Sequence[Transition]:
        return self.transitions[index]

    def __len__(self) -> int:
        return len(self.transitions)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Window):
            return self is other
        return isinstance(other, Sequence) and list(self.transitions) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Window {'open' if self._open else 'left'} {_where(self.engines)}>"

    async def left(self) -> None:
        """No step can be asked for any more, and the one that was under way has ended. For the fleet."""
        self._open = False
        for task in list(self._under_way):
            await ended(task)

    async def _step(
        self, until: type[Command], weights: Source | Mapping[str, Source] | None, deadline_s: float | None
    ) -> list[Transition]:
        if not self._open:
            raise ConfigurationError(
                f"window.{until.name}(): this window was left, and nothing was sent ({_where(self.engines)}). Call it "
                f"inside of `async with fleet.offloaded() as window`, or ask the fleet: fleet.{until.name}()"
            )
        began_s = time.monotonic()
        task = asyncio.ensure_future(self._restores(self.engines, until, weights, deadline_s))
        self._under_way.add(task)
        try:
            return await task
        finally:
            self._under_way.discard(task)
            took_s = time.monotonic() - began_s
            self._durations_s[until.name] = self._durations_s.get(until.name, 0.0) + took_s


def _where(engines: Sequence[Engine]) -> str:
    return ", ".join(f"{engine.name} {engine.state}" for engine in engines) or "no engine"


@contextmanager
def window_lock(engines: Sequence[Engine], out: set[str]) -> Iterator[None]:
    """The names of these engines are in `out`; EngineBusy where one is already: two windows would share its memory,
    and the one that is left first would take it from under the other."""
    for engine in engines:
        if engine.name in out:
            raise engine.advised(EngineBusy("another offloaded()", **engine.about("offloaded")), Goal(State.RELEASED))
    names = {engine.name for engine in engines}
    out |= names
    try:
        yield
    finally:
        out -= names


@asynccontextmanager
async def restore_on_error(
    engines: Sequence[Engine],
    onload: Callable[[Sequence[Engine]], Awaitable[object]],
    *,
    after: tuple[type[BaseException], ...],
    before: Mapping[str, Desired] = MappingProxyType({}),
    deadline_s: float | None = None,
) -> AsyncIterator[None]:
    """An error of these kinds comes through once the engines serve again, with the weights of `before` where given.

    What was updated on all of them since stays. A second cancellation ends that too, and leaves them where they are.
    What fails on the way is noted on the error.
    """
    try:
        yield
    except after as error:
        try:
            await find_out(engines, deadline_s)
            if not _all_updated(engines, before):
                await _roll_back([(each, before[each.name]) for each in engines if each.name in before], deadline_s)
            stuck = {engine.name: why for engine in engines if (why := stays_behind(engine)) is not None}
            for why in stuck.values():
                error.add_note(f"the fleet did not come back: {why}")
            await onload([engine for engine in engines if engine.name not in stuck])
        except Exception as also:
            error.add_note(f"the fleet did not come back: {also}")
        raise


async def find_out(engines: Sequence[Engine], deadline_s: float | None) -> None:
    """Where those of the engines are that failed is known, where that can be known."""
    await recovered([engine for engine in engines if engine.state is State.FAILED], deadline_s or RECOVER_S)


def _all_updated(engines: Sequence[Engine], before: Mapping[str, Desired]) -> bool:
    """Whether weights were named since, and every engine that lives has what it is to serve now."""
    live = [each for each in engines if each.state not in UNCLAIMED and each.quarantined is None]
    valid = all(each.weights_refusal() is None for each in live)
    return valid and any(each.name in before and version_of(each.desired.source) is not None for each in live)


async def _roll_back(before: Sequence[tuple[Engine, Desired]], deadline_s: float | None) -> None:
    """The engines are to serve what they did before. One that has its KV cache back and other weights is released."""
    Engine.rollback_desired_of(before)
    others = [each for each, _ in before if each.state is State.KV_RESTORED and each.weights_refusal() is not None]
    again = (each.release(weights=each.desired.source, deadline_s=deadline_s) for each in others)
    results: list[Any] = await asyncio.gather(*again, return_exceptions=True)
    for problem in results:
        if isinstance(problem, BaseException):
            raise problem
