"""The calls that vLLM is sent for each command: a pure function of the command, the facts and the version's effects.

- `/sleep` pauses by itself, and by default that aborts every request that a pause kept: it is always sent with
  `mode=keep`. It takes no tags: level 1 keeps the weights on the host and level 2 discards them, and both discard KV.
- The wake that leaves nothing asleep resumes the scheduler. It is followed at once by a pause with `mode=keep`, in
  which nothing is lost: requests that slipped in meanwhile lose their KV memory, and go on at the resume.
- A pause with `mode=keep&clear_cache=true` takes the KV memory of every request, and is answered once no step runs.
  With `clear_cache=false` requests keep it, and nothing may be released: that is `freeze`, for a live update.
- A tag stands alone in a call: two that are joined by a comma are no tag, and no error, and a repeated one half wakes.
- `/resume` is not refused while memory is asleep, and the next step runs on memory that is not there: it is never sent
  unless everything is known to be mapped.
- A reload does not drop the prefix cache, nor what was computed by the encoders of the old weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.core.calls import PUSH, Call
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from lifecycle.core.facts import Fact, Facts, PauseMode, Tag
from lifecycle.core.sources import FromDisk, Pushed, Source
from lifecycle.rules.evidence import targets
from lifecycle.rules.weights import is_kept

from .. import call_effects
from .versions import Effects

#: The modes of `/pause`, with their `clear_cache`.
MODES: Mapping[PauseMode, tuple[str, str]] = {
    "abort": ("abort", "true"),
    "wait": ("wait", "true"),
    "keep": ("keep", "true"),
    "freeze": ("keep", "false"),
}

#: The calls of a push, by the word of `target.push(HOW, ...)`.
PUSHES: Mapping[str, str] = {
    "init": "init_weight_transfer_engine",
    "update": "update_weights",
    "shutdown": "shutdown_weight_transfer_engine",
}

#: The call that ends a push which failed. It is `/finish_weight_update`, and done also where none is under way.
CLOSE_PUSH = "close_weight_update"

#: A call that would do nothing, or harm. It is not sent: it stands in a plan to be refused with its reason.
NOT_SENT = "not_sent"

RESET = Call("reset_prefix_cache", effect={Fact.CACHE_FRESH: True}, repeatable=True, refusal_is_untouched=True)
RESET_ENCODERS = Call("reset_encoder_cache", repeatable=True, refusal_is_untouched=True)


def plan(command: Command, facts: Facts, capabilities: Capabilities, effects: Effects) -> tuple[Call, ...]:
    """The calls of a command, in order; empty where nothing needs to be sent."""
    acted_on = targets(command, facts, capabilities)
    match command:
        case Pause(mode=mode):
            return (_pause(mode),)
        case Drain():
            return ()
        case Release(weights=source):
            return _release(acted_on, source, facts, capabilities, effects)
        case RestoreWeights():
            return _wakes(acted_on, facts)
        case RestoreKV():
            wakes = _wakes(acted_on, facts)
            return (*wakes, RESET) if wakes or not facts.cache_fresh else ()
        case UpdateWeights(source=FromDisk() as source):
            return (*_from_disk(source, capabilities, effects), *_fresh(facts, capabilities))
        case UpdateWeights(source=Pushed() as source):
            return (*_pushed(source, capabilities, effects), *_fresh(facts, capabilities))
        case Resume():
            return _resume(facts)
    raise TypeError(f"vLLM has no plan for {command}")


def push(how: str, args: Mapping[str, Any]) -> Call:
    """One call of a push: `init`, `update` or `shutdown`, with the body of vLLM's endpoint for it."""
    if how not in PUSHES:
        raise ValueError(f"vLLM takes a push by {', '.join(map(repr, PUSHES))}, not {how!r}")
    return Call(PUSHES[how], dict(args))


def close_push(capabilities: Capabilities) -> Call:
    """Ends a push that failed: what it left in the weights is unknown."""
    effect = call_effects.loading(capabilities)
    return Call(CLOSE_PUSH, {}, effect, repeatable=True, refusal_is_untouched=True, push="ends")


def idle_mode(paused_by: PauseMode | None) -> PauseMode:
    """The pause that is asked for again to learn that the engine is idle.

    `wait` is answered once no request runs a step or holds KV memory. A pause by keep is asked for in its own mode: it
    says the same, and wait would have it refuse new requests from 0.33 on.
    """
    return "keep" if paused_by == "keep" else "wait"


def pause_args(mode: PauseMode) -> dict[str, str]:
    """The parameters of `/pause` in this mode."""
    name, clear = MODES[mode]
    return {"mode": name, "clear_cache": clear}


def _pause(mode: PauseMode) -> Call:
    """A pause that was refused may have stopped the scheduler: its caches are cleared afterwards, and that may fail."""
    return Call("pause", pause_args(mode), call_effects.paused(mode), repeatable=True)


def _release(
    tags: frozenset[Tag], source: Source | None, facts: Facts, capabilities: Capabilities, effects: Effects
) -> tuple[Call, ...]:
    asleep = facts.unmapped()
    if not tags:
        return ()
    if tags & capabilities.stage("weights"):
        if asleep and not effects.sleeps_half_awake:
            why = f"{', '.join(sorted(asleep))} asleep: this version answers a sleep then, and does nothing"
            return (_not_sent(f"{why}; restore KV first, then release again"),)
        return (_sleep(tags, source, facts, capabilities),)
    if asleep:
        return (_not_sent("it releases KV alone only while everything else is mapped; restore the weights first"),)
    kv: call_effects.Effect = {}
    for tag in sorted(tags):
        kv |= call_effects.released(tag, facts, capabilities, kept=False)
    return (Call("release_kv_cache_memory", {}, {**kv, Fact.MAPPED: dict.fromkeys(tags, False)}),)


def _sleep(tags: frozenset[Tag], source: Source | None, facts: Facts, capabilities: Capabilities) -> Call:
    """The level follows from the source: weights that it does not replace stay on the host."""
    kept = [tag for tag in sorted(tags) if is_kept(capabilities.spec(tag), source)]
    effect: call_effects.Effect = {}
    for tag in sorted(tags):
        effect |= call_effects.released(tag, facts, capabilities, kept=tag in kept)
    effect |= {Fact.MAPPED: dict.fromkeys(tags, False), Fact.CACHE_FRESH: False}
    return Call("sleep", {"level": "1" if kept else "2", "mode": "keep"}, effect)


def _wakes(tags: frozenset[Tag], facts: Facts) -> tuple[Call, ...]:
    """A wake for each tag; the one that may leave nothing asleep opens the engine, and a pause closes it again."""
    calls: list[Call] = []
    asleep = facts.unmapped() | tags
    for tag in sorted(tags):
        asleep -= {tag}
        opened = {} if asleep else call_effects.resumed()
        calls.append(Call("wake_up", {"tags": [tag]}, {**call_effects.restored(tag), **opened}))
    if calls and not asleep:
        idle = {**call_effects.paused("keep"), Fact.RUNNING: 0}  # answered once no step runs and no request holds KV
        calls.append(Call("pause", pause_args("keep"), idle, repeatable=True))
    return tuple(calls)


def opens(call: Call) -> bool:
    """Whether this wake leaves nothing asleep, as far as is known, so that it resumes the scheduler."""
    return call.effect.get(Fact.ADMISSION) == "open"


def _from_disk(source: FromDisk, capabilities: Capabilities, effects: Effects) -> tuple[Call, ...]:
    """The contents are unknown until the reload was answered, and where there are labels until that has its own."""
    body = {"method": "reload_weights", "kwargs": {"weights_path": source.path, **source.options}}
    loaded = call_effects.loaded(source.version, capabilities)
    if not effects.labels:
        return (Call("collective_rpc", body, {**loaded, Fact.CACHE_FRESH: False}, repeatable=True),)
    reload = Call("collective_rpc", body, call_effects.loading(capabilities), repeatable=True)
    return reload, Call("update_weight_version", {"new_version": source.version}, loaded, repeatable=True)


def _pushed(source: Pushed, capabilities: Capabilities, effects: Effects) -> tuple[Call, ...]:
    """The push between its start and finish. Contents are unknown from the start until the finish is acknowledged."""
    start = Call("start_weight_update", {}, call_effects.loading(capabilities), push="begins")
    label = {"weight_version": source.version} if effects.labels else {}
    finish = Call("finish_weight_update", label, call_effects.loaded(source.version, capabilities), push="ends")
    return start, PUSH, finish


def _fresh(facts: Facts, capabilities: Capabilities) -> tuple[Call, ...]:
    """Drops what belongs to the old weights. Frozen requests keep theirs; what is asleep is dropped when KV is back."""
    if facts.paused_by == "freeze" or facts.unmapped() & capabilities.stage("kv"):
        return ()
    return RESET, RESET_ENCODERS


def _resume(facts: Facts) -> tuple[Call, ...]:
    asleep = sorted(tag for tag, mapped in facts.mapped.items() if mapped is not True)
    if asleep:
        return (
            _not_sent(f"{', '.join(asleep)} not known to be mapped: a resume would run on memory that is not there"),
        )
    return (Call("resume", effect=call_effects.resumed(), repeatable=True),)


def _not_sent(why: str) -> Call:
    return Call(NOT_SENT, {"why": why}, refusal_is_untouched=True)
