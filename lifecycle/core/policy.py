"""The defaults, all in one place: deadlines, pause mode, thresholds, and how well each claim must be known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from .errors import ConfigurationError
from .facts import Grade, PauseMode
from .frozen import EMPTY
from .units import GIB, MIB
from .verdicts import Refuted, Verdict, holds

#: Seconds that a command may take, from the call to its return, settling included.
DEADLINES_S: Mapping[str, float] = {
    "pause": 60.0,
    "drain": 120.0,
    "release": 60.0,
    "restore_weights": 60.0,
    "update_weights": 600.0,
    "restore_kv": 60.0,
    "resume": 60.0,
}


#: What becomes of requests in flight unless something else is asked for.
PAUSE_MODE: PauseMode = "abort"


#: The least grade at which each claim may be entered, by the name of its proof or guard. Each of those adds its own
#: line (`lifecycle.rules.proofs`, `lifecycle.rules.guards`), so there is no other list of claims.
ACCEPT: dict[str, Grade] = {}

#: The claims that are waived where they are accepted as asserted: their state is entered though they were refuted. What
#: hangs on the engine under their name says so. Each proof adds its own line, as in `ACCEPT`.
WAIVABLE: set[str] = set()


#: Resident bytes that an engine may keep after a release, beside the tags that stay mapped.
#: Source: miles, 1.81-1.83 GiB stay per engine (Qwen2.5-0.5B, RTX 5090, CUDA 12.9), mostly CUDA context.
RESIDUAL_THRESHOLD_GIB = 3.0


OnFailure = Literal["restore", "quarantine", "hold"]
Unprovable = Literal["refuse", "warn"]
Unleased = Literal["refuse", "warn"]
Unrecorded = Literal["refuse", "warn"]
ResidualScope = Literal["process", "device"]


#: How the residual threshold is set, for errors about it.
SET_THRESHOLD = "Policy(residual_threshold_gib=...), on the command line --threshold-gib"


@dataclass(frozen=True, slots=True)
class Rule:
    """Which values a setting may have. `words` complete "NAME must be ..."."""

    words: str
    allows: Callable[[Any], bool]


def _finite(value: Any) -> bool:
    """Whether this is a number that stays finite as a count of bytes, were it given in GiB."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value) * GIB)
    except OverflowError:
        return False


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _one_of(allowed: Any) -> Rule:
    *others, last = (repr(value) for value in get_args(allowed))
    names = f"{', '.join(others)} or {last}" if others else last
    return Rule(names, lambda value: isinstance(value, str) and value in get_args(allowed))


_POSITIVE = Rule("a finite number > 0", lambda value: _finite(value) and value > 0)
_NOT_NEGATIVE = Rule("a finite number >= 0", lambda value: _finite(value) and value >= 0)
_FRACTION = Rule("a finite number > 0 and <= 1", lambda value: _finite(value) and 0 < value <= 1)
_WHOLE = Rule(">= 0 and a whole number", _whole)
_GRADE = Rule(f"one of {', '.join(f'Grade.{grade.name}' for grade in Grade)}", lambda value: isinstance(value, Grade))


def positive(name: str, value: float) -> float:
    """`value`, a finite number above 0; ConfigurationError names it otherwise."""
    if not _POSITIVE.allows(value):
        raise ConfigurationError(f"{name} must be {_POSITIVE.words}, got {value!r}")
    return float(value)


@dataclass(frozen=True, slots=True)
class WrongValue:
    """A value that a policy may not have.

    `below` is its key where it stands in a table of the field; with `unknown` it is that key which is wrong.
    """

    field: str
    rule: str
    given: Any
    below: tuple[str, ...] = ()
    unknown: bool = False

    def __str__(self) -> str:
        if self.unknown:
            return f"{self.field}: {self.rule}"
        return f"{self.field}{''.join(f'[{key!r}]' for key in self.below)} {self.rule}, got {self.given!r}"


@dataclass(frozen=True, slots=True)
class Policy:
    """What an engine is held to. Times in seconds, sizes in GiB (`_gib`) or bytes (`_bytes`)."""

    residual_threshold_gib: float = RESIDUAL_THRESHOLD_GIB
    #: The share of the expected bytes that must come back.
    returned_fraction: float = 0.9
    #: An expectation under max(this, 5 % of resident) is too small to see in a process's memory.
    visible_bytes: int = 64 * MIB
    visible_fraction: float = 0.05
    pause_mode: PauseMode = PAUSE_MODE
    deadlines_s: Mapping[str, float] = EMPTY
    accept: Mapping[str, Grade] = EMPTY
    #: What to do at connect about an engine that can never give the evidence asked for.
    unprovable: Unprovable = "refuse"
    #: What to do at connect where no lease can be taken, since its holder cannot be asked.
    unleased: Unleased = "refuse"
    #: What to do where a command cannot be written down: refuse it, and what it would send next; or warn and go on.
    unrecorded: Unrecorded = "refuse"
    on_failure: OnFailure = "restore"
    #: Time kept back from every deadline for finding out where a failed command left the engine.
    settle_s: float = 5.0
    poll_s: float = 0.1
    #: What counts as an engine's: what its processes hold, or all that is used of its devices by anybody.
    residual_scope: ResidualScope = "process"
    #: Seconds for which a residual must not have fallen before it is believed; 0 believes the first figure.
    residual_stable_s: float = 0.0
    #: Seconds for which what was observed serves again, within one move, where nothing that was sent since could have
    #: changed it; 0: nothing does.
    evidence_max_age_s: float = 2.0
    #: Seconds to wait for room before a restore: a trainer frees late.
    room_wait_s: float = 30.0
    #: Greedy tokens that a version of the weights is remembered by, and asked for at every resume; 0 remembers none.
    canary_tokens: int = 0

    def __post_init__(self) -> None:
        wrong = [each for field in fields(self) for each in wrong_values(field.name, getattr(self, field.name))]
        if wrong:
            raise ConfigurationError("; ".join(str(each) for each in wrong))

    @property
    def threshold_bytes(self) -> int:
        """The residual threshold in bytes."""
        return round(self.residual_threshold_gib * GIB)

    def deadline_s(self, command: str, asked_s: float | None = None) -> float:
        """Seconds that this command may take: what was asked for, else this policy's, else the default."""
        if asked_s is not None:
            return positive(f"the deadline of {command}", asked_s)
        return float(self.deadlines_s.get(command, DEADLINES_S[command]))

    def least_grade(self, claim: str) -> Grade:
        """The least grade at which this claim may be entered."""
        return self.accept.get(claim, ACCEPT[claim])

    def takes(self, claim: str, verdict: Verdict) -> bool:
        """Whether the state that rests on this claim may be entered on this verdict."""
        return takes(claim, verdict, self.least_grade(claim))


def takes(claim: str, verdict: Verdict, least: Grade) -> bool:
    """Whether the state that rests on this claim may be entered on this verdict: it holds at `least`, or is waived."""
    return holds(verdict, least) or (isinstance(verdict, Refuted) and waives(claim, least))


def waives(claim: str, least: Grade) -> bool:
    """Whether the state that rests on this claim may be entered though it was refuted."""
    return least is Grade.ASSERTED and claim in WAIVABLE


#: What each field may be; a table is asked about entry by entry.
_RULES: Mapping[str, Rule] = {
    "residual_threshold_gib": _POSITIVE,
    "returned_fraction": _FRACTION,
    "visible_bytes": _WHOLE,
    "visible_fraction": _FRACTION,
    "pause_mode": _one_of(PauseMode),
    "deadlines_s": _POSITIVE,
    "accept": _GRADE,
    "unprovable": _one_of(Unprovable),
    "unleased": _one_of(Unleased),
    "unrecorded": _one_of(Unrecorded),
    "on_failure": _one_of(OnFailure),
    "settle_s": _POSITIVE,
    "poll_s": _POSITIVE,
    "residual_scope": _one_of(ResidualScope),
    "residual_stable_s": _NOT_NEGATIVE,
    "evidence_max_age_s": _NOT_NEGATIVE,
    "room_wait_s": _POSITIVE,
    "canary_tokens": _WHOLE,
}

#: The fields that are tables: what their keys are called, and which there are.
_TABLES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "deadlines_s": ("command", DEADLINES_S),
    "accept": ("claim", ACCEPT),
}


def wrong_values(field: str, value: Any) -> Iterator[WrongValue]:
    """What is wrong with this value of a field of Policy: the one place where that is decided, for settings too."""
    rule = _RULES[field]
    if field not in _TABLES:
        if not rule.allows(value):
            yield WrongValue(field, f"must be {rule.words}", value)
        return
    what, known = _TABLES[field]
    if not isinstance(value, Mapping):
        yield WrongValue(field, f"must map each {what} to {rule.words}", value)
        return
    for name, each in value.items():
        if name not in known:
            rule_of_keys = f"unknown {what} {name!r}: one of {', '.join(known)}"
            yield WrongValue(field, rule_of_keys, each, (name,), unknown=True)
        elif not rule.allows(each):
            yield WrongValue(field, f"must be {rule.words}", each, (name,))
