"""What the engines of a move or step are to serve is set for all of them before the first is touched.

It is kept for all of them at once: whoever takes over from a driver that ended in the middle finds a fleet that is to
serve one version. Where the move fails before any of them was touched it is taken back, for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from ..core.errors import FleetError, GuardRefused
from ..core.record import Record
from ..core.sources import Source
from ..engine.engine import Engine
from .preflight import REFUSED


class DesiredOfMove:
    """What was set in one move, and what was known of the engines before that."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[Engine, Record]] = {}

    def set(self, wanted: Iterable[tuple[Engine, Source | None]]) -> dict[str, GuardRefused]:
        """These engines are to serve this (None: what they are to serve already).

        Returns why, by name, where that could not be kept; nothing is set then.
        """
        # By identity: a push that has its callback equals one that was read from a file and has none.
        new = [(each, source) for each, source in wanted if source is not None and source is not each.desired.source]
        before = {engine.name: (engine, engine.record) for engine, _ in new}
        refused = Engine.set_desired_of(new)
        if not refused:
            self._before = before | self._before
        return refused

    def set_all(self, wanted: Iterable[tuple[Engine, Source | None]]) -> None:
        """As `set`; FleetError where that could not be kept."""
        refused = self.set(wanted)
        if refused:
            raise FleetError.of(REFUSED, list(refused.values()))

    def take_back(self) -> None:
        """They are to serve what they did before, unless one of them was touched."""
        Engine.take_desired_back_of(list(self._before.values()))


def holds_desired(engine: Engine, source: Source | None) -> bool:
    """Whether the engine holds what `source` brings (None: what it is to serve), and is to serve nothing else."""
    held = engine.view(source).weights_are_valid
    return held and (source is None or engine.view().weights_are_valid)


@contextmanager
def setting_desired() -> Iterator[DesiredOfMove]:
    """What is set inside is taken back where an error or a cancellation comes through and nothing was touched."""
    desired = DesiredOfMove()
    try:
        yield desired
    except BaseException:
        desired.take_back()
        raise


@contextmanager
def desired_set(engines: Sequence[Engine], source: Source | None) -> Iterator[None]:
    """Engines of a step are to serve this, from before its first command. FleetError where that cannot be kept."""
    with setting_desired() as desired:
        desired.set_all((engine, source) for engine in engines)
        yield
