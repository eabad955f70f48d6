"""A journal as a trace in the Chrome trace-event format, which Perfetto and chrome://tracing open.

One process of the trace is one engine, named by its address; the moves are process 0. A driver is a thread of it.
Commands and calls are complete events (`X`), states are complete events of a track of their own, edges into `failed`
and `gone` and hand-overs are instants (`i`). What has not ended goes on to the last entry. Times are microseconds since
1970.
Source: "Trace Event Format", the Chromium project's document, JSON object form.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..core.journal import (
    NEVER_S,
    CallEnded,
    CallSent,
    CommandBegan,
    CommandEnded,
    Entry,
    HandedOver,
    MovePhase,
    Quarantined,
    Refused,
    StateEntered,
)
from ..core.states import State

_MOVES = 0


class _Tracks:
    """The numbers of processes and threads of the trace, with the events that name them."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._pids: dict[str, int] = {}
        self._tids: dict[tuple[int, str], int] = {}

    def of(self, entry: Entry, track: str) -> dict[str, int]:
        """`pid` and `tid` of this track of the engine of an entry."""
        pid = self._pids.get(entry.key)
        if pid is None:
            pid = self._pids[entry.key] = _MOVES if not entry.key else len(self._pids) + 1
            name = f"{entry.engine} ({entry.key})" if entry.key else "moves"
            self.events.append(_meta("process_name", pid, 0, name))
        tid = self._tids.get((pid, track))
        if tid is None:
            tid = self._tids[pid, track] = len(self._tids) + 1
            self.events.append(_meta("thread_name", pid, tid, track))
        return {"pid": pid, "tid": tid}


def trace(entries: Iterable[Entry]) -> dict[str, Any]:
    """The entries as one trace: an object that `json.dumps` takes."""
    tracks, events = _Tracks(), list[dict[str, Any]]()
    states: dict[str, tuple[float, Entry]] = {}
    begun: dict[tuple[str, str, bool], Entry] = {}
    last_s = 0.0
    for entry in entries:
        events += _events(entry, tracks)
        last_s = max(last_s, entry.at_s)
        if isinstance(entry.event, StateEntered):
            before = states.get(entry.key)
            if before is not None:
                events.append(_state(*before, entry.at_s, tracks))
            states[entry.key] = (entry.at_s, entry)
        of_call = isinstance(entry.event, CallSent | CallEnded)
        if isinstance(entry.event, CommandBegan | CallSent):
            begun[entry.key, entry.driver, of_call] = entry
        elif isinstance(entry.event, Refused) and entry.event.error == "EngineBusy":
            pass  # of a second caller: the command under way goes on
        elif isinstance(entry.event, CommandEnded | Refused | CallEnded):
            begun.pop((entry.key, entry.driver, of_call), None)
    events += [_unended(entry, last_s, tracks) for entry in begun.values()]
    events += [_state(since_s, entry, last_s, tracks) for since_s, entry in states.values()]
    events.sort(key=lambda event: event["ts"])
    return {"displayTimeUnit": "ms", "traceEvents": [*tracks.events, *events]}


def _events(entry: Entry, tracks: _Tracks) -> list[dict[str, Any]]:
    event, driver = entry.event, f"driver {entry.driver[:8]}"
    about: dict[str, Any]
    match event:
        case CommandEnded():
            about = {"state": str(event.state), "error": event.error, "reason": event.reason}
            return [_complete(event.command, "command", entry, event.duration_s, about, tracks.of(entry, driver))]
        case CallEnded():
            about = {"outcome": event.outcome, "status": event.status, "detail": event.detail}
            return [_complete(event.call, "call", entry, event.duration_s, about, tracks.of(entry, f"{driver}, calls"))]
        case Refused():
            about = {"error": event.error, "reason": event.reason}
            return [_instant(f"{event.command} refused", "command", entry, about, tracks.of(entry, driver))]
        case StateEntered(dest=State.FAILED | State.GONE):
            about = {"trigger": event.trigger, "reason": event.reason}
            return [_instant(str(event.dest), "state", entry, about, tracks.of(entry, driver))]
        case MovePhase(duration_s=float()):
            about = {"move": event.move_id, "failed": list(event.failed)}
            name = event.phase or event.move
            return [_complete(name, "move", entry, event.duration_s or 0.0, about, tracks.of(entry, event.move))]
        case Quarantined():
            about = {"move": event.move_id, "reason": event.reason}
            return [_instant(f"{event.name} in quarantine", "move", entry, about, tracks.of(entry, event.move))]
        case HandedOver():
            about = {"move": event.move_id, "returned": {key: str(each) for key, each in event.returned.items()}}
            return [_instant("devices handed over", "move", entry, about, tracks.of(entry, "offload"))]
    return []


def _unended(entry: Entry, last_s: float, tracks: _Tracks) -> dict[str, Any]:
    """A command or a call of which the journal does not say how it ended: its driver may have ended before."""
    event, driver = entry.event, f"driver {entry.driver[:8]}"
    assert isinstance(event, CommandBegan | CallSent)
    is_call = isinstance(event, CallSent)
    name, category = (event.call, "call") if isinstance(event, CallSent) else (event.command, "command")
    at = tracks.of(entry, f"{driver}, calls" if is_call else driver)
    return _span(name, category, entry.at_s, last_s, {"outcome": "not known"}, at)


def _state(since_s: float, entry: Entry, until_s: float, tracks: _Tracks) -> dict[str, Any]:
    event = entry.event
    assert isinstance(event, StateEntered)
    about = {"trigger": event.trigger, "proofs": {name: str(verdict) for name, verdict in event.verdicts.items()}}
    at = tracks.of(entry, "state")
    return _span(str(event.dest), "state", since_s, until_s, about, at)


def _complete(
    name: str, category: str, entry: Entry, duration_s: float, about: dict[str, Any], at: dict[str, int]
) -> dict[str, Any]:
    """An event that ended when its entry was made."""
    return _span(name, category, entry.at_s - duration_s, entry.at_s, about, at)


def _span(
    name: str, category: str, since_s: float, until_s: float, about: dict[str, Any], at: dict[str, int]
) -> dict[str, Any]:
    """It ends where the next one begins, and not a microsecond later: one that overlaps is drawn inside the other."""
    begin, end = _us(since_s), _us(until_s)
    return {"name": name, "cat": category, "ph": "X", "ts": begin, "dur": max(0, end - begin), "args": about, **at}


def _instant(name: str, category: str, entry: Entry, about: dict[str, Any], at: dict[str, int]) -> dict[str, Any]:
    return {"name": name, "cat": category, "ph": "i", "s": "p", "ts": _us(entry.at_s), "args": about, **at}


def _meta(name: str, pid: int, tid: int, value: str) -> dict[str, Any]:
    return {"name": name, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": {"name": value}}


def _us(seconds: float) -> int:
    return round(min(max(0.0, seconds), NEVER_S) * 1e6)
