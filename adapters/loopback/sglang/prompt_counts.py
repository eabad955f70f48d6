"""What the front end counts of prompts for its metrics, which does not tell what finished from what was aborted.

Source: sglang 0.5.23, managers/tokenizer_manager.py (collect_metrics, _handle_abort_req, abort_request), measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..sequence import HEALTH_PREFIX, Output


@dataclass(slots=True)
class PromptCounts:
    """Prompts, as the front end counts them. Of a check of health nothing counts.

    - `first`: those that had a first token.
    - `through`: those that ended in the scheduler's batch: finished, or aborted while they ran.
    - `timed`: those of them that finished, and had some time between their first token and their end.
    - `abort_commands`: what `num_aborted_requests_total` counts: commands, and no requests.
    """

    first: int = 0
    through: int = 0
    timed: int = 0
    abort_commands: int = 0
    _had_first: set[str] = field(default_factory=set)

    def delivered(self, outputs: Iterable[Output]) -> None:
        """These outputs have come from the scheduler."""
        for output in outputs:
            if not output.rid.startswith(HEALTH_PREFIX):
                self._count(output)

    def _count(self, output: Output) -> None:
        finish = output.finish
        aborted = finish is not None and finish["type"] == "abort"
        if aborted and "status_code" not in (finish or {}):  # in the waiting queue
            self._had_first.discard(output.rid)
            return
        timed = output.rid in self._had_first
        if not timed and not aborted:
            self.first += 1
            self._had_first.add(output.rid)
        if finish is not None:
            self.through += 1
            self.timed += timed and not aborted and len(output.ids) > 1
            self._had_first.discard(output.rid)
