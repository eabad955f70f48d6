"""Assertions: what a person says. Pure."""

from __future__ import annotations

from typing import Any

from ...core.capabilities import Capabilities
from ...core.facts import Contents, Fact, Grade, PauseMode, Tag
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

    A closed engine is taken to have been paused by `paused_by`, and its weights to be of `version`, where that is said.
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
    valid = state in (State.SERVING, State.KV_RESTORED)
    if valid or version is not None:
        effect[Fact.CONTENTS] = _held(weights, state, record.desired.version if version is None else version)
    if valid:
        effect[Fact.CACHE_FRESH] = True
    facts = record.facts.learn(effect, Grade.ASSERTED, cause=ASSERTED)
    record = replace(record, facts=facts, uncertain=replace(record.uncertain, call=None))
    return record.with_condition("memory_returned", None).with_condition(IDENTITY, None)


def asserted_version(record: Record, state: State, capabilities: Capabilities, version: str) -> Record:
    """As `asserted`, of an engine whose state is known and whose weights are not."""
    held = _held(capabilities.stage("weights"), state, version)
    return replace(record, facts=record.facts.learn({Fact.CONTENTS: held}, Grade.ASSERTED, cause=ASSERTED))


def weights_supposed(record: Record, capabilities: Capabilities) -> Record:
    """What would be known of an engine if its weights, where nothing is known of them, were those that it is to serve.

    For the question in which states it may be; it is no record of any engine.
    """
    tags = [tag for tag in capabilities.stage("weights") if record.facts.contents.get(tag) is None]
    supposed = {tag: Contents("loaded", record.desired.version) for tag in tags}
    return replace(record, facts=record.facts.learn({Fact.CONTENTS: supposed}, Grade.ASSERTED, cause=ASSERTED))


def _held(weights: frozenset[Tag], state: State, version: str | None) -> dict[Tag, Contents]:
    return dict.fromkeys(weights, Contents("kept" if state is State.RELEASED else "loaded", version))
