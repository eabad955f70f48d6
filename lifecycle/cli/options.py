"""What every command that moves engines is given, and the fleet that it makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from .. import settings
from ..core.errors import ConfigurationError
from ..core.facts import PAUSE_MODES, PauseMode, Tag
from ..core.observer import Observer
from ..core.sources import FromDisk, Kept, Source
from ..engine.engine import Engine
from ..fleet.fleet import Fleet
from ..settings.fleet_file import FleetFile, read
from ..store.sqlite import Store


def one_of(*values: str) -> Callable[[str], list[str]]:
    """Completes to these values."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


URLS = Annotated[
    list[str],
    typer.Argument(metavar="URL...|fleet.toml", help="Engines, e.g. sglang://127.0.0.1:30000, or a fleet's file."),
]
ENGINES = Annotated[str | None, typer.Option(help="Only these, by name, separated by commas.")]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
THRESHOLD = Annotated[float | None, typer.Option(help="GiB that an engine may keep after a release.")]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a command was given. Each field is an option of the command line; `command` says which command has which."""

    urls: URLS
    only: Annotated[
        str | None, typer.Option(help="Only one stage: weights or kv.", autocompletion=one_of("weights", "kv"))
    ] = None
    tags: Annotated[str | None, typer.Option(help="Tags of memory, separated by commas (all).")] = None
    weights: Annotated[str | None, typer.Option(help="Where weights come from: a checkpoint's path, or 'kept'.")] = None
    version: Annotated[str | None, typer.Option(help="The label of that checkpoint's weights.")] = None
    mode: Annotated[
        str | None,
        typer.Option(
            help=f"What becomes of requests in flight: {', '.join(PAUSE_MODES)}.", autocompletion=one_of(*PAUSE_MODES)
        ),
    ] = None
    times: Annotated[int, typer.Option(min=1, help="How many cycles.")] = 1
    parity: Annotated[
        bool, typer.Option("--parity", help="Exit 1 unless prompts get the tokens that they got before the cycles.")
    ] = False
    engines: ENGINES = None
    group: Annotated[str | None, typer.Option(help="Only the engines of this group.")] = None
    deadline_s: Annotated[float | None, typer.Option("--deadline", help="Seconds that each step may take.")] = None
    threshold_gib: THRESHOLD = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the calls that would be sent, and send none.")] = (
        False
    )
    as_json: JSON = False

    def fleet(self, observers: Sequence[Observer] = (), *, unprovable: str | None = None) -> Fleet:
        """The fleet, not yet observed; what is known of its engines is kept from one command to the next."""
        file = self._file()
        policy = settings.load(Path(self.urls[0]) if file else None).settings.policy()
        if self.threshold_gib is not None:
            policy = replace(policy, residual_threshold_gib=self.threshold_gib)
        if unprovable == "warn":
            policy = replace(policy, unprovable="warn")
        urls, groups = (file.urls, file.groups) if file else (self.urls, None)
        return Fleet.connect(urls, groups=groups, policy=policy, observers=observers, store=Store())

    def _file(self) -> FleetFile | None:
        files = [url for url in self.urls if url.endswith(".toml")]
        if files and len(self.urls) > 1:
            raise ConfigurationError(f"give either URLs or one file, not {' '.join(self.urls)}")
        return read(Path(files[0])) if files else None

    def participants(self, fleet: Fleet) -> list[Engine]:
        """The engines that the command is about; ConfigurationError where a name or group is unknown."""
        named = None if self.engines is None else _names("--engines", self.engines)
        try:
            engines = fleet.participants(named)
        except KeyError as unknown:
            raise ConfigurationError(str(unknown.args[0])) from None
        if self.group is not None and self.group not in fleet.groups:
            raise ConfigurationError(f"--group {self.group!r}: the fleet has {', '.join(fleet.groups)}")
        return [engine for engine in engines if self.group in (None, engine.group)]

    def tag_names(self) -> frozenset[Tag] | None:
        """The tags that were named; None means all."""
        return None if self.tags is None else frozenset(_names("--tags", self.tags))

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
        match self.weights, self.version:
            case None, None:
                return None
            case "kept", None:
                return Kept()
            case None | "kept" | "", _:
                raise ConfigurationError("--version names the weights of --weights PATH, which is missing")
            case str(path), str(version) if version.strip():
                return FromDisk(_as_the_engine_finds_it(path), version)
        raise ConfigurationError("--weights PATH needs --version LABEL: it is how weights are told apart")


def command(app: typer.Typer, *options: str) -> Callable[[Callable[[Chosen], int]], Callable[[Chosen], int]]:
    """The decorated function is a command of `app`, by its own name and docstring, and takes these options."""

    def register(function: Callable[[Chosen], int]) -> Callable[[Chosen], int]:
        def called(**given: Any) -> int:
            return function(Chosen(**given))

        called.__signature__ = _taking(options)  # type: ignore[attr-defined]
        app.command(function.__name__, help=function.__doc__)(called)
        return function

    return register


def _taking(options: Sequence[str]) -> inspect.Signature:
    hints = get_type_hints(Chosen, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[field.name],
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(Chosen)
        if field.name in options
    ]
    return inspect.Signature(parameters)


def _as_the_engine_finds_it(path: str) -> str:
    """The engine has a working directory of its own. What is not there from here may be a name that it knows."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _names(option: str, told: str) -> list[str]:
    names = [name.strip() for name in told.split(",") if name.strip()]
    if not names:
        raise ConfigurationError(f"{option} names none; leave it out to mean all")
    return names
