"""The journal: what drivers did to engines, and what came of it, in the order in which it happened.

An entry is one `Event`, with who wrote it and when. The entries of one engine and one driver form a sequence: it
begins with `Attached`; a command is `CommandBegan`, then any number of `CallSent`, `CallEnded`, `BarrierReturned` and
`StateEntered`, and last `CommandEnded`, or `Refused` alone. `CallSent` is an intent: of a call that cannot be repeated
it is on disk before the call is sent. So where a driver ends in the middle, at most one call of an engine is in doubt:
the one whose `CallEnded` is missing. `lifecycle.rules.violations` says what must hold of the whole.

Times are wall-clock seconds since 1970, durations are seconds of the writer's monotonic clock. A driver is one
`Engine` object of one process, named by its token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .facts import Grade
from .frozen import FrozenMap, freeze_fields
from .requests import RequestFates
from .states import State
from .verdicts import Verdict

#: Changes when an entry no longer means what it meant.
JOURNAL_FORMAT = 1

#: Times from here on are of no clock, and cannot be printed as a date.
NEVER_S = 1e11

_NO_GRADES: FrozenMap[str, Grade] = FrozenMap()
_NO_VERDICTS: FrozenMap[str, Verdict] = FrozenMap()


@dataclass(frozen=True, slots=True)
class Attached:
    """A driver observed an engine, and drives it from here on.

    `who` is the driver in words, `accept` the least grade of each claim that it accepts, `boot` the process that
    answered (None: none did). `version` is that of this library.
    """

    who: str
    url: str
    group: str
    boot: str | None
    version: str
    threshold_bytes: int
    accept: Mapping[str, Grade] = field(default=_NO_GRADES)

    def __post_init__(self) -> None:
        freeze_fields(self, "accept")


@dataclass(frozen=True, slots=True)
class CommandBegan:
    """The engine was claimed for a command, in this state."""

    command: str
    state: State


@dataclass(frozen=True, slots=True)
class Refused:
    """A command was refused: none of its calls was sent. `error` is the class of what was raised."""

    command: str
    error: str
    reason: str


@dataclass(frozen=True, slots=True)
class CallSent:
    """A call is about to be sent, and may run until `until_s`.

    `command` is the one that it belongs to; empty where it closes an engine that is reconciled. `effect` are the facts
    that it changes. `baseline_bytes` were resident before the command, where that was measured. `fence` is the number
    of the driver's lease: it grows with every driver; 0 where there is no lease.
    """

    call: str
    command: str
    effect: tuple[str, ...]
    repeatable: bool
    until_s: float
    boot: str | None
    baseline_bytes: int | None = None
    fence: int = 0


@dataclass(frozen=True, slots=True)
class CallEnded:
    """What came of a call. `unknown`: the caller gave up before it was answered. `unsent`: it was never sent.

    `lost` and `unknown` calls may run still, and nothing may be sent before a barrier has returned.
    """

    call: str
    outcome: Literal["done", "rejected", "lost", "unknown", "unsent"]
    status: int | None = None
    detail: str = ""
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BarrierReturned:
    """Everything sent to the engine before has taken effect, or never will."""


@dataclass(frozen=True, slots=True)
class StateEntered:
    """The engine went along one edge. `memory_returned` is what is known of its memory from here on.

    `requests` is what became of its requests since it was paused, on the edges of which a `Transition` says so.
    """

    trigger: str
    source: State
    dest: State
    command: str = ""
    reason: str = ""
    duration_s: float = 0.0
    verdicts: Mapping[str, Verdict] = field(default=_NO_VERDICTS)
    memory_returned: Verdict | None = None
    requests: RequestFates | None = None

    def __post_init__(self) -> None:
        freeze_fields(self, "verdicts")


@dataclass(frozen=True, slots=True)
class CommandEnded:
    """A command has ended in `state`; `error` is the class of what it raised, empty where it succeeded."""

    command: str
    state: State
    duration_s: float
    error: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MovePhase:
    """A move, or one phase of it, begins or has ended. `phase` is empty where the entry is about the whole move.

    A step of a fleet (`Fleet.release`) is a move named after its command, and is written as a whole.

    `drivers` are the tokens of its participants, `failed` the names of those that failed. `duration_s` is None at the
    beginning.
    """

    move: str
    move_id: str
    phase: str
    drivers: tuple[str, ...]
    failed: tuple[str, ...] = ()
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A move goes on without a participant that failed in it: it is in quarantine from here on, for this reason.

    `left_out` is its driver and `name` its name. `gone`: its process has ended. Otherwise it lives on `devices`, and
    the router was closed for it (`closed`); `others` are the devices of the engines with which the move goes on.
    """

    move: str
    move_id: str
    left_out: str
    name: str
    reason: str
    gone: bool
    closed: bool = False
    devices: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HandedOver:
    """The devices of these engines were handed to the next tenant: by driver, what was known of the memory then.

    `gone` are drivers whose engine's process has ended.
    """

    move_id: str
    returned: Mapping[str, Verdict]
    gone: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        freeze_fields(self, "returned")


Event = (
    Attached
    | CommandBegan
    | Refused
    | CallSent
    | CallEnded
    | BarrierReturned
    | StateEntered
    | CommandEnded
    | MovePhase
    | Quarantined
    | HandedOver
)

#: The events by the name that an entry carries.
EVENTS = {event.__name__: event for event in Event.__args__}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a journal. `engine` is the engine's name and `key` its address; both are empty for a move.

    `number` counts the entries of one journal; None before it was written.
    """

    event: Event
    at_s: float
    driver: str
    engine: str = ""
    key: str = ""
    number: int | None = None

    @property
    def kind(self) -> str:
        """The name of the event."""
        return type(self.event).__name__
