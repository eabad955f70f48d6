"""One edge for an engine to go along, and the transition that observers are told of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.frozen import EMPTY
from ..core.replies import CallReply
from ..core.requests import RequestFates
from ..core.states import State
from ..core.transition import Transition
from ..core.verdicts import Verdict
from ..rules.evidence import Context


@dataclass(slots=True)
class Edge:
    """One edge to go along: its trigger, and what observers are told of it. `context` is for the guards."""

    trigger: str
    command: str = ""
    verdicts: Mapping[str, Verdict] = EMPTY
    duration_s: float = 0.0
    reason: str = ""
    context: Context | None = None
    requests: RequestFates | None = None
    replies: tuple[CallReply, ...] = ()

    @property
    def on_evidence(self) -> bool:
        """Whether it leads into a state whose claims were proved or observed just now."""
        return self.trigger == "succeeded" or self.trigger.startswith("observed_")

    def transition(
        self, engine: str, group: str, source: State, dest: State, requests: RequestFates | None
    ) -> Transition:
        """The transition of this engine from `source` to `dest`; `requests` is what became of its requests."""
        return Transition(
            engine=engine,
            group=group,
            trigger=self.trigger,
            source=source,
            dest=dest,
            command=self.command,
            verdicts=self.verdicts,
            duration_s=self.duration_s,
            reason=self.reason,
            requests=requests,
            replies=self.replies,
        )
