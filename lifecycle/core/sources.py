"""Where weights come from after a release: sources, declared before it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .errors import ConfigurationError


class PushTarget(Protocol):
    """An engine, as the trainer sees it while it pushes weights."""

    @property
    def name(self) -> str:
        """The engine's name in its fleet."""

    async def push(self, how: str, /, **args: Any) -> Any:
        """One call of the push; the engine's answer. What it raises fails the push for every engine."""


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

    push: Callable[[Sequence[PushTarget]], Awaitable[None]]
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


#: Whose weights there may be. Source: sglang 0.5.23, the selectors of `/weights_checker`.
OWNERS = ("target", "draft")


def check_owners(asked: str | Mapping[str, str] | None) -> None:
    """What a source asks for names owners that there may be; ConfigurationError says which name does not."""
    for owner in asked if isinstance(asked, Mapping) else ():
        if owner not in OWNERS:
            raise ConfigurationError(f"checksum of {owner!r}: one of {', '.join(OWNERS)}")
