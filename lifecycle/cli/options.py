"""The options of the commands, and the fleet that they describe."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..core.errors import ConfigurationError
from ..core.facts import PAUSE_MODES, PauseMode, Tag
from ..core.observer import Observer
from ..core.policy import Policy
from ..core.sources import FromDisk, Kept, Source
from ..core.states import RING, State
from ..engine.engine import Engine
from ..fleet.fleet import Fleet
from ..fleet.recovery import RecoverTo
from ..store.leases import Leases
from ..store.reading import can_be_written
from ..store.sqlite import Store, default_path
from ..store.tenants import Tenants
from .output import complain

if TYPE_CHECKING:
    from ..settings.schema import Loaded


def one_of(*values: str) -> Callable[[str], list[str]]:
    """Completes to these values."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


URLS = Annotated[
    list[str],
    typer.Argument(metavar="URL...|fleet.toml", help="Engines, e.g. sglang://127.0.0.1:30000, or one fleet.toml."),
]
ENGINES = Annotated[str | None, typer.Option(help="Only the engines of these names, separated by commas.")]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ROUTER = Annotated[
    str | None, typer.Option(help="The router in front of the engines, e.g. sglang-router://127.0.0.1:8000.")
]
THRESHOLD = Annotated[float | None, typer.Option(help="GiB that an engine may still hold after a release.")]


@dataclass(frozen=True)
class Options:
    """What a command was given. Each field is an option of the command line; `command` says which command has which."""

    urls: URLS
    wanted: Annotated[
        str,
        typer.Option(
            "--for", help="state=STATE.", autocompletion=one_of(*(f"state={each}" for each in (*RING, State.GONE)))
        ),
    ] = ""
    only: Annotated[
        str | None, typer.Option(help="Only one stage: weights or kv.", autocompletion=one_of("weights", "kv"))
    ] = None
    tags: Annotated[str | None, typer.Option(help="Memory tags, separated by commas (default: all).")] = None
    weights: Annotated[
        str | None, typer.Option(help="Where the weights come from afterwards: a checkpoint's path, or 'kept'.")
    ] = None
    version: Annotated[str | None, typer.Option(help="The version label of that checkpoint.")] = None
    mode: Annotated[
        str | None,
        typer.Option(
            help=f"What happens to requests in flight: {', '.join(PAUSE_MODES)}.", autocompletion=one_of(*PAUSE_MODES)
        ),
    ] = None
    times: Annotated[int, typer.Option(min=1, help="How many cycles.")] = 1
    parity: Annotated[
        bool, typer.Option("--parity", help="Exit 1 unless prompts get the same tokens after the cycles as before.")
    ] = False
    to: Annotated[
        str | None,
        typer.Option(
            help="Then bring the engines there: serving or released.", autocompletion=one_of("serving", "released")
        ),
    ] = None
    engines: ENGINES = None
    group: Annotated[str | None, typer.Option(help="Only the engines of this group.")] = None
    deadline_s: Annotated[
        float | None,
        typer.Option("--deadline", "--deadline-s", "--timeout", help="Seconds that each step, or the wait, may take."),
    ] = None
    threshold_gib: THRESHOLD = None
    router: ROUTER = None
    force: Annotated[
        bool, typer.Option("--force", help="Load the weights also where they are loaded and valid already.")
    ] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the calls that would be sent, and send none.")] = (
        False
    )
    as_json: JSON = False

    @cached_property
    def loaded(self) -> Loaded:
        """The settings in force, and the fleet where a file describes it. The file is read once, on first use."""
        files = [url for url in self.urls if url.endswith(".toml")]
        if files and len(self.urls) > 1:
            raise ConfigurationError(f"give either URLs or one file, not {' '.join(self.urls)}")
        from ..settings.schema import load

        return load(Path(files[0]) if files else None)

    @property
    def of_file(self) -> bool:
        """Whether a file describes the fleet."""
        return bool(self.loaded.urls)

    @cached_property
    def policy(self) -> Policy:
        """What the engines are held to: the settings, with --threshold-gib."""
        policy = self.loaded.policy
        return policy if self.threshold_gib is None else replace(policy, residual_threshold_gib=self.threshold_gib)

    @cached_property
    def kept(self) -> tuple[Store, Leases]:
        """What is known of engines and who has them, for a command that only reads.

        It is read without writing anything where nothing can be written; that is said then.
        """
        path = default_path()
        if can_be_written(path):
            return Store(), Leases()
        what = "nothing can be written there: what it has is read, and what is seen now is not kept"
        complain(f"{path}: {what} (LIFECYCLE_STATE_DIR names another folder)")
        return Store(reads_only=True), Leases(reads_only=True)

    def fleet(
        self,
        observers: Sequence[Observer] = (),
        *,
        accept_unprovable: bool = False,
        reads_only: bool = False,
        kept: tuple[Store, Leases] | None = None,
    ) -> Fleet:
        """The fleet, not yet connected. What is known of its engines is kept from one command to the next.

        With `accept_unprovable` it also has engines that cannot give the evidence that the policy asks for: a command
        that observes an engine is no reason to refuse it. Any other command is bound by the ledger of tenants, where
        this user has one. With `reads_only` it needs no place to write to. `kept` replaces what is known here.
        """
        policy = replace(self.policy, unprovable="warn") if accept_unprovable else self.policy
        urls, groups = self.loaded.urls or self.urls, self.loaded.groups
        ledger = Tenants()
        store, lease = kept or (self.kept if reads_only else (Store(), Leases()))
        tenants = None if accept_unprovable or not ledger.path.exists() else ledger
        return Fleet.connect(
            urls,
            groups=groups,
            router=self.router or self.loaded.router,
            policy=policy,
            observers=observers,
            store=store,
            lease=lease,
            tenants=tenants,
        )

    def participants(self, fleet: Fleet) -> list[Engine]:
        """The engines that take part. ConfigurationError names an engine or a group that the fleet does not have."""
        named = None if self.engines is None else _names("--engines", self.engines)
        try:
            engines = fleet.participants(named)
        except KeyError as unknown:
            raise ConfigurationError(str(unknown.args[0])) from None
        if self.group is not None and self.group not in fleet.groups:
            raise ConfigurationError(f"--group {self.group!r}: the fleet has {', '.join(fleet.groups)}")
        return [engine for engine in engines if self.group in (None, engine.group)]

    def tag_names(self) -> frozenset[Tag] | None:
        """The tags of --tags; None means all."""
        return None if self.tags is None else frozenset(_names("--tags", self.tags))

    def pause_mode(self) -> PauseMode:
        """The mode of --mode, else the policy's."""
        if self.mode is None:
            return self.policy.pause_mode
        for mode in PAUSE_MODES:
            if mode == self.mode:
                return mode
        raise ConfigurationError(f"--mode {self.mode!r}: one of {', '.join(PAUSE_MODES)}")

    def recover_to(self) -> RecoverTo | None:
        """Where --to brings engines; None where it is not given."""
        match self.to:
            case "serving" | "released" | None:
                return self.to
        raise ConfigurationError(f"--to {self.to!r}: one of serving, released")

    def source(self) -> Source | None:
        """Where the weights come from, as --weights and --version say; None where neither is given."""
        match self.weights, self.version:
            case None, None:
                return None
            case "kept", None:
                return Kept()
            case None | "kept" | "", _:
                raise ConfigurationError("--version names the weights of --weights PATH, which is missing")
            case str(path), str(version) if version.strip():
                return FromDisk(_path_for_engine(path), version)
        raise ConfigurationError("--weights PATH needs --version LABEL: weights are told apart by their labels")


def command(app: typer.Typer, *options: str) -> Callable[[Callable[[Options], int]], Callable[[Options], int]]:
    """The decorated function becomes a command of `app` with its name, its docstring as help, and these options."""

    def register(function: Callable[[Options], int]) -> Callable[[Options], int]:
        def run(**given: Any) -> int:
            return function(Options(**given))

        run.__signature__ = _signature(options)  # type: ignore[attr-defined]
        app.command(function.__name__, help=function.__doc__)(run)
        return function

    return register


def _signature(options: Sequence[str]) -> inspect.Signature:
    """The signature from which typer makes these options."""
    hints = get_type_hints(Options, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[field.name],
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(Options)
        if field.name in options
    ]
    return inspect.Signature(parameters)


def _path_for_engine(path: str) -> str:
    """The absolute path where it exists here: an engine has its own working directory. Other names are left alone."""
    return os.path.realpath(path) if os.path.exists(path) else path


def _names(option: str, given: str) -> list[str]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        raise ConfigurationError(f"{option} names none; leave it out to mean all")
    return names
