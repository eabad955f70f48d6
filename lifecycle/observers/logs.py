"""One structured log event for every edge, every call and every engine that a move goes on without."""

from __future__ import annotations

from typing import Any

import structlog

from ..core.calls import Call, Reply
from ..core.observer import BaseObserver
from ..core.states import State
from ..core.transition import Transition

#: The keys of a `transition` event, always all of them, in this order. Documented in docs/observers.md.
TRANSITION_KEYS = (
    "engine",
    "group",
    "trigger",
    "command",
    "source",
    "dest",
    "duration_s",
    "reason",
    "verdicts",
    "requests",
)
#: The keys of a `call` event.
CALL_KEYS = ("engine", "call", "outcome", "status", "duration_s", "detail")

_BAD = (State.FAILED, State.GONE)


class EventLog(BaseObserver):
    """Writes to structlog: `transition` (info; warning where the engine failed or is gone), `call` (debug;
    warning where it was not acknowledged) and `quarantined` (warning). Times in seconds; a verdict is its words.
    """

    def __init__(self, logger: Any = None) -> None:
        self._log = structlog.get_logger("lifecycle") if logger is None else logger

    def transition(self, record: Transition) -> None:
        """One event says which engine went where, and why."""
        event = {key: getattr(record, key) for key in TRANSITION_KEYS}
        event |= {"source": str(record.source), "dest": str(record.dest), "duration_s": round(record.duration_s, 4)}
        event["verdicts"] = {name: str(verdict) for name, verdict in record.verdicts.items()}
        event["requests"] = None if record.requests is None else str(record.requests)
        write = self._log.warning if record.dest in _BAD else self._log.info
        write("transition", **event)

    def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
        """One event says what was sent and what came of it."""
        write = self._log.debug if reply.outcome == "done" else self._log.warning
        write(
            "call",
            engine=engine,
            call=call.name,
            outcome=reply.outcome,
            status=reply.status,
            duration_s=round(duration_s, 4),
            detail=reply.detail,
        )

    def quarantined(self, engine: str, error: Exception, reason: str) -> None:
        """One event says which engine a move goes on without, and why that is safe."""
        self._log.warning("quarantined", engine=engine, error=type(error).__name__, reason=reason)
