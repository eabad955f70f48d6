"""Quarantine: a move goes on without an engine that failed in it, where that puts no device in doubt.

An engine that failed may be left behind in two cases. Its process is gone: then its devices are free. Or it lives, the
router has confirmed that it sends nothing to it, and it is on no device of the engines with which the move goes on; by
what is resident now and was resident before, device by device. Devices that are not known may be any, so then it may
not. A router is closed for one that is gone too: whoever starts it again has other weights than the fleet.

One that was left behind stays so in later moves. Since it may be started again at any time, each offload looks whether
it still may be: before anything is sent, and again before the devices are handed over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import FleetError, GuardRefused, LifecycleError
from ..core.observer import Observers
from ..core.readings import Reading
from ..core.sources import Source
from ..core.states import State
from ..engine.engine import Engine
from ..engine.verify import VERIFY_S
from ..rules.quarantine import QUARANTINED, Occupied, may_share
from .course import Outcome
from .journaling import MoveJournal
from .preflight import REFUSED
from .routing import Routing

Devices = frozenset[str]
_LOG = logging.getLogger("lifecycle")


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether an engine may be left behind: `why_not` is None where it may. `devices` is None where not known."""

    engine: Engine
    why_not: str | None
    closed: bool = False
    devices: Devices | None = None
    others: Devices = frozenset()


class Quarantine:
    """Who may be left behind by one move, and who was: by it (`put`), or by an earlier one (`before`)."""

    def __init__(
        self,
        before: Sequence[Engine],
        *,
        routing: Routing,
        journal: MoveJournal,
        observers: Observers,
        deadline_s: float | None,
    ) -> None:
        self.before = list(before)
        self.put: list[Engine] = []
        self._routing = routing
        self._journal = journal
        self._observers = observers
        self._limit_s = VERIFY_S if deadline_s is None else min(VERIFY_S, deadline_s)

    @property
    def engines(self) -> list[Engine]:
        """All that the move leaves out."""
        return [*self.before, *self.put]

    async def find(self, engines: Sequence[Engine], others: Sequence[Engine]) -> list[Finding]:
        """Whether the move may go on with the others, without these engines; the router is closed for those."""
        if not others:
            return [Finding(each, "no other engine is left in the move") for each in engines]
        theirs = Occupied.of({})
        if any(engine.state is not State.GONE for engine in engines):
            known = await asyncio.gather(*(self._devices(other) for other in others))
            theirs = Occupied.of({other.name: devices for other, devices in zip(others, known, strict=True)})
        return list(await asyncio.gather(*(self._find(engine, theirs) for engine in engines)))

    async def _find(self, engine: Engine, theirs: Occupied) -> Finding:
        gone = engine.state is State.GONE
        open_still = await self._routing.kept_closed(engine)
        if open_still is not None and not (gone and self._routing.router is None):
            return Finding(engine, open_still if gone else f"it lives, and {open_still}")
        if gone:
            return Finding(engine, None, closed=open_still is None)
        own = await self._devices(engine, now=True)
        shared = may_share(own, theirs)
        if shared is not None:
            return Finding(engine, f"it lives, and {shared}", closed=True, devices=own)
        return Finding(engine, None, True, own, theirs.devices)

    async def _devices(self, engine: Engine, *, now: bool = False) -> Devices | None:
        """The devices that the engine is on, now or as it was measured before; None where they are not known.

        `now`: one whose memory cannot be read now may be on any.
        """
        reading = await engine.read_residual(deadline_s=self._limit_s)
        if now and not isinstance(reading, Reading):
            return None
        calibration = engine.record.calibration
        readings = (reading, calibration.reading_all_mapped, calibration.reading_all_released)
        return frozenset().union(*(each.devices for each in readings if isinstance(each, Reading))) or None

    def take_in(self, lost: Outcome, found: Finding, move: str) -> None:
        """The engine is in quarantine: its record, the journal, the observers and the log say so."""
        engine, error = lost.engine, lost.error
        assert error is not None
        assert found.why_not is None
        where = "its process is gone" if engine.state is State.GONE else f"on {', '.join(sorted(found.devices or ()))}"
        reason = f"{where}; {error.without_advice if isinstance(error, LifecycleError) else error}"
        engine.set_quarantined(reason)
        self.put.append(engine)
        self._journal.quarantined(move, engine, reason, found.closed, found.devices or (), found.others)
        self._observers.notify("quarantined", engine.name, error, reason)
        _LOG.warning("%s is in quarantine, and the %s goes on without it: %s", engine.name, move, reason)

    # those that were left behind before

    async def check(self, others: Sequence[Engine]) -> None:
        """Those that earlier moves left behind may be; FleetError names those that may not, with nothing sent."""
        refused = await self.back(self.before, others)
        if refused:
            raise FleetError.of(REFUSED, [each.error for each in refused if each.error is not None])

    async def back(self, engines: Sequence[Engine], others: Sequence[Engine]) -> list[Outcome]:
        """Those of these in quarantine that may hold memory of a device of the others now, each with a refusal."""
        looks = (each.verify(deadline_s=self._limit_s, for_move=each.in_move is not None) for each in engines)
        await asyncio.gather(*looks)
        found = await self.find(engines, others) if engines else []
        return [Outcome(each.engine, error=_came_back(each)) for each in found if each.why_not is not None]

    def follow(self, others: Sequence[Engine]) -> None:
        """Those that the move left out are to serve what those of the others that serve do, where that is one thing."""
        sources = {engine.desired.source for engine in others if engine.state is State.SERVING}
        if len(sources) == 1:
            follow(self.engines, sources.pop())


def follow(engines: Sequence[Engine], source: Source | None) -> None:
    """Engines in quarantine are to serve this, once they are recovered; that it could not be kept is logged."""
    for engine in engines:
        if source is None or source is engine.desired.source or engine.quarantined is None:
            continue
        try:
            engine.set_desired(source)
        except LifecycleError as problem:
            _LOG.warning("%s is in quarantine, and does not know what its fleet serves: %s", engine.name, problem)


def taking_part(engines: Sequence[Engine], what: str) -> list[Engine]:
    """Those of these engines that take part in a move or step (`what`), which is those that are not in quarantine.

    Those left out are logged. FleetError where all are: nobody would do what was asked for.
    """
    away = [engine for engine in engines if engine.quarantined is not None]
    if away and len(away) == len(engines):
        raise FleetError.of(REFUSED, [_in_quarantine(engine, what) for engine in away])
    for engine in away:
        _LOG.warning("%s is left out of %s: in quarantine %s", engine.name, what, _why(engine))
    return [engine for engine in engines if engine.quarantined is None]


def _in_quarantine(engine: Engine, what: str) -> GuardRefused:
    reason = f"it is in quarantine {_why(engine)}; recover() takes it back"
    return engine.advised(GuardRefused({QUARANTINED: reason}, **engine.about(what)))


def _came_back(found: Finding) -> GuardRefused:
    engine = found.engine
    reason = f"it is in quarantine, and {found.why_not}; recover it first"
    return engine.advised(GuardRefused({QUARANTINED: reason}, **engine.about("offload")))


def _why(engine: Engine) -> str:
    return "" if engine.quarantined is None else engine.quarantined.reason
