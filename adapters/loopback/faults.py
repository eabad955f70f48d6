"""Faults that can be injected into calls. The engine reads them from one `FaultHook`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from lifecycle.core.units import MIB

CALLS = (
    "pause",
    "continue",
    "flush",
    "release",
    "resume",
    "update",
    "begin",
    "end",
    "abort",
    "generate",
    "loads",
    "health",
    "ready",
    "server_info",
    "model_info",
    "weights_checker",
)
_ALIASES = {"restore": "resume", "sleep": "release", "wake_up": "resume"}  # the last two are vLLM's words
# Each kind of fault, and whether it takes an amount (AMOUNT below); None: it may take one.
_ANY_CALL = {
    "hang": False,  # the call has no effect and is never answered
    "die": False,  # the engine is killed and the call is not answered
    "die_after": False,  # the call is answered, then the engine is killed
    "slow": True,  # the call has its effect and is answered AMOUNT seconds late, or once the fault is replaced
    "lost": False,  # the call has its effect and the connection is dropped
    "error": True,  # the call has no effect and is answered with the status AMOUNT
    "error_after": None,  # the call has its effect and is answered with the status AMOUNT, or 500
    "binary": False,  # the call has no effect and the error's body is not text
    "huge": True,  # the call has no effect and the error's body has AMOUNT MiB
    "end_rank": True,  # the process of rank AMOUNT is killed, and then the call is made
    "redirect": False,  # the call has no effect and is redirected to a port on which nothing listens
}
_OF_ONE_CALL = {
    "pause": {
        "mode": False,  # in every mode only admission is closed, and running requests go on
        "stuck": True,  # the engine core AMOUNT of a data-parallel vLLM is not told
    },
    "release": {
        "keep": False,  # no memory is released
        "leak": True,  # AMOUNT MiB are not released
        "late": True,  # memory is released AMOUNT seconds after the answer
        "stuck": True,  # rank AMOUNT releases nothing
        "all": False,  # the memory of all tags is released, also of those that are not named
    },
    "resume": {
        "zeros": False,  # the backup is not read back
        "grow": True,  # each resume allocates AMOUNT MiB more
    },
    "update": {"label": False, "unnamed": False},  # only the label changes; only the weights change
    "loads": {"frozen": False},  # the counts stay at 0
    "server_info": {
        "saver": False,  # a memory saver is reported without there being one
        "weight": True,  # AMOUNT MiB of weights are reported
    },
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of one call."""

    kind: str
    amount: float | None = None  # seconds, MiB, a rank or an HTTP status, by kind


def parse_fault(text: str) -> tuple[str, Fault]:
    """The call and its fault, from `CALL=KIND[:AMOUNT]`. Raises ValueError, which lists the valid calls or kinds."""
    name, _, value = text.partition("=")
    call = _ALIASES.get(name, name)
    if call not in CALLS:
        raise ValueError(f"no call {name!r} to fault; there are {', '.join(CALLS)}")
    return call, _parse_kind(call, value)


def _parse_kind(call: str, value: str) -> Fault:
    kind, colon, amount = value.partition(":")
    kinds: Mapping[str, bool | None] = {**_ANY_CALL, **_OF_ONE_CALL.get(call, {})}
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
    """The faults in force. The HTTP thread and the scheduler thread read them; they can be replaced at any time."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        self._lock = threading.Lock()
        self._faults = dict(map(parse_fault, texts))

    def of(self, call: str) -> Fault | None:
        """The fault of this call; None without one."""
        with self._lock:
            return self._faults.get(call)

    def has(self, call: str, kind: str) -> Fault | None:
        """The fault of this call if it is of this kind, else None."""
        fault = self.of(call)
        return fault if fault is not None and fault.kind == kind else None

    def set(self, wanted: Mapping[str, str | None]) -> None:
        """Sets the fault of each named call, or removes it. Where one is invalid, none is changed."""
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
        """Of the `resident` bytes of a release, those that stay resident."""
        if self.has("release", "keep"):
            return resident
        return min(resident, int(self._amount("release", "leak") * MIB))

    def release_delay_s(self) -> float:
        """Seconds from the answer of a release to its effect."""
        return self._amount("release", "late")

    def grown_bytes(self) -> int:
        """Bytes that each resume allocates in addition."""
        return int(self._amount("resume", "grow") * MIB)

    def reported_weights_mib(self, weights_mib: float) -> float:
        """The MiB of weights that are reported, where there are `weights_mib`."""
        return self._amount("server_info", "weight") or weights_mib

    def stuck_rank(self) -> int | None:
        """The rank that a release leaves out; None where it leaves out none."""
        stuck = self.has("release", "stuck")
        return int(stuck.amount or 0) if stuck else None

    def _amount(self, call: str, kind: str) -> float:
        fault = self.has(call, kind)
        return (fault.amount or 0.0) if fault else 0.0
