"""The commands: frozen values that say what is wanted, never how an engine does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .facts import PauseMode, Tag
from .policy import PAUSE_MODE
from .sources import Source, checked


@dataclass(frozen=True, slots=True)
class Command:
    """Something that an engine is asked to do; `name` is its trigger in the table."""

    name: ClassVar[str] = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Pause(Command):
    """Stop admitting requests; `mode` says what becomes of those in flight."""

    name: ClassVar[str] = "pause"
    mode: PauseMode = PAUSE_MODE


@dataclass(frozen=True, slots=True)
class Drain(Command):
    """Wait until no request can run a step or hold device memory."""

    name: ClassVar[str] = "drain"


@dataclass(frozen=True, slots=True)
class Release(Command):
    """Give the memory of `tags` back (None: of every tag); `weights` says where they will come from."""

    name: ClassVar[str] = "release"
    tags: frozenset[Tag] | None = None
    weights: Source | None = None

    def __post_init__(self) -> None:
        checked(self.weights)


@dataclass(frozen=True, slots=True)
class RestoreWeights(Command):
    """Map every tag of the weights stage again; what they hold is another question."""

    name: ClassVar[str] = "restore_weights"


@dataclass(frozen=True, slots=True)
class UpdateWeights(Command):
    """Load `source`; `force` loads a version that is already valid there once more."""

    source: Source
    force: bool = False
    name: ClassVar[str] = "update_weights"

    def __post_init__(self) -> None:
        checked(self.source, needed=True)


@dataclass(frozen=True, slots=True)
class RestoreKV(Command):
    """Map every tag of the KV stage again and drop what the prefix cache remembers."""

    name: ClassVar[str] = "restore_kv"


@dataclass(frozen=True, slots=True)
class Resume(Command):
    """Admit requests again, and see a real token."""

    name: ClassVar[str] = "resume"


COMMANDS: tuple[type[Command], ...] = (Pause, Drain, Release, RestoreWeights, UpdateWeights, RestoreKV, Resume)
BY_NAME = {command.name: command for command in COMMANDS}
