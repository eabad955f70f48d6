"""What the front end counts of prompts for its metrics, which does not tell what finished from what was aborted.

Source: sglang 0.5.23, managers/tokenizer_manager.py (collect_metrics, _handle_abort_req, abort_request), measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..sequence import HEALTH_PREFIX, Output


@dataclass(slots=True)
class PromptCounts:
    """Prompts, as the front end counts them, of streams (True) and of others. Of a check of health nothing counts.

    - `first`: those that had a first token.
    - `through`: those that ended in the scheduler's batch: finished, or aborted while they ran.
    - `timed`: those of them that finished, and had some time between their first token and their end.
    - `abort_commands`: what `num_aborted_requests_total` counts: commands, and no requests.
    """

    first: Counter[bool] = field(default_factory=Counter)
    through: Counter[bool] = field(default_factory=Counter)
    timed: Counter[bool] = field(default_factory=Counter)
    abort_commands: int = 0
    #: Whether each prompt that has not ended is a stream's, and those of them that had a first token.
    _streams: dict[str, bool] = field(default_factory=dict)
    _had_first: set[str] = field(default_factory=set)

    def begins(self, rid: str, *, stream: bool) -> None:
        """A prompt has come."""
        self._streams[rid] = stream

    def delivered(self, outputs: Iterable[Output]) -> None:
        """These outputs have come from the scheduler."""
        for output in outputs:
            if not output.rid.startswith(HEALTH_PREFIX):
                self._count(output)

    def _count(self, output: Output) -> None:
        finish, stream = output.finish, self._streams.get(output.rid, False)
        aborted = finish is not None and finish["type"] == "abort"
        waited = aborted and finish is not None and "status_code" not in finish
        timed = not stream or output.rid in self._had_first  # a stream whose first output is its last has no time
        if output.rid not in self._had_first and not aborted:
            self.first[stream] += 1
            self._had_first.add(output.rid)
        if finish is None:
            return
        if not waited:
            self.through[stream] += 1
            self.timed[stream] += timed and not aborted and len(output.ids) > 1
        self._streams.pop(output.rid, None)
        self._had_first.discard(output.rid)
