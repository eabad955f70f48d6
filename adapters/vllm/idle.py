"""Whether a vLLM engine is idle: a second pause says so, however the engine is asked."""

from __future__ import annotations

from typing import Protocol

from lifecycle.core.calls import Call, Reply
from lifecycle.core.deadline import Deadline
from lifecycle.core.facts import Admission, Facts, Grade, PauseMode
from lifecycle.core.verdicts import REQUESTS_RUN, Pending, Proved, Verdict

from .plan import idle_mode, pause_args

#: Seconds within which a live engine answers a read. The first `/server_info` took 2.7 s, measured.
READ_S = 10.0


class Paused(Protocol):
    """An engine that can be asked whether it is paused, and asked to pause again."""

    async def admission(self, deadline_s: float) -> tuple[Admission | None, str]:
        """Whether it admits requests, and its answer in words where it does not say that."""

    async def pause_once(self, call: Call, deadline_s: float) -> Reply:
        """The reply to this pause; `late` where it is still waited for at the deadline."""

    def counts_requests_alone(self) -> bool:
        """Whether one that is not answered says thereby that requests run."""


async def paused_again(engine: Paused, facts: Facts, wait_s: float, deadline_s: float) -> Verdict:
    """Whether a second pause is answered within `wait_s`. An open engine is not asked: that would close it."""
    clock = Deadline(deadline_s)
    if facts.paused_by == "freeze":
        return Pending(reason="its requests are frozen with their KV memory; pause it again by another mode")
    admission, said = await engine.admission(min(clock.left_s, READ_S))
    if admission == "open":
        opened = facts.admission == "closed"
        return Pending(reason="it admits requests", figures={REQUESTS_RUN: opened})
    if admission is None or facts.admission != "closed":
        return Pending(reason=f"it does not say that it is paused ({said})")
    reply = await engine.pause_once(second_pause(facts.paused_by), max(0.05, min(wait_s, clock.left_s)))
    if reply.late:
        alone = engine.counts_requests_alone() and (await engine.admission(clock.left_s))[0]
        return Pending(reason="requests still run", figures={REQUESTS_RUN: alone == "closed"})
    if reply.outcome == "lost":
        return Pending(reason=f"/pause got no answer: {reply.detail}")
    if reply.outcome == "rejected":
        return Pending(reason=f"/pause: {reply.detail}")
    return Proved(grade=Grade.REPORTED, reason="a second pause was answered", figures={"cache_dropped": True})


def second_pause(paused_by: PauseMode | None) -> Call:
    """The pause that is asked for again. It changes nothing that the first did not."""
    return Call("pause", pause_args(idle_mode(paused_by)), repeatable=True)
