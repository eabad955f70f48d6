"""Assertions: what a person says. Pure."""

from __future__ import annotations

from typing import Any

from ...core.capabilities import Capabilities
from ...core.facts import Contents, Fact, Grade, PauseMode
from ...core.frozen import replace
from ...core.record import Record
from ...core.states import State
from ..identity import IDENTITY

#: The cause of what a person asserted.
ASSERTED = "override_state"


def asserted(
    record: Record, state: State, capabilities: Capabilities, paused_by: PauseMode, version: str | None = None
) -> Record:
    """The facts that a person asserts who overrides the state; nothing of what was measured or in doubt is kept.

    A closed engine is taken to have been paused by `paused_by`. `version` is that of its weights: without it those of
    an engine whose state does not claim that they are valid stay unknown.
    """
    tags = frozenset(spec.name for spec in capabilities.tags)
    weights = capabilities.stage("weights")
    unmapped = {State.RELEASED: tags, State.WEIGHTS_RESTORED: tags - weights}.get(state, frozenset())
    effect: dict[Fact, Any] = {
        Fact.ADMISSION: "open" if state is State.SERVING else "closed",
        Fact.MAPPED: {tag: tag not in unmapped for tag in tags},
    }
    if state is not State.SERVING:
        effect[Fact.PAUSED_BY] = paused_by
    if state not in (State.SERVING, State.PAUSED):
        effect[Fact.RUNNING] = 0
    if state in (State.SERVING, State.KV_RESTORED) or (version is not None and state is not State.RELEASED):
        effect[Fact.CONTENTS] = {tag: Contents("loaded", version or record.desired.version) for tag in weights}
    if state in (State.SERVING, State.KV_RESTORED):
        effect[Fact.CACHE_FRESH] = True
    facts = record.facts.learn(effect, Grade.ASSERTED, cause=ASSERTED)
    record = replace(record, facts=facts, uncertain=replace(record.uncertain, call=None))
    return record.with_condition("memory_returned", None).with_condition(IDENTITY, None)


def weights_supposed(record: Record, capabilities: Capabilities) -> Record:
    """What would be known of an engine if its weights, where nothing is known of them, were those that it is to serve.

    For the question in which states it may be; it is no record of any engine.
    """
    tags = [tag for tag in capabilities.stage("weights") if record.facts.contents.get(tag) is None]
    supposed = {tag: Contents("loaded", record.desired.version) for tag in tags}
    return replace(record, facts=record.facts.learn({Fact.CONTENTS: supposed}, Grade.ASSERTED, cause=ASSERTED))
