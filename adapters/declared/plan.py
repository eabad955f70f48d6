"""The verbs that are called for each command: a pure function of the command, the facts and the declaration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.core.calls import PUSH, Call
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from lifecycle.core.facts import Fact, Facts, Grade, PauseMode, Tag
from lifecycle.core.sources import FromDisk, Pushed, Source
from lifecycle.rules.evidence import targets
from lifecycle.rules.weights import is_kept

from .. import call_effects
from .declaration import Declaration, Placed

#: A call that would do harm, or for which no verb is declared. It is not made: it stands in a plan to be refused.
NOT_SENT = "not_sent"

#: Where a push begins and ends of an engine that has no verb for it: nothing is called, and the contents are unknown.
PUSH_BEGINS, PUSH_ENDS = "push_begins", "push_ends"

OLDER_KV = (
    "requests wait in it with KV of the present weights, and would go on with it on others; pause by another mode, or "
    "declare live_update=True where that is meant"
)


def plan(command: Command, facts: Facts, capabilities: Capabilities, declared: Declaration) -> tuple[Call, ...]:
    """The calls of a command, in order; empty where nothing needs to be called."""
    acted_on = targets(command, facts, capabilities)
    match command:
        case Pause(mode=mode):
            return (_pause(mode, declared),)
        case Drain():
            return ()
        case Release(weights=source):
            return _release(acted_on, source, facts, capabilities, declared)
        case RestoreWeights():
            return _restore(acted_on, facts, declared)
        case RestoreKV():
            restores = _restore(acted_on, facts, declared)
            return (*restores, *_fresh(facts, restores, capabilities, declared))
        case UpdateWeights(source=FromDisk() as source):
            load = _load(source, capabilities, declared)
            if _holds_older_kv(facts, declared):
                return (_not_sent(OLDER_KV),)
            return (load, *_fresh(facts, (load,), capabilities, declared, changed=True))
        case UpdateWeights(source=Pushed() as source):
            pushed = _pushed(source, capabilities, declared)
            if _holds_older_kv(facts, declared):
                return (_not_sent(OLDER_KV),)
            return (*pushed, *_fresh(facts, pushed[-1:], capabilities, declared, changed=True))
        case Resume():
            return (_call(declared.placed["resume"], {}, call_effects.resumed()),)
    raise TypeError(f"a declared engine has no plan for {command}")


def push(how: str, args: Mapping[str, Any], declared: Declaration) -> Call:
    """One call of a push, by a word that was declared."""
    placed = declared.has(f"push {how}")
    if placed is None:
        words = ", ".join(map(repr, declared.verbs.push)) or "nothing: no push is declared"
        raise ValueError(f"{declared.about.engine} takes a push by {words}, not {how!r}")
    return Call(placed.name, args)


def _pause(mode: PauseMode, declared: Declaration) -> Call:
    placed = declared.has(f"pause {mode}")
    if placed is None:  # the guard refuses such a mode; a plan says so to who asks without it
        return _not_sent(f"no verb is declared for a pause by {mode!r}; there are {', '.join(declared.verbs.pause)}")
    return _call(placed, {"mode": mode}, call_effects.paused(mode))


def _release(
    tags: frozenset[Tag], source: Source | None, facts: Facts, capabilities: Capabilities, declared: Declaration
) -> tuple[Call, ...]:
    if not tags:
        return ()
    lost = [tag for tag in tags & capabilities.stage("weights") if not is_kept(capabilities.spec(tag), source)]
    if lost and _holds_older_kv(facts, declared):
        return (_not_sent(OLDER_KV),)
    chosen = declared.covering(declared.release, tags, maps=False)
    if chosen is None:
        gone = ", ".join(sorted(facts.unmapped()))
        beside = f", while {gone} is released" if gone else ""
        return (_not_sent(f"no verb is declared that releases {', '.join(sorted(tags))} alone{beside}"),)
    return tuple(_released(each, tags, source, facts, capabilities) for each in chosen)


def _released(
    placed: Placed, tags: frozenset[Tag], source: Source | None, facts: Facts, capabilities: Capabilities
) -> Call:
    mine = sorted(placed.verb.unmaps & tags)
    kept = [tag for tag in mine if is_kept(capabilities.spec(tag), source)]
    effect: call_effects.Effect = {}
    for tag in mine:
        of_tag = call_effects.released(tag, facts, capabilities, kept=tag in kept)
        contents = {**effect.get(Fact.CONTENTS, {}), **of_tag.get(Fact.CONTENTS, {})}
        effect |= {**of_tag, **({Fact.CONTENTS: contents} if contents else {})}
    effect[Fact.MAPPED] = dict.fromkeys(mine, False)
    keep = any(capabilities.spec(tag).stage == "weights" for tag in kept)
    return _call(placed, {"tags": mine, "keep": keep}, effect)


def _restore(tags: frozenset[Tag], facts: Facts, declared: Declaration) -> tuple[Call, ...]:
    if not tags:
        return ()
    chosen = declared.covering(declared.restore, tags, maps=True)
    if chosen is None:
        return (_not_sent(f"no verb is declared that restores {', '.join(sorted(tags))} alone"),)
    calls = []
    for each in chosen:
        mine = sorted(each.verb.maps & tags)
        calls.append(_call(each, {"tags": mine}, {Fact.MAPPED: dict.fromkeys(mine, True)}))
    return tuple(calls)


def _load(source: FromDisk, capabilities: Capabilities, declared: Declaration) -> Call:
    placed = declared.has("load")
    if placed is None:
        return _not_sent("no verb is declared that loads weights: declare load=")
    args = {"path": source.path, "version": source.version, "options": dict(source.options)}
    stale = {**call_effects.loaded(source.version, capabilities), Fact.CACHE_FRESH: False}
    return _call(placed, args, stale)


def _pushed(source: Pushed, capabilities: Capabilities, declared: Declaration) -> tuple[Call, ...]:
    """The push between its begin and end. The contents are unknown from the begin until the end is acknowledged."""
    begins, ends = declared.has("push_begins"), declared.has("push_ends")
    args, loading = {"version": source.version}, call_effects.loading(capabilities)
    loaded = call_effects.loaded(source.version, capabilities)
    return (
        Call(PUSH_BEGINS, {}, loading, repeatable=True) if begins is None else _call(begins, args, loading),
        PUSH,
        Call(PUSH_ENDS, {}, loaded, repeatable=True) if ends is None else _call(ends, args, loaded),
    )


def _fresh(
    facts: Facts, calls: tuple[Call, ...], capabilities: Capabilities, declared: Declaration, *, changed: bool = False
) -> tuple[Call, ...]:
    """Empties the prefix cache, unless it is known to be fresh after these calls, or requests go on with it.

    While KV memory is unmapped that waits until it is back.
    """
    away = facts.unmapped() & capabilities.stage("kv")
    known = facts.grades.get(Fact.CACHE_FRESH, Grade.ASSERTED) > Grade.ASSERTED
    stale = changed or not (facts.cache_fresh and known)
    if facts.paused_by == "freeze" or (changed and away) or not stale:
        return ()
    if any(call.effect.get(Fact.CACHE_FRESH) for call in calls):
        return ()
    placed = declared.has("drop_cache")
    if placed is None:
        return (_not_sent("the prefix cache belongs to other weights, and no verb empties it: declare drop_cache="),)
    return (_call(placed, {}, {Fact.CACHE_FRESH: True}),)


def _holds_older_kv(facts: Facts, declared: Declaration) -> bool:
    """Whether other weights would leave requests with KV that is not theirs."""
    return facts.paused_by == "freeze" and not declared.about.live_update


def _call(placed: Placed, offered: Mapping[str, Any], effect: call_effects.Effect) -> Call:
    """The call of a verb, which is given what it takes of what it is offered."""
    verb = placed.verb
    if verb.drops_cache:
        effect = {**effect, Fact.CACHE_FRESH: True}
    args = {name: value for name, value in offered.items() if name in placed.takes}
    return Call(placed.name, args, effect, verb.repeatable, verb.refusal_is_untouched)


def _not_sent(why: str) -> Call:
    return Call(NOT_SENT, {"why": why}, refusal_is_untouched=True)
