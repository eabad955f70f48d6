"""What makes an engine serve, from where it is. Pure."""

from __future__ import annotations

import shlex

from ...core.advice import Advice, Choice
from ...core.commands import Drain, Pause
from ...core.policy import PAUSE_MODE
from ...core.sources import Kept, Pushed, Source
from ...core.states import UNCLAIMED, State
from ..desired import source_to_serve
from ..planner import Goal, safe_mode
from .typed import CHECKPOINT, TRAINER, Where, asking

ANOTHER = "choose a checkpoint that it can load"
PUSHES = "have the trainer push"
ANEW = "start it anew"
AGAIN = f"if that fails again, {ANEW}"
SERVES = Choice(first="nothing is to be done, it serves")


def towards_serving(where: Where) -> Advice:
    """What makes the engine serve, from where it is."""
    match where.state:
        case _ if where.in_quarantine and where.state.stable and where.state not in UNCLAIMED:
            return Advice((taken_back(where),))
        case State.SERVING:
            return Advice((SERVES,))
        case State.DETACHED:
            return not_connected(where.address)
        case State.GONE:
            return Advice((recover(where, ANEW),))
        case State.FAILED:
            return Advice((recover(where),))
    if not where.state.stable:
        return Advice((recover(where, "wait until it has ended"),))
    return Advice(tuple(home(where)))


def not_connected(address: str) -> Advice:
    """Of an engine that was not observed yet."""
    return Advice((Choice("engine.connect()", f"lifecycle status {shlex.quote(address)}"),))


def home(where: Where) -> list[Choice]:
    """From a state of the ring. The facts of a state from which no command would lead on are found out anew."""
    closed_again = where.state in (State.DRAINED, State.KV_RESTORED)
    if where.state is State.KV_RESTORED and where.invalid:
        return [recover(where)]
    if closed_again and not where.invalid and where.record.facts.cache_fresh is not True:
        return [recover(where)]
    if where.invalid and source_to_serve(where.record, where.capabilities) in (None, Kept()):
        return onload_from(where)
    return [asking(where, Goal(State.SERVING))]


def onload_from(where: Where) -> list[Choice]:
    """Serving with weights that have to be named."""
    return [asking(where, Goal(State.SERVING, weights=source), first) for source, first in sources(where)]


def sources(where: Where) -> list[tuple[Source, str]]:
    """What weights could be loaded from, and what a person has to do first: all of it but what is wanted now."""
    desired, update = where.record.desired, where.capabilities.update
    known = dict.fromkeys((desired.rollback_source, where.capabilities.launch_source))
    sources: list[tuple[Source, str]] = []
    if "push" in update and (isinstance(desired.source, Pushed) or "disk" not in update):
        sources.append((desired.source if isinstance(desired.source, Pushed) else TRAINER, PUSHES))
    if "disk" in update:
        sources.append((CHECKPOINT, ANOTHER))
        sources += [(each, "") for each in known if each is not None and each != desired.source]
    return sources


def recover(where: Where, first: str = "") -> Choice:
    """Finding out where it is: a fleet does that of those that are failed or gone, an engine of itself."""
    return where.choice(f"{'fleet' if where.state in UNCLAIMED else 'engine'}.recover()", "recover", first)


def taken_back(where: Where) -> Choice:
    """From quarantine: it is found out where it is, and it is brought to where its fleet is."""
    return where.choice(f"fleet.recover(to='serving', {where.alone})", "recover --to serving")


def paused(where: Where) -> list[Choice]:
    """A pause that drains, by a mode that can be entered from where it is."""
    mode = safe_mode(where.view, PAUSE_MODE)
    return [recover(where, ANEW) if mode is None else asking(where, Pause(mode))]


def drained(where: Where) -> list[Choice]:
    """On the way from paused to drained: by another pause where this one does not drain. Elsewhere it is found out."""
    if where.state is not State.PAUSED:
        return [recover(where)]
    traits = where.capabilities.pause.get(where.record.facts.paused_by or PAUSE_MODE)
    known = where.record.facts.paused_by is not None and traits is not None and traits.drains
    return [asking(where, Drain())] if known else paused(where)
