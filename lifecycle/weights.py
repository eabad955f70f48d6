"""Where weights come from after a release: the sources, declared before it, and the collective of a push."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .attestation import check_owners

if TYPE_CHECKING:
    from .engine import Engine


@dataclass(frozen=True, slots=True)
class Kept:
    """The engine's own backup brings the weights back as they were; no update follows."""

    def __str__(self) -> str:
        return "kept by the engine's backup"


@dataclass(frozen=True, slots=True)
class FromDisk:
    """The engine loads a checkpoint folder that every node of it can read.

    `version` is the label that the loaded weights get. `checksum`, where the engine has one, is what it must be after
    the load: of all weights together, or by owner, as in {"target": ..., "draft": ...}; owners that are not named are
    not looked at then. `options` go to the engine's load call as they are (`load_format`...).
    """

    path: str
    version: str
    checksum: str | Mapping[str, str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_owners(self.checksum)

    def __str__(self) -> str:
        return f"{self.path} ({self.version})"


@dataclass(frozen=True, slots=True)
class Pushed:
    """The trainer sends the weights: `push(engines)` is called once, when every engine of the update is ready.

    It is one collective: any failure, the trainer's included, fails the update of every engine. A push cannot be
    repeated without the trainer, so it is no source to roll back to.
    """

    push: Callable[[Sequence[Engine]], Awaitable[None]]
    version: str
    checksum: str | Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        check_owners(self.checksum)

    def __str__(self) -> str:
        return f"pushed by the trainer ({self.version})"


Source = Kept | FromDisk | Pushed


def version_of(source: Source | None) -> str | None:
    """The version that this source brings; None where it brings back what was there."""
    return source.version if isinstance(source, FromDisk | Pushed) else None


class CollectiveFailed(Exception):
    """A participant of the push failed, so nobody's weights are valid; `__cause__` is what failed first."""


class Collective:
    """One push over several engines: all arrive, the trainer sends once, all go on; or all fail."""

    def __init__(self, source: Pushed, parties: Sequence[Engine]) -> None:
        if not parties:
            raise ValueError("a push needs at least one engine")
        self._source = source
        self._parties = parties
        self._missing = {engine.name for engine in parties}
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pushing: asyncio.Task[None] | None = None

    async def arrive(self, engine: Engine) -> None:
        """Returns when the trainer's push has ended; raises CollectiveFailed where any part of it failed."""
        self._missing.discard(engine.name)
        if not self._missing and self._pushing is None and not self._done.done():
            self._pushing = asyncio.create_task(self._push())
        await asyncio.shield(self._done)

    def fail(self, error: BaseException, *, who: str) -> None:
        """Fails the collective for everyone, unless it has ended already."""
        if self._done.done():
            return
        failure = CollectiveFailed(f"the push failed for every engine: {who}: {error or type(error).__name__}")
        failure.__cause__ = error
        self._done.set_exception(failure)
        self._done.exception()  # marks it as seen: a collective that nobody waits for is no leak
        if self._pushing is not None:
            self._pushing.cancel()

    async def _push(self) -> None:
        try:
            await self._source.push(self._parties)
        except BaseException as error:
            self.fail(error, who="the trainer")
            if not isinstance(error, Exception):
                raise
        else:
            if not self._done.done():
                self._done.set_result(None)
