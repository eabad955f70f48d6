"""The calls of each command on a scripted engine, as a pure function of the command and the facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.calls import PUSH, Call
from ..core.capabilities import Capabilities
from ..core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from ..core.facts import GARBAGE, Contents, Fact, Facts, PauseMode, Tag
from ..core.sources import FromDisk, Pushed, Source
from ..rules.evidence import targets
from ..rules.weights import is_kept

FLUSH = Call("flush", effect={Fact.CACHE_FRESH: True}, repeatable=True, refusal_is_untouched=True)


def plan(command: Command, facts: Facts, capabilities: Capabilities) -> tuple[Call, ...]:
    """Returns the calls of a command in order, one for each tag; none where every tag is as the command wants it."""
    acted_on = sorted(targets(command, facts, capabilities))
    match command:
        case Pause(mode=mode):
            return _pause(mode)
        case Drain():
            return ()
        case Release():
            return tuple(_release(tag, command.weights, facts, capabilities) for tag in acted_on)
        case RestoreWeights():
            return tuple(_restore(tag) for tag in acted_on)
        case RestoreKV():
            return (*map(_restore, acted_on), FLUSH) if acted_on or not facts.cache_fresh else ()
        case UpdateWeights(source=FromDisk() as source):
            return (_load(source, facts, capabilities),)
        case UpdateWeights(source=Pushed() as source):
            return _pushed(source, capabilities)
        case Resume():
            opened = {Fact.ADMISSION: "open", Fact.PAUSED_BY: None, Fact.RUNNING: None}
            return (Call("resume", effect=opened, repeatable=True),)
    raise TypeError(f"a scripted engine has no plan for {command}")


def push_call(how: str, args: Mapping[str, Any], version: str) -> Call:
    """Returns one call of a push; `tensor` is the only transport."""
    if how != "tensor":
        raise ValueError(f"a scripted engine takes a push by 'tensor', not {how!r}")
    return Call("push_tensor", {"version": version, **args})


def close_push(capabilities: Capabilities) -> Call:
    """Returns the call that ends a push which failed."""
    half: dict[Tag, Contents | None] = dict.fromkeys(capabilities.stage("weights"))
    effect: dict[Fact, Any] = {Fact.CONTENTS: half, Fact.CACHE_FRESH: False}
    return Call("close_update", {}, effect, repeatable=True, refusal_is_untouched=True, push="ends")


def _pause(mode: PauseMode) -> tuple[Call, ...]:
    effect: dict[Fact, Any] = {Fact.ADMISSION: "closed", Fact.PAUSED_BY: mode, Fact.RUNNING: None}
    call = Call("pause", {"mode": mode}, effect, repeatable=True, refusal_is_untouched=True)
    waiting = Call("await_idle", repeatable=True, refusal_is_untouched=True)
    return (waiting, call) if mode == "wait" else (call,)


def _release(tag: Tag, source: Source | None, facts: Facts, capabilities: Capabilities) -> Call:
    spec = capabilities.spec(tag)
    effect: dict[Fact, Any] = {Fact.MAPPED: {tag: False}, Fact.CACHE_FRESH: False}
    if spec.stage == "weights":
        held = facts.contents.get(tag)
        kept = None if held is None or held == GARBAGE else Contents("kept", held.version)
        effect[Fact.CONTENTS] = {tag: kept if is_kept(spec, source) else GARBAGE}
    args: dict[str, Any] = {"tags": [tag]}
    if spec.on_release == "as_wanted":
        args["keep"] = is_kept(spec, source)
    return Call("release", args, effect)


def _restore(tag: Tag) -> Call:
    return Call("restore", {"tags": [tag]}, {Fact.MAPPED: {tag: True}})


def _load(source: FromDisk, facts: Facts, capabilities: Capabilities) -> Call:
    flush = facts.paused_by != "freeze"
    args = {"path": source.path, "version": source.version, "flush": flush}
    effect = {Fact.CONTENTS: _loaded(source.version, capabilities), Fact.CACHE_FRESH: flush}
    return Call("load", args, effect, repeatable=True)


def _pushed(source: Pushed, capabilities: Capabilities) -> tuple[Call, ...]:
    half: dict[Tag, Contents | None] = dict.fromkeys(capabilities.stage("weights"))
    begin = Call("begin_update", {}, {Fact.CONTENTS: half, Fact.CACHE_FRESH: False}, push="begins")
    end = Call("end_update", {}, {Fact.CONTENTS: _loaded(source.version, capabilities)}, push="ends")
    return begin, PUSH, end, FLUSH


def _loaded(version: str, capabilities: Capabilities) -> dict[Tag, Contents]:
    return {tag: Contents("loaded", version) for tag in capabilities.stage("weights")}
