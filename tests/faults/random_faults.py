"""Faults that are drawn from a seed, one for each cycle: what happens, to which engine, and when."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ENGINES = ("a", "b", "c")
COMMANDS = ("pause", "drain", "release", "restore_weights", "update_weights", "restore_kv", "resume")

#: How often each kind is drawn in twenty cycles.
KINDS = {"switch": 7, "kill": 4, "stop": 3, "cancel": 3, "outsider": 2, "none": 1}

#: What an engine makes of a call (`lifecycle.adapters.loopback.faults`). `lost`: it has its effect, and the connection
#: is dropped; `hang`: it has none, and no answer comes; `error_after`: it has its effect, and the answer is a 500.
SWITCHES = (
    *(f"{call}={how}" for call in ("pause", "continue") for how in ("lost", "hang", "error:503", "error_after")),
    *(f"flush={how}" for how in ("lost", "hang", "error:500", "slow:0.3")),
    *(f"release={how}" for how in ("lost", "hang", "error:500", "error_after", "keep", "late:0.3", "die", "die_after")),
    *(f"resume={how}" for how in ("lost", "hang", "error:500", "error_after", "slow:0.3", "die", "die_after")),
    *(f"update={how}" for how in ("lost", "hang", "error:500", "error_after", "die")),
    *(f"server_info={how}" for how in ("lost", "error:500")),
)

#: When a killed engine is started again, and when a stopped one goes on.
AT_ONCE, LATER = "at once", "later"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to `engine` when the driver begins `command` on engine `when`; a switch is set before the cycle.

    `how` is the switch; the call of the outsider; or when an engine that was killed or stopped comes back.
    """

    kind: str
    engine: str
    when: str
    command: str
    how: str = ""

    def __str__(self) -> str:
        at = "" if self.kind == "switch" else f" at {self.command} of {self.when}"
        return f"{self.kind} {self.engine}{f' ({self.how})' if self.how else ''}{at}"


def drawn(seed: int, cycles: int) -> Iterator[Fault]:
    """The faults of this many cycles."""
    chance = random.Random(seed)
    kinds: list[str] = []
    for _ in range(cycles):
        if not kinds:
            kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
            chance.shuffle(kinds)
        kind = kinds.pop()
        yield Fault(kind, *(chance.choice(each) for each in (ENGINES, ENGINES, COMMANDS)), chance.choice(_how(kind)))


def _how(kind: str) -> Sequence[str]:
    match kind:
        case "switch":
            return SWITCHES
        case "kill" | "stop":
            return AT_ONCE, LATER
        case "outsider":
            return "pause", "continue", "pause and continue"
    return ("",)
