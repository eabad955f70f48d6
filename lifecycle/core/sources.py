"""Where weights come from after a release: sources, declared before it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from .errors import ConfigurationError
from .frozen import EMPTY, freeze_fields, replace


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
    the load: of all weights together, or by model role, as in {"target": ..., "draft": ...}; roles that are not named
    are not compared then. `options` go to the engine's load call as they are (`load_format`...).
    """

    path: str
    version: str
    checksum: str | Mapping[str, str] | None = None
    options: Mapping[str, Any] = EMPTY

    def __post_init__(self) -> None:
        check_model_roles(self.checksum)
        freeze_fields(self, "checksum", "options")

    def __str__(self) -> str:
        return f"{self.path} ({self.version})"


Push = Callable[[Sequence[PushTarget]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Pushed:
    """The trainer sends the weights: `push(engines)` is called once, when every engine of the update is ready.

    It is one collective: any failure, the trainer's included, fails the update of every engine. A push cannot be
    repeated without the trainer, so it is no source to roll back to. The callback does not survive a pickle, a deep
    copy or JSON: what comes back has `push` None and the callback's `name`, and is refused until `bind` gives it one.
    Two pushes are equal where name, version and checksum are.
    """

    push: Push | None = field(compare=False)
    version: str
    checksum: str | Mapping[str, str] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        check_model_roles(self.checksum)
        freeze_fields(self, "checksum")
        if not self.name and self.push is not None:
            object.__setattr__(self, "name", getattr(self.push, "__qualname__", type(self.push).__qualname__))

    def bind(self, push: Push) -> Pushed:
        """The same source with this callback, under its old name."""
        return replace(self, push=push)

    def __reduce__(self) -> tuple[Any, ...]:
        return Pushed, (None, self.version, self.checksum, self.name)

    def __str__(self) -> str:
        return f"pushed by the trainer ({self.version})"


Source = Kept | FromDisk | Pushed


S = TypeVar("S", bound=Source | None)


def checked(source: S, *, needed: bool = False) -> S:
    """The source, or None unless one is `needed`; ConfigurationError that names the sources where it is none of them.

    Every place where a caller gives one asks this: what is no source would be taken for one, or for none.
    """
    if isinstance(source, Source) or (source is None and not needed):
        return source
    raise ConfigurationError(
        f"{source!r:.100} is no source of weights; it is one of FromDisk(path, version), Kept() and "
        "Pushed(callback, version)"
    )


def version_of(source: Source | None) -> str | None:
    """The version that this source brings; None where it brings back what was there."""
    return source.version if isinstance(source, FromDisk | Pushed) else None


#: The models whose weights an engine may hold. Source: sglang 0.5.23, the selectors of `/weights_checker`.
MODEL_ROLES = ("target", "draft")


def check_model_roles(asked: str | Mapping[str, str] | None) -> None:
    """Raises ConfigurationError that names a model role which there is not."""
    for role in asked if isinstance(asked, Mapping) else ():
        if role not in MODEL_ROLES:
            raise ConfigurationError(f"checksum of {role!r}: one of {', '.join(MODEL_ROLES)}")
