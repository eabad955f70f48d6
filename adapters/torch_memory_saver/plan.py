"""The calls made in this process for each command: a pure function of the command, the facts and what is attached.

Checks come first, each as a call of its own. A check that refuses has changed nothing, so that every fact stays known.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lifecycle.core.calls import PUSH, Call
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from lifecycle.core.facts import Fact, Facts, Grade, PauseMode, Tag
from lifecycle.core.sources import FromDisk, Kept, Pushed
from lifecycle.rules.evidence import targets

from .. import call_effects

PUSHES = ("tensors", "in_place")


@dataclass(frozen=True, slots=True)
class Attached:
    """What is attached to the engine beside its memory.

    `staged`: tags whose contents can be staged in host memory. `buffers`: tags with modules, whose buffers at least are
    staged. `groups`: whether process groups must be destroyed before a release and rebuilt after it.
    """

    staged: frozenset[Tag] = frozenset()
    buffers: frozenset[Tag] = frozenset()
    groups: bool = False


def plan(command: Command, facts: Facts, capabilities: Capabilities, attached: Attached) -> tuple[Call, ...]:
    """The calls of a command, in order; empty where nothing needs to be done."""
    acted_on = _ordered(targets(command, facts, capabilities), capabilities)
    match command:
        case Pause(mode=mode):
            return (_close(mode),)
        case Drain():
            return ()
        case Release():
            return _release(command, acted_on, facts, capabilities, attached)
        case RestoreWeights():
            return _restore_weights(acted_on, facts, capabilities, attached)
        case RestoreKV():
            return _restore_kv(acted_on, facts, attached)
        case UpdateWeights(source=FromDisk() as source):
            return _from_disk(source, capabilities)
        case UpdateWeights(source=Pushed() as source):
            return _pushed(source, capabilities)
        case Resume():
            open_ = Call("open", effect=call_effects.resumed(), repeatable=True)
            return (*_groups("rebuild_groups", attached), open_)
    raise TypeError(f"torch in this process has no plan for {command}")


def push(how: str, args: Mapping[str, Any], version: str) -> Call:
    """One call of a push.

    `tensors` takes `tensors` by name, and `module` where several are attached. `in_place` takes `write`, a function
    that is given the modules by name.
    """
    if how not in PUSHES:
        raise ValueError(f"torch in this process takes a push by {' or '.join(map(repr, PUSHES))}, not {how!r}")
    if "owner" in args:
        warnings.warn("push(owner=...) is now called push(module=...)", DeprecationWarning, stacklevel=2)
        args = {"module" if name == "owner" else name: value for name, value in args.items()}
    return Call(f"push_{how}", args)


def _close(mode: PauseMode) -> Call:
    return Call("close", {"mode": mode}, call_effects.paused(mode), repeatable=True, refusal_is_untouched=True)


def _release(
    command: Release, tags: list[Tag], facts: Facts, capabilities: Capabilities, attached: Attached
) -> tuple[Call, ...]:
    """Contents are staged first, so that a host without memory for them refuses before anything is released."""
    if not tags:
        return ()
    staged = frozenset(tags) & attached.staged if _keeps(command, capabilities) else frozenset()
    replaced = frozenset(tags) & attached.buffers - staged
    calls = [_harmless("stage", tag=tag) for tag in sorted(staged)]
    calls += [_harmless("stage_buffers", tag=tag) for tag in sorted(replaced)]
    calls += _groups("drop_groups", attached)
    for tag in tags:
        kept = tag in staged or (capabilities.spec(tag).on_release == "kept" and tag not in attached.staged)
        calls.append(Call("release", {"tag": tag}, call_effects.released(tag, facts, capabilities, kept=kept)))
    return (*calls, _harmless("collect"))


def _keeps(command: Release, capabilities: Capabilities) -> bool:
    """Whether the present contents are wanted back. Contents that the command's source replaces are not staged."""
    return not capabilities.update or command.weights is None or isinstance(command.weights, Kept)


def _restore_weights(tags: list[Tag], facts: Facts, capabilities: Capabilities, attached: Attached) -> tuple[Call, ...]:
    if not tags:
        return ()
    check = _harmless("check_modules")
    restores = [_restore(tag) for tag in reversed(tags)]
    unstages = [call for tag in tags for call in _unstage(tag, facts, attached)]
    return (check, *restores, *unstages, *_groups("rebuild_groups", attached))


def _restore_kv(tags: list[Tag], facts: Facts, attached: Attached) -> tuple[Call, ...]:
    restores = [_restore(tag) for tag in reversed(tags)]
    known = facts.grades.get(Fact.CACHE_FRESH, Grade.ASSERTED) > Grade.ASSERTED
    if not restores and facts.cache_fresh and known:
        return ()
    return (*restores, *_groups("rebuild_groups", attached), _drop_cache())


def _unstage(tag: Tag, facts: Facts, attached: Attached) -> tuple[Call, ...]:
    if tag in attached.staged and _was_kept(facts, tag):
        return (Call("unstage", {"tag": tag}, {Fact.CONTENTS: {tag: facts.contents[tag]}}),)
    return (Call("unstage_buffers", {"tag": tag}),) if tag in attached.buffers else ()


def _restore(tag: Tag) -> Call:
    return Call("restore", {"tag": tag}, call_effects.restored(tag))


def _was_kept(facts: Facts, tag: Tag) -> bool:
    contents = facts.contents.get(tag)
    return contents is not None and contents.origin == "kept"


def _drop_cache() -> Call:
    return Call("drop_cache", effect={Fact.CACHE_FRESH: True}, repeatable=True)


def _from_disk(source: FromDisk, capabilities: Capabilities) -> tuple[Call, ...]:
    args = {"path": source.path, "version": source.version}
    effect = {**call_effects.loaded(source.version, capabilities), Fact.CACHE_FRESH: False}
    check = _harmless("check_checkpoint", path=source.path)
    return check, Call("load", args, effect, repeatable=True), _drop_cache()


def _pushed(source: Pushed, capabilities: Capabilities) -> tuple[Call, ...]:
    """The push between its begin and end. The contents are unknown from the begin until the end is acknowledged."""
    begin = Call("begin_push", {}, call_effects.loading(capabilities))
    end = Call("end_push", {"version": source.version}, call_effects.loaded(source.version, capabilities))
    return begin, PUSH, end, _drop_cache()


def _harmless(name: str, **args: Any) -> Call:
    """A call without effect on any fact: it may be sent again, and one that is refused has changed nothing."""
    return Call(name, args, repeatable=True, refusal_is_untouched=True)


def _groups(name: str, attached: Attached) -> tuple[Call, ...]:
    return (Call(name, repeatable=True),) if attached.groups else ()


def _ordered(tags: frozenset[Tag], capabilities: Capabilities) -> list[Tag]:
    """KV tags, then weights tags: the order of a release. A restore goes the other way round."""
    return sorted(tags, key=lambda tag: (capabilities.spec(tag).stage == "weights", tag))
