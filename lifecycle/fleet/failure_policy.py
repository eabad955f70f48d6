"""What happens when some engines of a move fail: a table, by policy and by the phase that failed.

`move.py` asks it whether the others are brought back and whether those that failed are released again. The other cells
(the router, the step between, the resume) say what the order of a move does by itself. The documentation renders the
table, and every cell has a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from ..core.policy import OnFailure


class Phase(StrEnum):
    """The phases of the two moves, in their order. `between` is the caller's step between weights and KV.

    `restore` stands for the three from `restore_weights` to `restore_kv` where each engine goes at its own pace.
    """

    CLOSE_ROUTER = "close_router"
    PAUSE = "pause"
    DRAIN = "drain"
    RELEASE = "release"
    RESTORE_WEIGHTS = "restore_weights"
    UPDATE_WEIGHTS = "update_weights"
    BETWEEN = "between"
    RESTORE_KV = "restore_kv"
    RESTORE = "restore"
    RESUME = "resume"


class Others(StrEnum):
    """What becomes of the engines that did not fail."""

    REOPEN = "the router sends to them again"
    ONLOAD = (
        "brought back to serving, with the weights of before the move; one whose weights come by a push alone, or from "
        "no source that is known, stays released, and the error says so"
    )
    GO_ON = "go on to serving"
    MOVE_ON = "go on with the move, without it"
    STAY = "stay where they are, and the error says so; `onload()` goes on from there"


class Failed(StrEnum):
    """What becomes of an engine that failed."""

    ROUTED_REFUTED = "its condition `routed` is refuted unless the router opens again"
    ONLOAD = (
        "brought back like the others, unless it was found released (its memory is in question), failed or gone: then "
        "it stays there"
    )
    RELEASE_AGAIN = "released again where it can be; else it keeps its devices, and its state says so"
    STAY_CLOSED = "closed again, and the router stays closed"
    QUARANTINE = (
        "in quarantine: the router is closed for it, and moves leave it out until it is recovered; where it lives and "
        "may hold memory of a device of the others, or its router cannot be closed, all is as under `restore`"
    )
    STAY = "stays where it was found"
    NOBODY = "no engine failed: the caller's step did"


@dataclass(frozen=True, slots=True)
class Consequence:
    """One row of the table."""

    others: Others
    failed: Failed


MoveName = Literal["offload", "onload"]
Step = tuple[MoveName, Phase]

_RESTORE: Mapping[Step, Consequence] = {
    ("offload", Phase.CLOSE_ROUTER): Consequence(Others.REOPEN, Failed.ROUTED_REFUTED),
    ("offload", Phase.PAUSE): Consequence(Others.ONLOAD, Failed.ONLOAD),
    ("offload", Phase.DRAIN): Consequence(Others.ONLOAD, Failed.ONLOAD),
    ("offload", Phase.RELEASE): Consequence(Others.ONLOAD, Failed.ONLOAD),
    ("onload", Phase.PAUSE): Consequence(Others.GO_ON, Failed.RELEASE_AGAIN),
    ("onload", Phase.DRAIN): Consequence(Others.GO_ON, Failed.RELEASE_AGAIN),
    ("onload", Phase.RESTORE_WEIGHTS): Consequence(Others.GO_ON, Failed.RELEASE_AGAIN),
    ("onload", Phase.UPDATE_WEIGHTS): Consequence(Others.GO_ON, Failed.RELEASE_AGAIN),
    ("onload", Phase.BETWEEN): Consequence(Others.STAY, Failed.NOBODY),
    ("onload", Phase.RESTORE_KV): Consequence(Others.GO_ON, Failed.RELEASE_AGAIN),
    ("onload", Phase.RESTORE): Consequence(Others.GO_ON, Failed.RELEASE_AGAIN),
    ("onload", Phase.RESUME): Consequence(Others.GO_ON, Failed.STAY_CLOSED),
}

_HELD = {
    (Others.ONLOAD, Failed.ONLOAD): Consequence(Others.STAY, Failed.STAY),
    (Others.GO_ON, Failed.RELEASE_AGAIN): Consequence(Others.GO_ON, Failed.STAY),
}
_HOLD = {step: _HELD.get((row.others, row.failed), row) for step, row in _RESTORE.items()}

_QUARANTINED = {
    (Others.ONLOAD, Failed.ONLOAD): Consequence(Others.MOVE_ON, Failed.QUARANTINE),
    (Others.GO_ON, Failed.RELEASE_AGAIN): Consequence(Others.GO_ON, Failed.QUARANTINE),
    (Others.GO_ON, Failed.STAY_CLOSED): Consequence(Others.GO_ON, Failed.QUARANTINE),
}
_QUARANTINE = {step: _QUARANTINED.get((row.others, row.failed), row) for step, row in _RESTORE.items()}

#: By `Policy.on_failure`, then by the move and the phase of it that failed.
FAILURE_POLICY: Mapping[OnFailure, Mapping[Step, Consequence]] = {
    "restore": _RESTORE,
    "quarantine": _QUARANTINE,
    "hold": _HOLD,
}


def all_rows() -> list[tuple[str, str, str, str, str]]:
    """The tables of all policies in words, as `rows`, each row with the policies that have it in front."""
    found: list[tuple[str, str, str, str, str]] = []
    for move, phase in _RESTORE:
        policies: dict[Consequence, list[str]] = {}
        for name, table in FAILURE_POLICY.items():
            policies.setdefault(table[move, phase], []).append(name)
        found += [(", ".join(names), move, phase, row.others, row.failed) for row, names in policies.items()]
    return found


def rows(on_failure: OnFailure) -> list[tuple[str, str, str, str]]:
    """The table of one policy in words: move, phase that failed, what becomes of the others and of the failed one."""
    return [
        (move, str(phase), str(row.others), str(row.failed))
        for (move, phase), row in FAILURE_POLICY[on_failure].items()
    ]
