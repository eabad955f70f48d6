"""What every command that moves engines is given, and the fleet that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from .. import settings
from ..engine import Engine
from ..errors import ConfigurationError
from ..events import Observer
from ..facts import PAUSE_MODES, PauseMode
from ..fleet import Fleet
from ..fleetfile import FleetFile, read
from ..store import Store
from ..weights import FromDisk, Kept, Source

URLS = Annotated[
    list[str],
    typer.Argument(metavar="URL...|fleet.toml", help="Engines, e.g. sglang://127.0.0.1:30000, or a fleet's file."),
]
ENGINES = Annotated[str | None, typer.Option(help="Only these, by name, separated by commas.")]
GROUP = Annotated[str | None, typer.Option(help="Only the engines of this group.")]
TAGS = Annotated[str | None, typer.Option(help="Tags of memory, separated by commas (all).")]
MODE = Annotated[str | None, typer.Option(help=f"What becomes of requests in flight: {', '.join(PAUSE_MODES)}.")]
DEADLINE = Annotated[float | None, typer.Option("--deadline", help="Seconds that each step may take.")]
THRESHOLD = Annotated[float | None, typer.Option(help="GiB that an engine may keep after a release.")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Print the calls that would be sent, and send none.")]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WEIGHTS = Annotated[str | None, typer.Option(help="Where weights come from: a checkpoint's path, or 'kept'.")]
VERSION = Annotated[str | None, typer.Option(help="The label of that checkpoint's weights.")]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The options of one command, checked before anything is sent."""

    urls: Sequence[str]
    engines: str | None = None
    group: str | None = None
    tags: str | None = None
    mode: str | None = None
    deadline_s: float | None = None
    threshold_gib: float | None = None
    dry_run: bool = False
    as_json: bool = False
    weights: str | None = None
    version: str | None = None

    def fleet(self, observers: Sequence[Observer] = (), *, unprovable: str | None = None) -> Fleet:
        """The fleet, not yet observed; what is known of its engines is kept from one command to the next."""
        file = self._file()
        policy = settings.load(Path(self.urls[0]) if file else None).settings.policy()
        if self.threshold_gib is not None:
            policy = replace(policy, residual_threshold_gib=self.threshold_gib)
        if unprovable == "warn":
            policy = replace(policy, unprovable="warn")
        urls, groups = (file.urls, file.groups) if file else (self.urls, None)
        return Fleet.connect(urls, groups=groups, policy=policy, observers=observers, memory=Store())

    def _file(self) -> FleetFile | None:
        files = [url for url in self.urls if url.endswith(".toml")]
        if files and len(self.urls) > 1:
            raise ConfigurationError(f"give either URLs or one file, not {' '.join(self.urls)}")
        return read(Path(files[0])) if files else None

    def participants(self, fleet: Fleet) -> list[Engine]:
        """The engines that the command is about; KeyError where a name or group is unknown."""
        named = None if self.engines is None else _split(self.engines)
        engines = fleet.participants(named)
        if self.group is not None and self.group not in fleet.groups:
            raise ConfigurationError(f"--group {self.group!r}: the fleet has {', '.join(fleet.groups)}")
        return [engine for engine in engines if self.group in (None, engine.group)]

    def tag_names(self) -> list[str] | None:
        """The tags that were named; None means all."""
        if self.tags is None:
            return None
        if not _split(self.tags):
            raise ConfigurationError("--tags names none; leave it out to mean all")
        return _split(self.tags)

    def pause_mode(self) -> PauseMode | None:
        """The pause mode that was asked for."""
        for mode in PAUSE_MODES:
            if mode == self.mode:
                return mode
        if self.mode is not None:
            raise ConfigurationError(f"--mode {self.mode!r}: one of {', '.join(PAUSE_MODES)}")
        return None

    def source(self) -> Source | None:
        """Where weights come from; None where nothing was said."""
        if self.weights is None:
            if self.version is not None:
                raise ConfigurationError("--version names the weights of --weights PATH, which is missing")
            return None
        if self.weights == "kept":
            return Kept()
        if not self.version:
            raise ConfigurationError("--weights PATH needs --version LABEL: it is how weights are told apart")
        return FromDisk(self.weights, self.version)


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
