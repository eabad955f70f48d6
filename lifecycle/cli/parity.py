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
#: Seconds that all answers of one engine may take: behind requests that it kept they queue.
ANSWERS_S = 90.0

Answers = dict[str, tuple[int, ...]]


@dataclass
class Parity:
    """What engines answered before. Ask with `meet` while they serve, and again with `compare`."""

    before: dict[str, Answers | str] = field(default_factory=dict)
    #: By engine, what came of it; `broken` are those of which it is not shown.
    found: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    async def meet(self, engines: Sequence[Engine]) -> None:
        """What each answers now is what it is to answer again."""
        answers = await asyncio.gather(*(_answers(each) for each in engines))
        self.before = {each.name: told for each, told in zip(engines, answers, strict=True)}

    async def compare(self, engines: Sequence[Engine]) -> None:
        """Finds what each answers now beside what it answered before."""
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
            told = f"{list(before[prompt])} before, {list(after.get(prompt, ()))} now"
            self._miss(engine.name, f"broken on {len(changed)} of {len(before)} prompts; {prompt!r}: {told}")
        else:
            self.found[engine.name] = f"ok: {len(before)} prompts, {len(set(before.values()))} different outputs"

    def _miss(self, name: str, told: str) -> None:
        self.found[name] = told
        self.broken.append(name)


async def _answers(engine: Engine) -> Answers | str:
    """The ids by prompt, none where the engine cannot answer alone; or why there are none."""
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
