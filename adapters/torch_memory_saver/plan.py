"""What is done in this process for each command: a pure function of the command, the facts and what the engine has.

Checks come first, each as a call of its own, so that a refusal is known to have touched nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lifecycle.core.calls import PUSH, Call
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from lifecycle.core.facts import GARBAGE, Contents, Fact, Facts, Grade, PauseMode, Tag
from lifecycle.core.sources import FromDisk, Kept, Pushed
from lifecycle.rules.evidence import targets

PUSHES = ("tensors", "in_place")


@dataclass(frozen=True, slots=True)
class Has:
    """What the engine has beside its memory.

    `staged`: tags that can be staged in host memory. `buffers`: tags with modules, of which at least the buffers are.
    `groups`: process groups to be rebuilt.
    """

    staged: frozenset[Tag] = frozenset()
    buffers: frozenset[Tag] = frozenset()
    groups: bool = False


def plan(command: Command, facts: Facts, capabilities: Capabilities, has: Has) -> tuple[Call, ...]:
    """The calls of a command, in order; none where nothing needs to be done."""
    acted_on = _ordered(targets(command, facts, capabilities), capabilities)
    match command:
        case Pause(mode=mode):
            return (_close(mode),)
        case Drain():
            return ()
        case Release():
            return _release(command, acted_on, facts, capabilities, has)
        case RestoreWeights():
            return _restore_weights(acted_on, facts, capabilities, has)
        case RestoreKV():
            return _restore_kv(acted_on, facts, has)
        case UpdateWeights(source=FromDisk() as source):
            return _from_disk(source, capabilities)
        case UpdateWeights(source=Pushed() as source):
            return _pushed(source, capabilities)
        case Resume():
            opened = {Fact.ADMISSION: "open", Fact.PAUSED_BY: None, Fact.RUNNING: None}
            return (*_groups("rebuild_groups", has), Call("open", effect=opened, repeatable=True))
    raise TypeError(f"there is no plan for {command}")


def push(how: str, args: Mapping[str, Any], version: str) -> Call:
    """One call of a push: `tensors` (owner, tensors by name) or `in_place` (write: what is given the modules)."""
    if how not in PUSHES:
        raise ValueError(f"torch in this process takes a push by {' or '.join(map(repr, PUSHES))}, not {how!r}")
    return Call(f"push_{how}", args)


def _close(mode: PauseMode) -> Call:
    effect: dict[Fact, Any] = {Fact.ADMISSION: "closed", Fact.PAUSED_BY: mode, Fact.RUNNING: None}
    return Call("close", {"mode": mode}, effect, repeatable=True, refusal_is_untouched=True)


def _release(command: Release, tags: list[Tag], facts: Facts, capabilities: Capabilities, has: Has) -> tuple[Call, ...]:
    """Contents are staged first: a host without memory for them refuses before anything is given back."""
    if not tags:
        return ()
    staged = frozenset(tags) & has.staged if _keeps(command, capabilities) else frozenset()
    lost = frozenset(tags) & has.buffers - staged
    calls = [Call("stage", {"tag": tag}, repeatable=True, refusal_is_untouched=True) for tag in sorted(staged)]
    calls += [Call("stage_buffers", {"tag": tag}, repeatable=True, refusal_is_untouched=True) for tag in sorted(lost)]
    calls += _groups("drop_groups", has)
    calls += [_give_back(tag, tag in staged, facts, capabilities, has) for tag in tags]
    return (*calls, Call("collect", repeatable=True, refusal_is_untouched=True))


def _keeps(command: Release, capabilities: Capabilities) -> bool:
    """Whether what is there comes back: nothing is staged that the declared source replaces."""
    return not capabilities.update or command.weights is None or isinstance(command.weights, Kept)


def _give_back(tag: Tag, staged: bool, facts: Facts, capabilities: Capabilities, has: Has) -> Call:
    effect: dict[Fact, Any] = {Fact.MAPPED: {tag: False}}
    spec = capabilities.spec(tag)
    if spec.stage == "kv":
        effect[Fact.CACHE_FRESH] = False
    elif staged or (spec.on_release == "kept" and tag not in has.staged):
        held = facts.contents.get(tag)
        effect[Fact.CONTENTS] = {tag: None if held is None or held == GARBAGE else Contents("kept", held.version)}
    else:
        effect |= {Fact.CONTENTS: {tag: GARBAGE}, Fact.CACHE_FRESH: False}
    return Call("release", {"tag": tag}, effect)


def _restore_weights(tags: list[Tag], facts: Facts, capabilities: Capabilities, has: Has) -> tuple[Call, ...]:
    if not tags:
        return ()
    check = Call("check_modules", repeatable=True, refusal_is_untouched=True)
    restores = [_take_again(tag) for tag in reversed(tags)]
    back = [each for tag in tags for each in _unstage(tag, facts, has)]
    return (check, *restores, *back, *_groups("rebuild_groups", has))


def _restore_kv(tags: list[Tag], facts: Facts, has: Has) -> tuple[Call, ...]:
    restores = [_take_again(tag) for tag in reversed(tags)]
    known = facts.grades.get(Fact.CACHE_FRESH, Grade.DECLARED) > Grade.DECLARED
    if not restores and facts.cache_fresh and known:
        return ()
    return (*restores, *_groups("rebuild_groups", has), _drop_cache())


def _unstage(tag: Tag, facts: Facts, has: Has) -> tuple[Call, ...]:
    if tag in has.staged and _was_kept(facts, tag):
        return (Call("unstage", {"tag": tag}, {Fact.CONTENTS: {tag: facts.contents[tag]}}),)
    return (Call("unstage_buffers", {"tag": tag}),) if tag in has.buffers else ()


def _take_again(tag: Tag) -> Call:
    return Call("restore", {"tag": tag}, {Fact.MAPPED: {tag: True}})


def _was_kept(facts: Facts, tag: Tag) -> bool:
    contents = facts.contents.get(tag)
    return contents is not None and contents.origin == "kept"


def _drop_cache() -> Call:
    return Call("drop_cache", effect={Fact.CACHE_FRESH: True}, repeatable=True)


def _from_disk(source: FromDisk, capabilities: Capabilities) -> tuple[Call, ...]:
    args = {"path": source.path, "version": source.version}
    loaded = {Fact.CONTENTS: _loaded(source.version, capabilities), Fact.CACHE_FRESH: False}
    check = Call("check_checkpoint", {"path": source.path}, repeatable=True, refusal_is_untouched=True)
    return check, Call("load", args, loaded, repeatable=True), _drop_cache()


def _pushed(source: Pushed, capabilities: Capabilities) -> tuple[Call, ...]:
    """The push between begin and end; its contents are known as loaded only once the end was acknowledged."""
    half: dict[Tag, Contents | None] = dict.fromkeys(capabilities.stage("weights"))
    begin = Call("begin_push", {}, {Fact.CONTENTS: half, Fact.CACHE_FRESH: False})
    end = Call("end_push", {"version": source.version}, {Fact.CONTENTS: _loaded(source.version, capabilities)})
    return begin, PUSH, end, _drop_cache()


def _loaded(version: str, capabilities: Capabilities) -> dict[Tag, Contents]:
    return {tag: Contents("loaded", version) for tag in capabilities.stage("weights")}


def _groups(name: str, has: Has) -> tuple[Call, ...]:
    return (Call(name, repeatable=True),) if has.groups else ()


def _ordered(tags: frozenset[Tag], capabilities: Capabilities) -> list[Tag]:
    """KV first, then weights; restored the other way round."""
    return sorted(tags, key=lambda tag: (capabilities.spec(tag).stage == "weights", tag))
