"""Closing and opening a router for engines, and what is known of it afterwards."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from ..core.errors import ConfigurationError, RouterError, RouterNotClosed
from ..core.facts import Grade
from ..core.ports import Router, RoutesToWorkers, WorkerURL
from ..core.states import State
from ..core.verdicts import Proved, Refuted, Verdict
from ..engine.engine import Engine
from ..nodes.address import parse
from .registry import router_for


def router_of(given: Router | str | None, engines: Sequence[Engine]) -> Router | None:
    """The router that was given, or that of a URL; it was told where it reaches these engines."""
    router = router_for(given) if isinstance(given, str) else given
    known_to(router, engines)
    return router


def known_to(router: Router | None, engines: Sequence[Engine]) -> None:
    """The router was told where it reaches these engines."""
    if isinstance(router, RoutesToWorkers):
        router.knows({each.name: _worker_of(each) for each in engines})


def _worker_of(engine: Engine) -> WorkerURL:
    """Where a router reaches the engine: as the option worker= of its URL says, else at its own URL."""
    try:
        given = parse(engine.address).options.get("worker")
    except ConfigurationError:
        given = None
    return WorkerURL(given or engine.adapter.url, exact=given is not None)


def may_open(engine: Engine) -> bool:
    """Whether the router, as far as is known, sends to the engine now, so that it may again where a change fails."""
    return engine.facts.routed is not False and engine.quarantined is None


def closing(router: Router | None) -> list[Awaitable[None]]:
    """What lets go of the router's connections, where it has any."""
    return [router.aclose()] if isinstance(router, RoutesToWorkers) else []


@dataclass(frozen=True, slots=True)
class Routing:
    """The router in front of a fleet; without one there is nothing to close or open."""

    router: Router | None

    async def close(self, engines: Sequence[Engine]) -> None:
        """The router has confirmed that it sends nothing more to these engines.

        Where that fails those that serve are opened again for which it was open, and what the router raised comes
        through; RouterNotClosed where it is a RouterError.
        """
        if self.router is None or not engines:
            return
        opens_again = [engine for engine in engines if may_open(engine)]
        names = [engine.name for engine in engines]
        try:
            await self.router.close(names)
            sending = {name: await self.router.is_open(name) for name in names}
        except BaseException as error:
            refuted = Refuted(reason=f"the router could not be closed: {str(error) or type(error).__name__}")
            for engine in engines:
                _note(engine, None, refuted)
            left = ""
            try:  # not to those that were closed before: they may hold no memory
                await self.open([engine for engine in opens_again if engine.state is State.SERVING])
            except Exception as again:
                left = f". What it was closed for could not be opened again ({str(again) or type(again).__name__})"
            if isinstance(error, RouterError):
                why = f"{error}. Nothing was sent to the engines: they are as they were{left}"
                raise RouterNotClosed(why) from error
            raise
        for engine in engines:
            _closed(engine, sending[engine.name])
            engine.counted_by(None if sending[engine.name] else self.router)

    async def kept_closed(self, engine: Engine) -> str | None:
        """Why it is not certain that the router sends nothing to this engine, which is to stay closed; else None."""
        if self.router is None:
            return "no router keeps requests from it"
        try:
            await self.router.close([engine.name])
            sends = await self.router.is_open(engine.name)
        except Exception as error:
            why = f"its router could not be closed: {str(error) or type(error).__name__}"
            _note(engine, None, Refuted(reason=why))
            return why
        _closed(engine, sends)
        return "its router was closed, and says that it still sends" if sends else None

    async def open(self, engines: Sequence[Engine]) -> None:
        """The router may send to these engines again."""
        if self.router is None or not engines:
            return
        try:
            await self.router.open([engine.name for engine in engines])
        except BaseException as error:
            refuted = Refuted(reason=f"the router could not be opened: {str(error) or type(error).__name__}")
            for engine in engines:
                _note(engine, None, refuted)
            raise
        for engine in engines:
            engine.counted_by(None)
            _note(engine, True, Proved(grade=Grade.ACKNOWLEDGED, reason="the router sends to it"))


def _closed(engine: Engine, sends: bool | None) -> None:
    """The router was closed; `sends` is what it says then (None: it does not tell)."""
    grade = Grade.ACKNOWLEDGED if sends is None else Grade.REPORTED
    if sends:
        _note(engine, True, Refuted(reason="the router was closed, and says that it still sends"), grade)
    else:
        _note(engine, False, Proved(grade=grade, reason="the router sends nothing to it"), grade)


def _note(engine: Engine, sends: bool | None, verdict: Verdict, grade: Grade = Grade.ACKNOWLEDGED) -> None:
    engine.router_confirmed(sends, verdict, grade)
