"""The canary: a question whose greedy answer is remembered for each version of the weights.

A label proves little: an engine that says `v7` and answers as it never did with v7 holds something else.
"""

from __future__ import annotations

from ..core.facts import Facts
from ..core.observation import Probe
from ..core.ports import EngineAdapter
from ..core.verdicts import Proved, Refuted, Verdict

#: How long a serving engine is given for the answer that is remembered; it may be busy.
MEETING_S = 10.0


class Canary:
    """Asks for `tokens` tokens, and remembers them by version; 0 only asks whether the engine answers."""

    def __init__(self, tokens: int = 0) -> None:
        self.probe = Probe(tokens=tokens) if tokens else Probe()
        self.watching = tokens > 0
        #: The tokens that were remembered, by version of the weights.
        self.answers: dict[str, tuple[int, ...]] = {}

    async def ask(self, adapter: EngineAdapter, facts: Facts, *, deadline_s: float) -> Verdict:
        """Whether the engine answers, and as it did before with these weights."""
        verdict = await adapter.answers(self.probe, deadline_s=deadline_s)
        return self.judge(_version(facts), verdict) if self.watching else verdict

    async def meet(self, adapter: EngineAdapter, facts: Facts, *, deadline_s: float) -> None:
        """What a serving engine answers with these weights is remembered, unless it is already.

        Asked before the first release, since what comes back from that one is to be compared too. No answer is none.
        """
        if self.watching and _version(facts) not in self.answers:
            await self.ask(adapter, facts, deadline_s=min(deadline_s, MEETING_S))

    def judge(self, version: str | None, verdict: Verdict) -> Verdict:
        """The verdict, refuted where the answer is not the one that was remembered for this version."""
        tokens = verdict.figures.get("output_ids") if isinstance(verdict, Proved) else None
        if version is None or not tokens:
            return verdict
        before = self.answers.setdefault(version, tuple(tokens))
        if before == tuple(tokens):
            return verdict
        return Refuted(
            reason=(
                f"its weights are called {version} and it answers otherwise than it did with {version} before "
                f"({list(tokens)}, not {list(before)}): load them again, or forget({version!r}) if the label was reused"
            ),
            figures=verdict.figures,
        )

    def forget(self, version: str) -> None:
        """The next answer with this version is the one to remember."""
        self.answers.pop(version, None)


def _version(facts: Facts) -> str | None:
    """The version of the weights, all tags together; None where it is not one that is known."""
    held = {contents.version or f"launched on {facts.boot}" for contents in facts.contents.values() if contents}
    return held.pop() if len(held) == 1 else None
