"""The effects that calls of every adapter declare: what is known of the engine once such a call was acknowledged."""

from __future__ import annotations

from typing import Any

from lifecycle.core.capabilities import Capabilities
from lifecycle.core.facts import GARBAGE, Contents, Fact, Facts, PauseMode, Tag

Effect = dict[Fact, Any]


def paused(mode: PauseMode) -> Effect:
    """Admission is closed by this mode. How many requests still run is unknown."""
    return {Fact.ADMISSION: "closed", Fact.PAUSED_BY: mode, Fact.RUNNING: None}


def resumed() -> Effect:
    """Admission is open. How many requests run is unknown."""
    return {Fact.ADMISSION: "open", Fact.PAUSED_BY: None, Fact.RUNNING: None}


def released(tag: Tag, facts: Facts, capabilities: Capabilities, *, kept: bool) -> Effect:
    """The tag is unmapped.

    Weights that are `kept` stay at their version; where they were unknown or garbage they are unknown. Other weights
    are garbage. After a release of KV memory, or of weights, that is not kept, the prefix cache is stale.
    """
    effect: Effect = {Fact.MAPPED: {tag: False}}
    if capabilities.spec(tag).stage == "kv":
        return effect if kept else effect | {Fact.CACHE_FRESH: False}
    if not kept:
        return effect | {Fact.CONTENTS: {tag: GARBAGE}, Fact.CACHE_FRESH: False}
    held = facts.contents.get(tag)
    contents = None if held is None or held == GARBAGE else Contents("kept", held.version)
    return effect | {Fact.CONTENTS: {tag: contents}}


def restored(tag: Tag) -> Effect:
    """The tag is mapped."""
    return {Fact.MAPPED: {tag: True}}


def loading(capabilities: Capabilities) -> Effect:
    """The weights are being replaced: their contents are unknown, and the prefix cache is stale."""
    unknown: dict[Tag, Contents | None] = dict.fromkeys(capabilities.stage("weights"))
    return {Fact.CONTENTS: unknown, Fact.CACHE_FRESH: False}


def loaded(version: str, capabilities: Capabilities) -> Effect:
    """Every weights tag holds this version."""
    return {Fact.CONTENTS: {tag: Contents("loaded", version) for tag in capabilities.stage("weights")}}
