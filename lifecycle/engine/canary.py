"""The canary: a question whose greedy answer is remembered for each version of the weights.

A label proves little: an engine that says `v7` and answers as it never did with v7 holds something else.
"""

from __future__ import annotations

from ..core.facts import Facts
from ..core.frozen import replace
from ..core.observation import Probe
from ..core.record import Record
from ..core.verdicts import Proved, Refuted, Verdict
from .session import Session

#: How long a serving engine is given for the answer that is remembered; it may be busy.
BASELINE_S = 10.0


async def ask(session: Session, *, deadline_s: float) -> Verdict:
    """Whether the engine generates real tokens, and, where the policy watches them, the same as before.

    The first answer with a version of the weights is remembered.
    """
    tokens = session.policy.canary_tokens
    verdict = await session.adapter.answers(Probe(tokens=tokens) if tokens else Probe(), deadline_s=deadline_s)
    if not tokens:
        return verdict
    record, verdict = compared(session.record, verdict)
    session.commit(record)
    return verdict


async def record_baseline(session: Session, *, deadline_s: float) -> None:
    """What a serving engine answers with these weights is remembered, unless it is already.

    Asked before the first release, since what comes back from that one is to be compared too. No answer is none.
    """
    known = session.record.calibration.canary_answers
    if session.policy.canary_tokens and _version(session.facts) not in known:
        await ask(session, deadline_s=min(deadline_s, BASELINE_S))


def forgotten(record: Record, version: str) -> Record:
    """The record without the answer of this version: the next one is the one to remember."""
    answers = {each: tokens for each, tokens in record.calibration.canary_answers.items() if each != version}
    return replace(record, calibration=replace(record.calibration, canary_answers=answers))


def compared(record: Record, verdict: Verdict) -> tuple[Record, Verdict]:
    """The verdict, refuted where the answer is not the one that was remembered for this version; and the record, which
    remembers a first answer.
    """
    version = _version(record.facts)
    tokens = verdict.figures.get("output_ids") if isinstance(verdict, Proved) else None
    if version is None or not tokens:
        return record, verdict
    answers = record.calibration.canary_answers
    before = answers.get(version)
    if before is None:
        learned = replace(record.calibration, canary_answers={**answers, version: tuple(tokens)})
        return replace(record, calibration=learned), verdict
    if before == tuple(tokens):
        return record, verdict
    return record, Refuted(
        reason=(
            f"its weights are called {version} and it answers otherwise than it did with {version} before "
            f"({list(tokens)}, not {list(before)}): load them again, or forget_canary({version!r}) if the label was "
            "reused"
        ),
        figures=verdict.figures,
    )


def _version(facts: Facts) -> str | None:
    """The version of the weights, all tags together; None where it is not one that is known."""
    held = {contents.version or f"launched on {facts.boot}" for contents in facts.contents.values() if contents}
    return held.pop() if len(held) == 1 else None
