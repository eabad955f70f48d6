"""Misbehaviour on demand. Apart from the one hook here, nothing in the engine knows of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

CALLS = (
    "pause",
    "continue",
    "flush",
    "release",
    "resume",
    "update",
    "abort",
    "generate",
    "loads",
    "health",
    "ready",
    "server_info",
    "model_info",
    "weights_checker",
)
_ALIASES = {"restore": "resume"}
# Each kind of fault, and whether it takes an amount; None: it may.
_ANY_CALL = {
    "hang": False,  # never answered, and nothing happens
    "die": False,  # the engine dies of it, unanswered
    "die_after": False,  # answered, and dies
    "slow": True,  # answered so many seconds late
    "lost": False,  # it happens, and the connection breaks
    "error": True,  # this status, and nothing happens
    "error_after": None,  # it happens, and is answered with this status
    "binary": False,  # an error whose body is no text
    "huge": True,  # an error whose body has so many MiB
    "redirect": False,  # to where nothing is
}
_OWN = {
    "pause": {"mode": False},  # whatever the mode, the gate is closed and those inside run on
    "release": {
        "keep": False,  # nothing is given back
        "leak": True,  # so many MiB are not given back
        "late": True,  # given back so many seconds after the answer
        "stuck": True,  # the rank of this number gives nothing back
        "all": False,  # whatever the tags, all are given back
    },
    "resume": {
        "zeros": False,  # mapped again, and the backup not read
        "grow": True,  # so many MiB more are held from then on, each time
    },
    "update": {"label": False, "unnamed": False},  # only the label changes; all but the label changes
    "loads": {"frozen": False},  # the counts stay at 0
    "server_info": {"saver": False},  # claims a memory saver
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which one call misbehaves."""

    kind: str
    amount: float | None = None  # seconds, MiB, a rank or an HTTP status, as the kind says


def parse_fault(text: str) -> tuple[str, Fault]:
    """The call and its fault from `CALL=KIND[:AMOUNT]`; raises ValueError naming what exists."""
    name, _, value = text.partition("=")
    call = _ALIASES.get(name, name)
    if call not in CALLS:
        raise ValueError(f"no call {name!r} to fault; there are {', '.join(CALLS)}")
    return call, _parse_kind(call, value)


def _parse_kind(call: str, value: str) -> Fault:
    kind, colon, amount = value.partition(":")
    kinds: Mapping[str, bool | None] = {**_ANY_CALL, **_OWN.get(call, {})}
    if kind not in kinds:
        raise ValueError(f"{call} has no fault {kind!r}; it has {', '.join(sorted(kinds))}")
    if kinds[kind] is not None and kinds[kind] != bool(colon):
        raise ValueError(f"fault {call}={kind} {'needs' if kinds[kind] else 'takes no'} amount")
    return Fault(kind, _amount(value, amount) if colon else None)


def _amount(value: str, text: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = -1.0
    if not 0 <= amount < 1e6:
        raise ValueError(f"{value!r} does not end in a number")
    return amount


class FaultHook:
    """The faults in force; read by the HTTP thread and the scheduler thread, replaced while running."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        self._lock = threading.Lock()
        self._faults = dict(map(parse_fault, texts))

    def of(self, call: str) -> Fault | None:
        """The fault of this call, if any."""
        with self._lock:
            return self._faults.get(call)

    def has(self, call: str, kind: str) -> Fault | None:
        """The fault of this call if it is of this kind."""
        fault = self.of(call)
        return fault if fault is not None and fault.kind == kind else None

    def set(self, wanted: Mapping[str, str | None]) -> None:
        """Each named call has the fault given, or none; all or nothing."""
        parsed = [
            (_ALIASES.get(name, name), parse_fault(f"{name}={value}")[1] if value else None)
            for name, value in wanted.items()
        ]
        with self._lock:
            for call, fault in parsed:
                self._faults.pop(call, None)
                if fault is not None:
                    self._faults[call] = fault

    def kept_bytes(self, resident: int) -> int:
        """How many of a release's bytes stay resident."""
        if self.has("release", "keep"):
            return resident
        return min(resident, int(self._amount("release", "leak") * (1 << 20)))

    def release_delay_s(self) -> float:
        """How long after its answer a release happens."""
        return self._amount("release", "late")

    def grown_bytes(self) -> int:
        """How many bytes more are held after a resume than before the release."""
        return int(self._amount("resume", "grow") * (1 << 20))

    def stuck_rank(self) -> int | None:
        """The rank that a release passes by."""
        stuck = self.has("release", "stuck")
        return int(stuck.amount or 0) if stuck else None

    def _amount(self, call: str, kind: str) -> float:
        fault = self.has(call, kind)
        return (fault.amount or 0.0) if fault else 0.0
