"""Parity: whether engines answer the same questions, greedily, as they did before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..core.deadline import Deadline
from ..core.observation import Probe
from ..core.states import State
from ..core.verdicts import NotApplicable, Proved
from ..engine.engine import Engine

PROMPTS = ("The capital of France is", "def main():", "Once upon a time", "2 + 2 =")
TOKENS = 8
#: Seconds that all answers of one engine may take. They queue behind requests that it kept over the cycle.
ANSWERS_S = 90.0

Answers = dict[str, tuple[int, ...]]


@dataclass
class Parity:
    """What engines answered before the cycles, recorded while they serve, and how later answers compare."""

    before: dict[str, Answers | str] = field(default_factory=dict)
    #: By engine, the result; `broken` names the engines whose parity is broken or unknown.
    found: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    async def record_baseline(self, engines: Sequence[Engine]) -> None:
        """What each engine answers now is what `compare` expects of it."""
        answers = await asyncio.gather(*(_answers(each) for each in engines))
        self.before = {engine.name: found for engine, found in zip(engines, answers, strict=True)}

    async def compare(self, engines: Sequence[Engine]) -> None:
        """The answers of each engine now have been compared with those recorded before."""
        await asyncio.gather(*(self._compare(each) for each in engines))

    async def _compare(self, engine: Engine) -> None:
        before = self.before[engine.name]
        if before == {}:
            self.found[engine.name] = "not applicable: it cannot answer alone"
            return
        after = before if isinstance(before, str) else await _answers(engine)
        if isinstance(before, str) or isinstance(after, str):
            self._miss(engine.name, f"unknown: {after}")
        elif changed := [prompt for prompt in before if before[prompt] != after.get(prompt)]:
            prompt = changed[0]
            ids = f"{list(before[prompt])} before, {list(after.get(prompt, ()))} now"
            self._miss(engine.name, f"broken on {len(changed)} of {len(before)} prompts; {prompt!r}: {ids}")
        else:
            self.found[engine.name] = f"ok: {len(before)} prompts, {len(set(before.values()))} different outputs"

    def _miss(self, name: str, result: str) -> None:
        self.found[name] = result
        self.broken.append(name)


async def _answers(engine: Engine) -> Answers | str:
    """The token ids by prompt; none where the engine cannot answer alone. A string says why they are unknown."""
    if engine.state is not State.SERVING:
        return f"it was {engine.state}, not serving"
    end, answers = Deadline(ANSWERS_S), Answers()
    for prompt in PROMPTS:
        while prompt not in answers:
            verdict = await engine.adapter.answers(Probe(prompt, TOKENS), deadline_s=end.left_s)
            if isinstance(verdict, NotApplicable):
                return {}
            if isinstance(verdict, Proved) and verdict.figures.get("output_ids"):
                answers[prompt] = tuple(verdict.figures["output_ids"])
            elif not isinstance(verdict, Proved) or not end.left_s:
                return f"{prompt!r} was not answered ({verdict.reason})"
            else:
                await asyncio.sleep(engine.policy.poll_s)
    return answers
