"""Finding out where a failed command left an engine: barrier, observe, and the first state that the facts make."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..core.commands import Command, Pause, Resume
from ..core.deadline import Deadline
from ..core.errors import OperationFailed
from ..core.facts import Fact, Facts, Grade, PauseMode
from ..core.observation import Observation
from ..core.readings import Reading
from ..core.states import State
from ..rules.knowledge import by_level, by_residual, launched, merge, unknown
from ..rules.table import fits
from .call import Doubt, send
from .gather import EVERYTHING, residual

if TYPE_CHECKING:
    from .engine import Engine


#: How long a process may listen no more and still be there: the kernel frees its memory in between.
ENDING_S = 1.0


async def settle(
    engine: Engine,
    error: OperationFailed,
    deadline: Deadline,
    command: Command,
    *,
    trigger: str = "failed",
) -> OperationFailed:
    """The error, which now says where the engine is. The engine is in a stable state, or failed."""
    engine.move(trigger, command=error.command, reason=error.why)
    try:
        await look(engine, deadline, command)
    except BaseException as interrupted:
        error.settle(engine.state, " (looking was interrupted)")
        raise interrupted from error
    return error.settle(engine.state, _note(engine, command))


async def look(engine: Engine, deadline: Deadline, command: Command | None = None) -> State:
    """The engine is in the first state that its facts make; failed where they make none or it does not answer.

    What a call that is in doubt did to the memory is told from the bytes that moved.
    """
    settled = await engine.adapter.barrier(deadline_s=deadline.look_s(0.5))
    seen = await _observed(engine, deadline)
    if seen.alive is False:
        engine.facts, engine.unsettled = Facts(boot=engine.facts.boot), False
        return engine.move(f"observed_{State.GONE}", reason=seen.detail or "its process is gone").dest
    if engine.state is State.GONE and seen.boot is not None:
        engine.move(f"observed_{State.FAILED}", reason="a process answers in its place")
    if not settled or seen.boot is None:
        return engine.state
    engine.unsettled = False
    strangers = _moved_by_others(engine, seen)
    fresh = _learn(engine, seen)
    if engine.touched if fresh else strangers:
        await _doubt_all(engine, seen, deadline)
    if engine.doubt is not None and not fresh:
        await _decide_mapping(engine, deadline, engine.doubt)
    if engine.facts.admission != "closed" and (isinstance(command, Resume) or not _worth_serving(engine)):
        await _close(engine, deadline)
        if engine.unsettled or not await _confirmed(engine, deadline):
            return engine.state
    return _enter(engine)


async def _observed(engine: Engine, deadline: Deadline) -> Observation:
    """What is seen of it. One that is silent is looked at again for a while: a process takes some to have ended."""
    end = Deadline(min(ENDING_S, deadline.left_s / 2))
    while True:
        seen = await engine.adapter.observe(EVERYTHING, deadline_s=deadline.look_s(0.5))
        if seen.boot is not None or seen.alive is False or not end.left_s:
            return seen
        await asyncio.sleep(min(engine.policy.poll_s, end.left_s))


def _moved_by_others(engine: Engine, seen: Observation) -> bool:
    """Whether it was left closed with memory given back, and is open now: whoever opened it may have restored too."""
    return engine.facts.admission == "closed" and seen.admission == "open" and bool(engine.facts.unmapped())


async def _doubt_all(engine: Engine, seen: Observation, deadline: Deadline) -> None:
    """What its memory is and holds is unknown, but for what it told and its bytes tell; no device of it is free."""
    engine.conditions.pop("memory_returned", None)
    engine.doubt = None  # bytes that others moved do not tell what a lost call did
    contents = dict.fromkeys(engine.capabilities.stage("weights"))
    engine.facts = engine.facts.doubt({Fact.CONTENTS: contents, Fact.CACHE_FRESH: None})
    if seen.released_tags is not None:
        return
    engine.facts = engine.facts.doubt({Fact.MAPPED: dict.fromkeys(engine.facts.mapped)})
    reading = await residual(engine, deadline_s=deadline.look_s())
    engine.facts = by_level(engine.facts, reading, engine.context(Resume()))


def _learn(engine: Engine, seen: Observation) -> bool:
    """The facts are about the process that was seen; what was known of another one is void. Whether it is another."""
    fresh = engine.facts.boot not in (None, seen.boot)
    if fresh:
        engine.facts = launched(seen, engine.capabilities, Grade.DECLARED)
        engine.conditions.clear()
    elif engine.facts.boot is None:
        engine.facts = unknown(seen, engine.capabilities)
    else:
        engine.facts = merge(engine.facts, seen, engine.capabilities)
    return fresh


async def _confirmed(engine: Engine, deadline: Deadline) -> bool:
    """Whether the same process answers after it was told to close: its facts tell then whether it did.

    Requests are counted where the state hangs on them; elsewhere a drain asks.
    """
    counted = {Fact.RUNNING} if False in engine.facts.mapped.values() else set()
    seen = await engine.adapter.observe(frozenset({Fact.ADMISSION} | counted), deadline_s=deadline.look_s())
    if seen.boot != engine.facts.boot:
        return False
    engine.facts = merge(engine.facts, seen, engine.capabilities)
    return True


def _enter(engine: Engine) -> State:
    state = fits(engine.facts, engine.capabilities, weights_are_valid=engine.weights_refusal() is None)
    if state is not None:
        engine.touched = False
        engine.move(f"observed_{state}", reason="its facts make this state")
    return engine.state


def _worth_serving(engine: Engine) -> bool:
    if engine.facts.admission is None:
        return False
    mapped = all(value is True for value in engine.facts.mapped.values())
    return mapped and engine.weights_refusal() is None


async def _decide_mapping(engine: Engine, deadline: Deadline, doubt: Doubt) -> None:
    context = doubt.context
    lost = frozenset(tag for tag, mapped in engine.facts.mapped.items() if mapped is None)
    before = context.baseline.residual
    if not lost or not lost <= context.targets or not isinstance(before, Reading):
        return
    after = await residual(engine, deadline_s=deadline.look_s())
    moved = frozenset(tag for tag in context.targets - lost if engine.facts.mapped[tag] != context.facts.mapped[tag])
    share, known = context.share_bytes(lost, before), context.share_bytes(moved, before)
    if isinstance(after, Reading) and share and known is not None:
        sizes = [context.share_bytes(frozenset({tag}), before) or 0 for tag in lost]
        least = min((size for size in sizes if size >= context.policy.visible_bytes), default=share)
        engine.facts = doubt.decided(by_residual(engine.facts, context.facts, before, after, share, known, least))


async def _close(engine: Engine, deadline: Deadline) -> None:
    """Admission is closed where the calls that close it may be repeated; the facts say so."""
    mode = _closing_mode(engine)
    if mode is None:
        return
    for call in engine.adapter.plan(Pause(mode), engine.facts):
        if not call.repeatable:
            return
        reply = await send(engine, call, deadline_s=deadline.look_s())
        if reply.outcome != "done":
            engine.facts = engine.facts.doubt(call.effect)
            return


def _closing_mode(engine: Engine) -> PauseMode | None:
    """The policy's mode where the engine is surely open; else one that can be entered from whatever it is in."""
    modes = engine.capabilities.pause
    if engine.facts.admission == "open" and engine.policy.pause_mode in modes:
        return engine.policy.pause_mode
    safe = [mode for mode, traits in modes.items() if traits.drains and not traits.unsafe_from]
    return next((mode for mode in safe if not modes[mode].needs_router), None)


def _note(engine: Engine, command: Command) -> str:
    if engine.state is State.FAILED:
        return f" ({engine.facts}). recover() looks again; declare(state, by=..., reason=...) says what you know of it"
    condition = engine.conditions.get("memory_returned")
    if engine.state is State.RELEASED and condition is not None:
        return f", memory_returned is {condition.verdict.word}: its device is not free for others"
    if isinstance(command, Resume) and engine.facts.admission == "closed":
        return ": it was closed again, and admits no requests"
    return ""
