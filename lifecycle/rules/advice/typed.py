"""How a command or a goal is typed, in Python and on the command line. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from ...core.advice import Choice
from ...core.capabilities import Capabilities
from ...core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ...core.policy import PAUSE_MODE
from ...core.record import Record
from ...core.sources import FromDisk, Pushed, Source
from ...core.states import State
from ..planner import Goal, PlannerView
from ..quarantine import quarantine_of
from ..weights import invalid_weights

#: What a person fills in.
PATH, VERSION, PUSH, NAME, WHY = "PATH", "VERSION", "PUSH", "NAME", "WHY"

#: The sources that a person names: written without quotes, since they are no values yet.
CHECKPOINT, TRAINER = FromDisk(PATH, VERSION), Pushed(None, VERSION)

Asked = Command | Goal


@dataclass(frozen=True, slots=True)
class Where:
    """An engine as advice sees it: its `name` in a fleet, its `address` on the command line."""

    record: Record
    capabilities: Capabilities
    name: str
    address: str

    @property
    def state(self) -> State:
        """Where it is."""
        return self.record.state

    @property
    def alone(self) -> str:
        """The argument by which a fleet takes this engine alone."""
        return f"engines=[{self.name!r}]"

    @property
    def in_quarantine(self) -> bool:
        """Whether moves leave it out until it is recovered."""
        return quarantine_of(self.record) is not None

    @property
    def invalid(self) -> bool:
        """Whether its weights are not worth serving."""
        return invalid_weights(self.record, self.capabilities) is not None

    @property
    def view(self) -> PlannerView:
        """The engine as the planner sees it."""
        return PlannerView(self.state, self.record.facts, self.capabilities, not self.invalid)

    def choice(self, call: str, command: str, first: str = "") -> Choice:
        """One way on, whose command is given this engine's address; what pushes has none."""
        if f"Pushed({PUSH}" in call:
            return Choice(call, first=first)
        verb, _, options = command.partition(" ")
        line = " ".join(part for part in ("lifecycle", verb, shlex.quote(self.address), options) if part)
        return Choice(call, line, first)


def python_of(source: Source) -> str:
    """The source as it is written in Python."""
    if source in (CHECKPOINT, TRAINER):
        return f"FromDisk({PATH}, {VERSION})" if source == CHECKPOINT else f"Pushed({PUSH}, {VERSION})"
    match source:
        case FromDisk(path=path, version=version, checksum=checksum, options=options):
            more = f", checksum={_plain(checksum)!r}" if checksum else ""
            more += f", options={dict(options)!r}" if options else ""
            return f"FromDisk({path!r}, {version!r}{more})"
        case Pushed(version=version):
            return f"Pushed({PUSH}, {version!r})"
    return "Kept()"


def options_of(source: Source) -> str:
    """The source as options of the command line."""
    if isinstance(source, FromDisk):
        return f"--weights {shlex.quote(source.path)} --version {shlex.quote(source.version)}"
    return "--weights kept"


def _plain(checksum: str | Mapping[str, str]) -> str | dict[str, str]:
    return checksum if isinstance(checksum, str) else dict(checksum)


def asking(where: Where, asked: Asked, first: str = "") -> Choice:
    """What was asked, as it is asked of the engine, or of its fleet where it is a move, and on the command line."""
    match asked:
        case Pause(mode=mode):
            return where.choice(f"engine.pause({mode!r})", f"pause --mode {mode}", first)
        case Drain():
            return where.choice("engine.drain()", "drain", first)
        case Release():
            return _releasing(where, "engine.release", asked, first)
        case RestoreWeights():
            return where.choice("engine.restore_weights()", "restore --only weights", first)
        case UpdateWeights(source=source, force=force):
            call = f"engine.update_weights({python_of(source)}{', force=True' if force else ''})"
            return where.choice(call, f"update {options_of(source)}{' --force' if force else ''}", first)
        case RestoreKV():
            return where.choice("engine.restore_kv()", "restore --only kv", first)
        case Resume():
            return where.choice("engine.resume()", "resume", first)
        case Goal(state=State.RELEASED):
            return _releasing(where, "fleet.offload", asked, first)
        case Goal(weights=FromDisk() | Pushed() as source):
            call = f"fleet.onload(weights={python_of(source)}, {where.alone})"
            return where.choice(call, f"onload {options_of(source)}", first)
    return where.choice(f"fleet.onload({where.alone})", "onload", first)


def _releasing(where: Where, method: str, asked: Release | Goal, first: str) -> Choice:
    python, typed = [], []
    if isinstance(asked, Goal) and asked.mode != PAUSE_MODE:
        python.append(f"mode={asked.mode!r}")
        typed.append(f"--mode {asked.mode}")
    if asked.tags is not None:
        python.append(f"tags={sorted(asked.tags)!r}")
        typed.append(f"--tags {','.join(sorted(asked.tags))}")
    if asked.weights is not None:
        python.append(f"weights={python_of(asked.weights)}")
        typed.append(options_of(asked.weights))
    if isinstance(asked, Goal):
        python.append(where.alone)
    return where.choice(f"{method}({', '.join(python)})", " ".join([method.partition(".")[2], *typed]), first)
