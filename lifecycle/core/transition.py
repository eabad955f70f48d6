"""One edge that an engine has gone along."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from .frozen import EMPTY, freeze_fields
from .replies import CallReply
from .requests import RequestFates
from .states import State
from .verdicts import Proved, Verdict


@dataclass(frozen=True, slots=True)
class Transition:
    """One edge that an engine has gone along. `duration_s` counts from the beginning of the command.

    `requests` is what became of its requests since it was paused: once it is drained, and once it serves again or its
    process has ended. Of other edges it is None. `replies` is what the engine answered to the calls of the command, in
    their order; empty where none was sent, and on other edges. No journal has them.
    """

    engine: str
    group: str
    trigger: str
    source: State
    dest: State
    command: str = ""
    verdicts: Mapping[str, Verdict] = EMPTY
    duration_s: float = 0.0
    reason: str = ""
    requests: RequestFates | None = None
    replies: tuple[CallReply, ...] = ()
    at_s: float = field(default_factory=time.monotonic, compare=False)

    def __post_init__(self) -> None:
        freeze_fields(self, "verdicts")

    @property
    def returned_bytes(self) -> int | None:
        """Bytes that a release was seen to give back, the least over the devices; None where it was not measured."""
        verdict = self.verdicts.get("memory_returned")
        return int(verdict.figures["returned_bytes"]) if isinstance(verdict, Proved) else None

    @property
    def returned_by_tag(self) -> Mapping[str, int]:
        """Bytes that each call of a release was seen to give back, by its tags; empty where that was not measured."""
        verdict = self.verdicts.get("memory_returned")
        return dict(verdict.figures.get("returned_by_tag", {})) if isinstance(verdict, Proved) else {}

    @property
    def expected_bytes(self) -> int | None:
        """Bytes that the released tags held beforehand."""
        verdict = self.verdicts.get("memory_returned")
        found = verdict.figures.get("expected_bytes") if verdict else None
        return None if found is None else int(found)
