"""slime: a RolloutServer whose verbs block, over its own server groups or over a fleet.

    server = RolloutServer.of(server_groups, engine_of)      # engine_of makes a lifecycle.Engine of an actor
    server.offload()
    server.onload_weights()
    with server.updating_weights("step-7"):
        actor_model.update_weights()
    server.onload_kv()

Source: slime, ray/rollout.py (RolloutServer, ServerGroup) and backends/sglang_utils/sglang_engine.py (SGLangEngine), of
2026-08-21.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, Protocol, Self
from weakref import WeakSet

from ..core.facts import PauseMode
from ..core.http_errors import is_answer
from ..core.policy import Policy
from ..core.ports import Router
from ..fleet.groups import Group
from ..observers.health_checks import HealthCheckPause
from ..sync import Blocking, Engine, Fleet, Loop, blocking, windowed
from .server import KV, WEIGHTS, AsyncRolloutServer
from .slots import EngineOf, FleetMembers, ServerGroup, SlotMembers

_log = logging.getLogger("lifecycle")


class RolloutServer(Blocking):
    """slime's RolloutServer, proved: the same verbs, orders, skips and results. What is new is in its arguments.

    Over a blocking fleet, which stays its owner's, or with `of` over server groups as slime has them. See
    `AsyncRolloutServer` for `mode`, `update_weights` and `by`.
    """

    _wrapped: AsyncRolloutServer

    def __init__(
        self, fleet: Fleet, *, mode: PauseMode | None = None, update_weights: bool = True, by: str | None = None
    ) -> None:
        members = FleetMembers(fleet._wrapped)
        super().__init__(AsyncRolloutServer(members, mode=mode, update_weights=update_weights, by=by), fleet._loop)
        self._owns_loop = False

    @classmethod
    def of(
        cls,
        server_groups: Sequence[ServerGroup],
        engine_of: EngineOf,
        *,
        mode: PauseMode | None = None,
        update_weights: bool = True,
        by: str | None = None,
        router: Router | None = None,
        policy: Policy | None = None,
        groups: Mapping[str, Group] | None = None,
    ) -> Self:
        """Over the slots of these groups, as they are filled whenever a verb is called; needs `close()`.

        The groups of several servers, given together, are offloaded with one barrier. `engine_of` makes an engine of a
        handle, once for each; it is connected at the next verb. `router` and `groups` as of a Fleet, and `policy`
        too: that of the first engine unless it is given.
        """
        members = SlotMembers(server_groups, engine_of, router=router, policy=policy, groups=groups)
        server = cls.__new__(cls)
        wrapped = AsyncRolloutServer(members, mode=mode, update_weights=update_weights, by=by)
        Blocking.__init__(server, wrapped, Loop())
        server._owns_loop = True
        return server

    offload = blocking(AsyncRolloutServer.offload)
    onload = blocking(AsyncRolloutServer.onload)
    onload_weights = blocking(AsyncRolloutServer.onload_weights)
    onload_kv = blocking(AsyncRolloutServer.onload_kv)
    release = blocking(AsyncRolloutServer.release)
    recover = blocking(AsyncRolloutServer.recover)

    updating_weights = windowed(
        AsyncRolloutServer.updating_weights, lambda engines, loop: [Engine(each, loop) for each in engines]
    )

    @property
    def engines(self) -> list[Engine]:
        """The engines that take part, in the groups' order."""
        return [Engine(each, self._loop) for each in self._loop.run(self._wrapped.engines)]

    @property
    def fleet(self) -> Fleet:
        """The fleet of these engines, for what no verb here does (`recover()`). It is not to be closed."""
        return Fleet(self._loop.run(self._wrapped.fleet), self._loop)

    def close(self) -> None:
        """What was opened here is closed; the engines are left as they are."""
        if not self._owns_loop:
            return
        try:
            if not self._loop.forked:
                self._loop.run(self._wrapped.aclose)
        finally:
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Monitor(Protocol):
    """slime's health monitor of a group: it kills an engine that does not answer."""

    def pause(self) -> Any:
        """It asks nothing."""

    def resume(self) -> Any:
        """It asks again."""


def suspends(monitors: Iterable[Monitor]) -> HealthCheckPause:
    """An observer that pauses these monitors from the first engine that leaves serving until the last serves again.

    One observer for all of the engines that the monitors watch: Engine(..., observers=[observer]).
    """
    asleep, away = list(monitors), set[str]()

    def suspend(engine: str) -> None:
        if not away:
            for monitor in asleep:
                monitor.pause()
        away.add(engine)

    def resume(engine: str) -> None:
        away.discard(engine)
        if not away:
            for monitor in asleep:
                monitor.resume()

    return HealthCheckPause(suspend, resume)


class ClosedUntilRestored:
    """To inherit from, before slime's SGLangEngine: no generation continues while memory is released.

    slime's weight update calls continue_generation() while the KV cache is not back. Here that call sends nothing: it
    returns None and is logged, and generation is continued by the resume of onload_kv(). After a release that got no
    answer memory may be released, so generation is held back as well; not after one that the server refused.
    """

    _released: frozenset[str] = frozenset()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, wrapped in _WRAPPED.items():
            method = getattr(cls, name, None)
            if method is None:
                raise TypeError(f"{cls.__name__} has no {name}(); inherit from ClosedUntilRestored and SGLangEngine")
            if method not in _wrappers:
                setattr(cls, name, wrapped(method))
                _wrappers.add(getattr(cls, name))


def _release(method: Callable[..., Any]) -> Callable[..., Any]:
    """Releases memory, and remembers of which tags, unless the server answers that it did not."""

    @wraps(method)
    def release_memory_occupation(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = self._released
        self._released = before | _named(args, kwargs)
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            if is_answer(error):
                self._released = before
            raise

    return release_memory_occupation


def _resume(method: Callable[..., Any]) -> Callable[..., Any]:
    """Restores memory, and remembers of which tags once that was answered."""

    @wraps(method)
    def resume_memory_occupation(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = method(self, *args, **kwargs)
        self._released -= _named(args, kwargs)
        return answer

    return resume_memory_occupation


def _continue(method: Callable[..., Any]) -> Callable[..., Any]:
    """Generation goes on, unless weights or KV cache are released; then nothing is sent."""

    @wraps(method)
    def continue_generation(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._released & {"weights", "kv_cache"}:
            tags = ", ".join(sorted(self._released))
            _log.warning("continue_generation() is held back until memory is restored: %s", tags)
            return None
        return method(self, *args, **kwargs)

    return continue_generation


def _named(args: Sequence[Any], kwargs: Mapping[str, Any]) -> frozenset[str]:
    """The tags that a call names; all where it names none."""
    tags = kwargs.get("tags", args[0] if args else None)
    return WEIGHTS | KV if tags is None else frozenset(tags)


#: What the methods of classes were replaced by: no method is held back twice for one class.
_wrappers: WeakSet[Callable[..., Any]] = WeakSet()

_WRAPPED = {
    "release_memory_occupation": _release,
    "resume_memory_occupation": _resume,
    "continue_generation": _continue,
}
