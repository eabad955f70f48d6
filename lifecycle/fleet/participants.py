"""Who belongs to a fleet, and who of them takes part in what is asked of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..core.deadline import Limit
from ..core.errors import EngineBusy
from ..core.policy import Policy
from ..core.ports import Router
from ..core.verdicts import Verdict
from ..engine.engine import Engine
from .changes import TurnNotGiven, Turns
from .connect import disconnected
from .groups import Group, check_members, waves_of
from .quarantine import taking_part
from .ranks import Ranks

Selection = Iterable[str | Engine] | None

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound="Participants")


class Participants:
    """Engines in their groups, in the groups' order, behind one router or none."""

    engines: list[Engine]
    groups: dict[str, Group]
    router: Router | None
    policy: Policy
    ranks: Ranks
    _turns: Turns

    @asynccontextmanager
    async def _in_turn(self, what: str, limit: Limit) -> AsyncIterator[None]:
        """The fleet has the same members throughout; EngineBusy where a change of them is under way past the limit."""
        try:
            async with self._turns.of_move(what, limit):
                yield
        except TurnNotGiven as changing:
            engine = self.engines[0]
            raise engine.advised(EngineBusy(str(changing), **engine.about(what))) from None

    def _have(self, engines: Sequence[Engine], groups: Mapping[str, Group]) -> None:
        """The fleet has these engines; ConfigurationError where two are one, or a group waits for none that there is.

        Nothing changed then.
        """
        known = {engine.group: Group() for engine in engines} | dict(groups)
        check_members(engines, known)
        place = {group: number for number, group in enumerate(dict.fromkeys(engine.group for engine in engines))}
        self.groups = known
        self.engines = sorted(engines, key=lambda engine: place[engine.group])
        self._place = {engine.name: number for number, engine in enumerate(self.engines)}

    async def aclose(self) -> None:
        """Connections are let go; the engines are left as they are."""
        await disconnected(self.engines, self.router)

    def __getitem__(self, name: str) -> Engine:
        if name not in self._place:
            raise KeyError(f"no engine {name!r}; the fleet has {', '.join(self._place)}")
        return self.engines[self._place[name]]

    def __iter__(self) -> Iterator[Engine]:
        return iter(self.engines)

    def __len__(self) -> int:
        return len(self.engines)

    def __repr__(self) -> str:
        return f"<Fleet {' '.join(f'{engine.name}={engine.state}' for engine in self.engines)}>"

    @property
    def quarantined(self) -> dict[str, Verdict]:
        """The engines that moves and steps leave out until they are recovered, by name: since when, and why."""
        return {each.name: why for each in self.engines if (why := each.quarantined) is not None}

    # who takes part

    def participants(self, engines: Selection = None) -> list[Engine]:
        """The engines of a move, in the groups' order: those named (KeyError if unknown), of groups that offload.

        Those of them that are in quarantine are left out of it.
        """
        if engines is None:
            return [engine for engine in self.engines if engine.offloads]
        return [engine for engine in self._named(engines) if engine.offloads]

    def _taking_part(self, engines: Selection, what: str) -> list[Engine]:
        return taking_part(self.participants(engines), what)

    def _named(self, engines: Iterable[str | Engine]) -> list[Engine]:
        named = {self[each if isinstance(each, str) else each.name].name for each in engines}
        return [self[name] for name in sorted(named, key=self._place.__getitem__)]

    def waves(self, engines: Sequence[Engine]) -> list[list[Engine]]:
        """The engines in waves, each of groups that wait for the groups before."""
        return waves_of(engines, self.groups)


def in_turn(
    verb: Callable[Concatenate[F, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[F, P], Coroutine[Any, Any, R]]:
    """The verb, once no change of members is under way."""

    @wraps(verb)
    async def run(self: F, /, *args: P.args, **kwargs: P.kwargs) -> R:
        limit: Any = kwargs.get("deadline_s")
        async with self._in_turn(verb.__name__, limit):
            return await verb(self, *args, **kwargs)

    return run
