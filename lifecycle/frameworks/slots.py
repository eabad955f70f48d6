"""The engines of a framework's groups: slots, of which some are empty, some are filled anew, and some hold none.

A slot holds a handle (an actor, a client, a URL): whatever `engine_of` makes an engine of. It is asked once for each
handle. A slot that is None is passed over, and so is one whose process is gone: a dead slot is a state, no exception.
Since a process may be started again at any time, it is observed before devices are handed over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..core.errors import ConfigurationError
from ..core.policy import Policy
from ..core.ports import Router
from ..core.states import State
from ..engine.engine import Engine
from ..fleet.claims import verify_all
from ..fleet.connect import check_distinct, connected
from ..fleet.fleet import Fleet
from ..fleet.groups import Group

_log = logging.getLogger("lifecycle")

EngineOf = Callable[[Any], Engine]


class ServerGroup(Protocol):
    """What is asked of a framework's group, as slime's and miles' have it."""

    @property
    def engines(self) -> Sequence[Any]:
        """A handle for each slot; None where the slot is empty."""

    @property
    def needs_offload(self) -> bool:
        """Whether its engines share devices with the trainer; else none of them is ever called."""


@dataclass(frozen=True, slots=True)
class Present:
    """Who is there now: a fleet of all, and the engines of it that take part, in the groups' order.

    `quarantined` are left out of moves. `came_back` were gone until now.
    """

    fleet: Fleet
    engines: list[Engine]
    quarantined: list[Engine]
    came_back: list[Engine]

    @property
    def names(self) -> list[str]:
        """The names of the engines that take part."""
        return [engine.name for engine in self.engines]

    @property
    def onloaded(self) -> list[str]:
        """The names of those of which an onload is asked: with those in quarantine, which follow what is served."""
        return [engine.name for engine in (*self.engines, *self.quarantined)] if self.engines else []

    @property
    def offloaded(self) -> list[str]:
        """The names of those of which an offload is asked.

        With those in quarantine, since the fleet refuses it where one of them may hold a device of the others.
        """
        return self.onloaded or [engine.name for engine in self.quarantined if engine.state is not State.GONE]


class Members(Protocol):
    """Who is driven: a fleet that stays as it is, or slots of groups."""

    async def present(self, *, verify_s: float | None = None) -> Present | None:
        """Who is there now; None where there is nobody to be driven. In `verify_s` those that are gone are verified."""

    def name_of(self, engine: Any) -> str:
        """The name of an engine that is given by its name, as itself, or by its handle."""

    async def aclose(self) -> None:
        """What was opened here is closed."""


class FleetMembers:
    """The engines of one fleet, which its owner opens and closes."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def present(self, *, verify_s: float | None = None) -> Present | None:
        """Those of the fleet whose process is there."""
        return await there(self._fleet, verify_s)

    def name_of(self, engine: Any) -> str:
        """Its name, where it is not given by that."""
        return engine if isinstance(engine, str) else str(getattr(engine, "name", engine))

    async def aclose(self) -> None:
        """Nothing was opened here."""


class SlotMembers:
    """The engines in the slots of groups, as the slots are when they are asked for."""

    def __init__(
        self,
        server_groups: Sequence[ServerGroup],
        engine_of: EngineOf,
        *,
        router: Router | None = None,
        policy: Policy | None = None,
        groups: Mapping[str, Group] | None = None,
    ) -> None:
        for number, group in enumerate(server_groups):
            lacking = [name for name in ("engines", "needs_offload") if not hasattr(group, name)]
            if lacking:
                raise ConfigurationError(
                    f"server group {number} ({type(group).__name__}) has no {' and no '.join(lacking)}; a group has "
                    "engines, a handle for each slot or None, and needs_offload"
                )
        if not callable(engine_of):
            raise ConfigurationError(f"engine_of must be a function from a handle to an Engine, got {engine_of!r}")
        self._server_groups = server_groups
        self._engine_of = engine_of
        self._router, self._policy, self._groups = router, policy, groups
        self._known: list[tuple[Any, Engine]] = []
        self._lock = asyncio.Lock()

    async def present(self, *, verify_s: float | None = None) -> Present | None:
        """Those whose slot is filled and whose process is there; one that is met for the first time was connected."""
        async with self._lock:
            return await self._present(verify_s)

    async def _present(self, verify_s: float | None) -> Present | None:
        filled = [handle for group in self._server_groups if group.needs_offload for handle in group.engines]
        filled = [handle for handle in filled if handle is not None]
        await self._let_go(filled)
        new = [(handle, self._made(handle)) for handle in filled if self._of(handle) is None]
        try:
            await connected([engine for _, engine in new])
            check_distinct([*(engine for _, engine in self._known), *(engine for _, engine in new)])
        except BaseException:
            for _, engine in new:
                await engine.aclose()
            raise
        self._known += new
        if not filled:
            return None
        engines = [self._engine(handle) for handle in filled]
        policy = self._policy or engines[0].policy
        return await there(Fleet(engines, groups=self._groups, router=self._router, policy=policy), verify_s)

    async def _let_go(self, filled: Sequence[Any]) -> None:
        """The engines whose handle is in no slot any more are let go."""
        left = [each for each in self._known if not any(each[0] is handle for handle in filled)]
        self._known = [each for each in self._known if each not in left]
        for _, engine in left:
            await engine.aclose()

    def _of(self, handle: Any) -> Engine | None:
        return next((engine for known, engine in self._known if known is handle), None)

    def _engine(self, handle: Any) -> Engine:
        return next(engine for known, engine in self._known if known is handle)

    def _made(self, handle: Any) -> Engine:
        engine: Any = self._engine_of(handle)
        if not isinstance(engine, Engine):
            raise ConfigurationError(
                f"engine_of({handle!r:.100}) must return a lifecycle.Engine, got {type(engine).__name__}; wrap what "
                "drives it: Engine(adapter, name=...)"
            )
        return engine

    def name_of(self, engine: Any) -> str:
        """Its name, where it is given as itself or by its handle."""
        known = engine if isinstance(engine, str | Engine) else self._of(engine)
        return known if isinstance(known, str) else str(getattr(known, "name", engine))

    async def aclose(self) -> None:
        """The engines are let go, and are left as they are."""
        await self._let_go([])


async def there(fleet: Fleet, verify_s: float | None) -> Present:
    """Those that take part; the others are passed over as empty slots are, and logged.

    One whose process is gone holds nothing, as long as none was started in its place: in `verify_s` that is observed.
    One in quarantine is left out of every move until it is recovered.
    """
    engines = fleet.participants()
    gone = [engine for engine in engines if engine.state is State.GONE]
    if verify_s is not None:
        await _verify(gone, verify_s)
    came_back = [engine for engine in gone if engine.state is not State.GONE]
    for engine in engines:
        if engine.quarantined is not None:
            _log.warning("%s is passed over: in quarantine %s", engine.name, engine.quarantined.reason)
        elif engine.state is State.GONE:
            _log.warning("%s is passed over: its process is gone (%s)", engine.name, engine.reason)
        elif engine in came_back:
            _log.warning("%s was gone, and takes part again: it was found %s", engine.name, engine.state)
    taking_part = [each for each in engines if each.quarantined is None and each.state is not State.GONE]
    return Present(fleet, taking_part, [each for each in engines if each.quarantined is not None], came_back)


async def _verify(gone: Sequence[Engine], deadline_s: float) -> None:
    """Whether a process is in the place of these was observed now; those that were never asked were connected."""
    await connected([engine for engine in gone if not engine.connected])
    await verify_all([engine for engine in gone if engine.connected], deadline_s)
