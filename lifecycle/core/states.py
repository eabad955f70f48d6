"""The states an engine can be in: stable ones are claims, transient ones are commands under way."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """One claim (stable) or one command under way (transient). What each claims: `table.CLAIMS`."""

    DETACHED = "detached"
    SERVING = "serving"
    PAUSED = "paused"
    DRAINED = "drained"
    RELEASED = "released"
    WEIGHTS_RESTORED = "weights_restored"
    KV_RESTORED = "kv_restored"
    GONE = "gone"
    FAILED = "failed"

    PAUSING = "pausing"
    REPAUSING = "repausing"
    DRAINING = "draining"
    RELEASING = "releasing"
    RESTORING_WEIGHTS = "restoring_weights"
    UPDATING_WEIGHTS = "updating_weights"
    UPDATING_IN_PLACE = "updating_in_place"
    UPDATING_LIVE = "updating_live"
    RESTORING_KV = "restoring_kv"
    RESUMING = "resuming"

    @property
    def stable(self) -> bool:
        """True where nothing is under way."""
        return self in STABLE


#: The ring, in order; the last leads back to the first.
RING = (
    State.SERVING,
    State.PAUSED,
    State.DRAINED,
    State.RELEASED,
    State.WEIGHTS_RESTORED,
    State.KV_RESTORED,
)

STABLE = frozenset({*RING, State.DETACHED, State.GONE, State.FAILED})
TRANSIENT = frozenset(State) - STABLE

#: An update of the weights is under way.
UPDATING = frozenset({State.UPDATING_WEIGHTS, State.UPDATING_IN_PLACE, State.UPDATING_LIVE})

#: States that claim that no request runs.
IDLE = frozenset({State.DRAINED, State.RELEASED, State.WEIGHTS_RESTORED, State.KV_RESTORED})

#: States in which nothing is known that a contradiction could deny.
UNCLAIMED = frozenset({State.DETACHED, State.GONE, State.FAILED})
