"""The blocking API: the same names and results as `lifecycle.Fleet` and `lifecycle.Engine`, without `await`.

    from lifecycle import FromDisk
    from lifecycle.sync import Fleet

    with Fleet.connect(["sglang://127.0.0.1:30000"]) as fleet:
        with fleet.offloaded(weights=FromDisk(path, version="step-12")):
            train()

Engines are driven from an event loop in a thread of this fleet's own (anyio's portal), so it works in a Ray actor, in
any thread, and in a notebook whose loop is running. **Every call blocks the thread that makes it** until the engines
have answered or the deadline passed: in a program whose event loop reads clients' streams, call it from another
thread, or await `lifecycle.Fleet` there. Ctrl-C cancels what was asked for and waits until it has ended: `offloaded()`
brings the fleet home first. A second Ctrl-C does not wait. A fleet that nobody closed is closed when the interpreter
exits.

A fork copies a fleet without the thread that drives it. In the child its verbs raise ConfigurationError, and closing it
does nothing: it stays with the process that connected it.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast, overload

import anyio
from anyio.from_thread import BlockingPortal

from .core.errors import ConfigurationError
from .core.observer import Observer
from .core.policy import Policy
from .core.ports import Agreement, ResidualProbe, Router, StateStore, TenantLedger
from .core.states import State
from .core.transition import Transition
from .core.verdicts import Verdict
from .engine import engine as engine_module
from .engine import occupancy
from .engine.given import store_given
from .engine.ownership import LeaseChoice
from .engine.windows import INSIDE, TrainerWindow
from .fleet import fleet as fleet_module
from .fleet import window as window_module
from .fleet.groups import Group

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")


class Loop:
    """An event loop in a daemon thread. It ends by `close()`, and at the latest when the interpreter exits.

    Not a pool's thread: those are joined before any exit handler could stop the loop.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._started: Future[BlockingPortal] = Future()
        self._thread = threading.Thread(target=anyio.run, args=(self._serve,), name="lifecycle-loop", daemon=True)
        self._thread.start()
        self.portal = self._started.result()
        atexit.register(self.close)

    async def _serve(self) -> None:
        async with BlockingPortal() as portal:
            self._started.set_result(portal)
            await portal.sleep_until_stopped()

    @property
    def forked(self) -> bool:
        """Whether this is a copy in a forked child. The thread is not there, so whoever waited for it never woke."""
        return os.getpid() != self._pid

    def run(self, call: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """What the coroutine returned or raised; an interrupt cancels it and waits until it has ended.

        Raises ConfigurationError in a forked child.
        """
        if self.forked:
            raise ConfigurationError(
                f"this fleet belongs to process {self._pid}, and this is process {os.getpid()}, forked from it without "
                "the thread that drives the fleet. Nothing was sent. Connect a fleet of your own here (Fleet.connect), "
                "or start the process by spawn"
            )
        tasks: list[asyncio.Task[Any] | None] = []
        ended, inside = threading.Event(), list[frozenset[TrainerWindow]]()

        async def task() -> R:
            tasks.append(asyncio.current_task())
            try:
                return await call()
            finally:
                inside.append(INSIDE.get())
                ended.set()

        future = self.portal.start_task_soon(task)
        try:
            result: R = future.result()
            return result
        except BaseException:
            if not ended.is_set():
                self.portal.start_task_soon(_cancel, tasks)
                ended.wait()
            raise
        finally:
            if inside:  # this thread goes on in the windows that its call has opened
                INSIDE.set(inside[-1])

    def close(self) -> None:
        """The loop has stopped and its thread has ended; in a forked child there is neither."""
        atexit.unregister(self.close)
        if self.forked:
            return
        if self._thread.is_alive():
            self.portal.start_task_soon(self.portal.stop, True)
            self._thread.join(10.0)


async def _cancel(tasks: Sequence[asyncio.Task[Any] | None]) -> None:
    """Asks once, as asyncio does. Cancelling the portal's future would not wait, and cancel what cleans up as well."""
    for task in tasks:
        if task is not None:
            task.cancel()


class Blocking:
    """A blocking API over an asynchronous object that lives on a loop."""

    def __init__(self, wrapped: Any, loop: Loop) -> None:
        self._wrapped = wrapped
        self._loop = loop

    def __repr__(self) -> str:
        return repr(self._wrapped)


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Blocking, P], R]:
    """The method of the same name that blocks: same arguments, same result, same errors."""

    @wraps(method)
    def call(self: Blocking, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._loop.run(partial(method, self._wrapped, *args, **kwargs))

    return cast("Callable[Concatenate[Blocking, P], R]", call)


class OnLoop(AbstractContextManager[R]):
    """An asynchronous window, entered and left from a thread that blocks meanwhile.

    An interrupt while it is entered or left cancels that half and waits until it has ended."""

    def __init__(self, window: AbstractAsyncContextManager[Any], loop: Loop, face: Callable[[Any, Loop], R]) -> None:
        self._window = window
        self._loop = loop
        self._face = face

    def __enter__(self) -> R:
        return self._face(self._loop.run(self._window.__aenter__), self._loop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._loop.run(partial(self._window.__aexit__, kind, error, trace))


def windowed(
    method: Callable[Concatenate[Any, P], AbstractAsyncContextManager[V]], face: Callable[[V, Loop], R]
) -> Callable[Concatenate[Blocking, P], OnLoop[R]]:
    """The window of the same name for a thread that blocks; `face` makes what its body is given."""

    @wraps(method)
    def call(self: Blocking, /, *args: P.args, **kwargs: P.kwargs) -> OnLoop[R]:
        return OnLoop(method(self._wrapped, *args, **kwargs), self._loop, face)

    return cast("Callable[Concatenate[Blocking, P], OnLoop[R]]", call)


class Engine(Blocking):
    """One engine of a blocking fleet. What it is (`state`, `facts`, `conditions`...) is that of the wrapped one."""

    _wrapped: engine_module.Engine

    pause = blocking(engine_module.Engine.pause)
    drain = blocking(engine_module.Engine.drain)
    release = blocking(engine_module.Engine.release)
    restore_weights = blocking(engine_module.Engine.restore_weights)
    update_weights = blocking(engine_module.Engine.update_weights)
    restore_kv = blocking(engine_module.Engine.restore_kv)
    resume = blocking(engine_module.Engine.resume)
    verify = blocking(engine_module.Engine.verify)
    recover = blocking(engine_module.Engine.recover)
    ensure = blocking(engine_module.Engine.ensure)
    push = blocking(engine_module.Engine.push)
    read_residual = blocking(engine_module.Engine.read_residual)
    read_hook_mode = blocking(engine_module.Engine.read_hook_mode)

    def connect(self, *, deadline_s: float = 30.0) -> Self:
        """The engine was observed anew, as after another process has moved it."""
        self._loop.run(partial(self._wrapped.connect, deadline_s=deadline_s))
        return self

    def override_state(self, state: State, *, version: str | None = None, by: str, reason: str) -> Transition:
        """The engine is taken to be in `state`, with weights of `version`, because a person says so."""
        return self._wrapped.override_state(state, version=version, by=by, reason=reason)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._wrapped, name)


def _as_it_is(value: V, _: Loop) -> V:
    return value


def _blocking_engines(wrapped: Sequence[engine_module.Engine], loop: Loop) -> Sequence[Engine]:
    return [Engine(each, loop) for each in wrapped]


class Window(Blocking, Sequence[Transition]):
    """What the blocking `offloaded()` yields. What is known of it is that of the wrapped one; its steps block."""

    _wrapped: window_module.Window

    restore_weights = blocking(window_module.Window.restore_weights)
    update_weights = blocking(window_module.Window.update_weights)
    restore_kv = blocking(window_module.Window.restore_kv)
    updating_weights = windowed(window_module.Window.updating_weights, _blocking_engines)

    @property
    def engines(self) -> list[Engine]:
        """The engines whose memory the trainer has."""
        return list(_blocking_engines(self._wrapped.engines, self._loop))

    @property
    def transitions(self) -> tuple[Transition, ...]:
        """The releases."""
        return self._wrapped.transitions

    @property
    def is_open(self) -> bool:
        """Whether the window was not left yet."""
        return self._wrapped.is_open

    @property
    def versions(self) -> Mapping[str, str | None]:
        """As `lifecycle.Window.versions`."""
        return self._wrapped.versions

    @property
    def returned_bytes(self) -> Mapping[str, int | None]:
        """As `lifecycle.Window.returned_bytes`."""
        return self._wrapped.returned_bytes

    @property
    def durations_s(self) -> Mapping[str, float]:
        """As `lifecycle.Window.durations_s`."""
        return self._wrapped.durations_s

    @overload
    def __getitem__(self, index: int) -> Transition: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Transition]: ...
    def __getitem__(self, index: int | slice) -> Transition | Sequence[Transition]:
        return self._wrapped[index]

    def __len__(self) -> int:
        return len(self._wrapped)

    def __eq__(self, other: object) -> bool:
        return bool(self._wrapped == (other._wrapped if isinstance(other, Window) else other))

    __hash__ = None  # type: ignore[assignment]


class Fleet(Blocking):
    """A fleet whose verbs block. Made by `connect`; observed on entering it, or by `open()`."""

    _wrapped: fleet_module.Fleet

    @classmethod
    def connect(
        cls,
        urls: Iterable[str],
        *,
        groups: Mapping[str, Group] | None = None,
        router: Router | str | None = None,
        policy: Policy | None = None,
        observers: Iterable[Observer] = (),
        store: StateStore | None = None,
        lease: LeaseChoice = "user",
        tenants: TenantLedger | None = None,
        probe: ResidualProbe | None = None,
        agreement: Agreement | None = None,
        memory: StateStore | None = None,
    ) -> Self:
        """A fleet of these URLs, as `lifecycle.Fleet.connect`; not observed yet."""
        kept: Any = {"store": store_given(store, memory), "lease": lease, "tenants": tenants, "agreement": agreement}
        fleet = fleet_module.Fleet.connect(
            urls, groups=groups, router=router, policy=policy, observers=observers, probe=probe, **kept
        )
        return cls(fleet, Loop())

    def open(self) -> Self:
        """Every engine was observed. Needs `close()`; `with` does both."""
        try:
            self._loop.run(self._wrapped.__aenter__)
        except BaseException:
            self._loop.close()
            raise
        return self

    def close(self) -> None:
        """Connections are let go and the loop's thread has ended; the engines are left as they are."""
        try:
            if not self._loop.forked:
                self._loop.run(self._wrapped.aclose)
        finally:
            self._loop.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def engines(self) -> list[Engine]:
        """The engines, in the groups' order."""
        return list(_blocking_engines(self._wrapped.engines, self._loop))

    @property
    def quarantined(self) -> dict[str, Verdict]:
        """The engines that moves and steps leave out until they are recovered, by name: since when, and why."""
        return self._wrapped.quarantined

    def __getitem__(self, name: str) -> Engine:
        return Engine(self._wrapped[name], self._loop)

    def __iter__(self) -> Iterator[Engine]:
        return iter(self.engines)

    def __len__(self) -> int:
        return len(self._wrapped)

    pause = blocking(fleet_module.Fleet.pause)
    drain = blocking(fleet_module.Fleet.drain)
    release = blocking(fleet_module.Fleet.release)
    restore_weights = blocking(fleet_module.Fleet.restore_weights)
    update_weights = blocking(fleet_module.Fleet.update_weights)
    restore_kv = blocking(fleet_module.Fleet.restore_kv)
    resume = blocking(fleet_module.Fleet.resume)
    offload = blocking(fleet_module.Fleet.offload)
    onload = blocking(fleet_module.Fleet.onload)
    recover = blocking(fleet_module.Fleet.recover)
    ensure = blocking(fleet_module.Fleet.ensure)
    retire = blocking(fleet_module.Fleet.retire)

    def adopt(self, url: str, **how: Any) -> Engine:
        """As `lifecycle.Fleet.adopt`."""
        return Engine(self._loop.run(partial(self._wrapped.adopt, url, **how)), self._loop)

    def replace(self, name: str, url: str, **how: Any) -> Engine:
        """As `lifecycle.Fleet.replace`."""
        return Engine(self._loop.run(partial(self._wrapped.replace, name, url, **how)), self._loop)

    offloaded = windowed(fleet_module.Fleet.offloaded, Window)
    updating_weights = windowed(fleet_module.Fleet.updating_weights, _blocking_engines)


@contextmanager
def occupying(
    ledger: TenantLedger,
    needs: Mapping[str, int],
    *,
    name: str,
    deadline_s: float,
    keeps_bytes: int | None = None,
    policy: Policy | None = None,
) -> Iterator[None]:
    """As `lifecycle.engine.occupancy.occupying`, for a trainer whose thread blocks."""
    loop = Loop()
    try:
        window = occupancy.occupying(
            ledger, needs, name=name, deadline_s=deadline_s, keeps_bytes=keeps_bytes, policy=policy
        )
        with OnLoop(window, loop, _as_it_is):
            yield
    finally:
        loop.close()
