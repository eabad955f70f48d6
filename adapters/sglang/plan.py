"""What SGLang is sent for each command: a pure function of the command and the facts.

Source: sglang 0.5.23, measured. Bodies are always sent. Tags are exact and never sent twice: releasing a tag that is
released, or resuming one that is not, kills the server. `keep` is retract: in_place freezes requests that hold
memory, and a release then kills the server too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.core.calls import PUSH, Call
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from lifecycle.core.facts import GARBAGE, Contents, Fact, Facts, PauseMode, Tag
from lifecycle.core.sources import FromDisk, Pushed
from lifecycle.rules.evidence import targets

MODES: Mapping[PauseMode, str] = {"abort": "abort", "wait": "abort", "keep": "retract", "freeze": "in_place"}

#: The order in which tags are released; they are restored the other way round. Any order is accepted: KV first,
#: since releasing it drops the prefix cache.
RELEASE_ORDER = ("kv_cache", "weights", "cuda_graph")

FLUSH = Call("flush_cache", effect={Fact.CACHE_FRESH: True}, repeatable=True, refusal_is_untouched=True)


def plan(command: Command, facts: Facts, capabilities: Capabilities) -> tuple[Call, ...]:
    """The calls of a command, in order; none where nothing needs to be sent."""
    acted_on = targets(command, facts, capabilities)
    match command:
        case Pause(mode=mode):
            return _pause(mode)
        case Drain():
            return ()
        case Release():
            return tuple(_release(tag, facts, capabilities) for tag in _ordered(acted_on))
        case RestoreWeights():
            return tuple(_restore(tag) for tag in reversed(_ordered(acted_on)))
        case RestoreKV():
            restores = tuple(_restore(tag) for tag in reversed(_ordered(acted_on)))
            return (*restores, FLUSH) if restores or not facts.cache_fresh else ()
        case UpdateWeights(source=FromDisk() as source):
            return (_from_disk(source, facts, capabilities),)
        case UpdateWeights(source=Pushed() as source):
            return _pushed(source, capabilities)
        case Resume():
            opened = {Fact.ADMISSION: "open", Fact.PAUSED_BY: None, Fact.RUNNING: None}
            return (Call("continue_generation", effect=opened, repeatable=True),)
    raise TypeError(f"SGLang has no plan for {command}")


def push(how: str, args: Mapping[str, Any], version: str) -> Call:
    """One call of a push: `tensor` or `distributed`, with the arguments of SGLang's endpoint of that name."""
    if how not in ("tensor", "distributed"):
        raise ValueError(f"SGLang takes a push by 'tensor' or 'distributed', not {how!r}")
    body = {"flush_cache": False, "weight_version": version, **args}
    return Call(f"update_weights_from_{how}", body)


def _pause(mode: PauseMode) -> tuple[Call, ...]:
    effect: dict[Fact, Any] = {Fact.ADMISSION: "closed", Fact.PAUSED_BY: mode, Fact.RUNNING: None}
    call = Call("pause_generation", {"mode": MODES[mode]}, effect, repeatable=True, refusal_is_untouched=True)
    waiting = Call("await_idle", repeatable=True, refusal_is_untouched=True)
    return (waiting, call) if mode == "wait" else (call,)


def _release(tag: Tag, facts: Facts, capabilities: Capabilities) -> Call:
    spec = capabilities.spec(tag)
    effect: dict[Fact, Any] = {Fact.MAPPED: {tag: False}}
    if spec.stage == "kv":
        effect[Fact.CACHE_FRESH] = False
    elif spec.on_release == "discarded":
        effect |= {Fact.CONTENTS: {tag: GARBAGE}, Fact.CACHE_FRESH: False}
    else:
        held = facts.contents.get(tag)
        effect[Fact.CONTENTS] = {tag: None if held is None or held == GARBAGE else Contents("kept", held.version)}
    return Call("release_memory_occupation", {"tags": [tag]}, effect)


def _restore(tag: Tag) -> Call:
    return Call("resume_memory_occupation", {"tags": [tag]}, {Fact.MAPPED: {tag: True}})


def _from_disk(source: FromDisk, facts: Facts, capabilities: Capabilities) -> Call:
    flush = facts.paused_by != "freeze"  # a flush under frozen requests fails after the weights have changed
    body = {"model_path": source.path, "weight_version": source.version, "flush_cache": flush, **source.options}
    effect: dict[Fact, Any] = {Fact.CONTENTS: _loaded(source.version, capabilities), Fact.CACHE_FRESH: flush}
    return Call("update_weights_from_disk", body, effect, repeatable=True)


def _pushed(source: Pushed, capabilities: Capabilities) -> tuple[Call, ...]:
    """The push between begin and end; its contents are known as loaded only once the end was acknowledged."""
    half: dict[Tag, Contents | None] = dict.fromkeys(capabilities.stage("weights"))
    begin = Call("begin_weight_update", {}, {Fact.CONTENTS: half, Fact.CACHE_FRESH: False})
    end = Call("end_weight_update", {}, {Fact.CONTENTS: _loaded(source.version, capabilities)})
    return begin, PUSH, end, FLUSH


def _loaded(version: str, capabilities: Capabilities) -> dict[Tag, Contents]:
    return {tag: Contents("loaded", version) for tag in capabilities.stage("weights")}


def _ordered(tags: frozenset[Tag]) -> list[Tag]:
    return sorted(tags, key=lambda tag: (RELEASE_ORDER.index(tag) if tag in RELEASE_ORDER else 99, tag))
