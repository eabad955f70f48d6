"""Sending one call: whatever becomes of it, the facts say no more afterwards than is known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.calls import Call, Reply
from ..core.facts import Fact, Facts, Grade
from ..rules.evidence import Context

if TYPE_CHECKING:
    from .engine import Engine


@dataclass(frozen=True, slots=True)
class Doubt:
    """A call that may have taken its `effect` or not; `before` are the facts when it was sent."""

    context: Context
    before: Facts
    effect: Mapping[Fact, Any]

    def decided(self, facts: Facts) -> Facts:
        """The facts with all of the effect, or all of what was before, where the tags' mapping is known by now."""
        mapped = self.effect.get(Fact.MAPPED, {})
        if mapped and all(facts.mapped[tag] is value for tag, value in mapped.items()):
            return facts.learn(self.effect, Grade.MEASURED)
        if mapped and all(facts.mapped[tag] is self.before.mapped[tag] for tag in mapped):
            return facts.learn({fact: self._before(fact, value) for fact, value in self.effect.items()}, Grade.MEASURED)
        return facts

    def _before(self, fact: Fact, value: Any) -> Any:
        was = getattr(self.before, fact)
        return {tag: was[tag] for tag in value} if isinstance(value, Mapping) else was


async def send(engine: Engine, call: Call, *, deadline_s: float, context: Context | None = None) -> Reply:
    """The reply to this call, of which facts and observers know.

    When the caller gives up, its effect is unknown and the engine `unsettled`; where a call cannot be cancelled it has
    ended first, and its reply counts. `context` (of a command) lets bytes decide later what a lost call did.
    """
    begun = time.monotonic()
    sending = asyncio.ensure_future(engine.adapter.send(call, deadline_s=deadline_s))
    try:
        await (sending if engine.capabilities.cancellable else joined(sending))
    finally:
        reply = _reply(sending)
        if reply is not None:
            engine.observers.call(engine.name, call, reply, time.monotonic() - begun)
        _take(engine, call, reply, context)
    return sending.result()


def _reply(sending: asyncio.Future[Reply]) -> Reply | None:
    """What was answered; None where the caller gave up before."""
    if not sending.done() or sending.cancelled() or sending.exception() is not None:
        return None
    return sending.result()


def _take(engine: Engine, call: Call, reply: Reply | None, context: Context | None) -> None:
    """What the reply tells is known."""
    if reply is not None and reply.outcome == "done":
        engine.facts = engine.facts.learn(call.effect, Grade.ACKNOWLEDGED)
        engine.touched |= not call.repeatable
        return
    if reply is not None and (reply.refused or (reply.outcome == "rejected" and call.refusal_is_untouched)):
        return
    if context is not None:
        engine.doubt = Doubt(context, engine.facts, call.effect)
    engine.facts = engine.facts.doubt(call.effect)
    engine.unsettled |= reply is None or reply.outcome == "lost"


async def joined(effect: asyncio.Future[Reply]) -> Reply:
    """The effect's reply; a cancellation waits until the effect has ended, and then goes on."""
    cancelled: asyncio.CancelledError | None = None
    while not effect.done():
        try:
            await asyncio.shield(effect)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:
            break
    if cancelled is not None:
        raise cancelled
    return effect.result()
