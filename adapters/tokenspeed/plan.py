"""The calls that tokenspeed is sent for each command: a pure function of the command and the facts.

- A release names all its tags in one call, and is answered once the scheduler has drained: what is released by a second
  call finds a scheduler that the first one froze, and thaws it while memory is gone.
- A list of tags is never empty and never left out: a release of none freezes the engine, and a restore of none resumes
  the scheduler where nothing is released.
- The restore that leaves nothing released resumes the scheduler. The front end stays closed until
  `/continue_generation`, but requests that were past it when the pause came run: a pause follows, which is answered
  once they have ended.
- `/abort_request` for all ends with a resume, and opens the front end even where that fails: it is never sent.
- A pause over a release would thaw the scheduler: it is sent only where every tag is known to be mapped.
- `/flush_cache` is answered with success whatever came of it: nothing is believed of it, and it is not sent. A release
  of KV drops the prefix cache or waits; a push drops it as it is told to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.core.calls import PUSH, Call
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from lifecycle.core.facts import Fact, Facts, Tag
from lifecycle.core.sources import Pushed
from lifecycle.rules.evidence import targets

from .. import call_effects

RELEASE, RESTORE = "release_memory_occupation", "resume_memory_occupation"
PAUSE, CONTINUE = "pause_generation", "continue_generation"

#: The calls of a push, by the word of `target.push(HOW, ...)`.
PUSHES: Mapping[str, str] = {
    "init": "init_weights_update_group",
    "distributed": "update_weights_from_distributed",
    "mooncake": "update_weights_from_mooncake",
    "destroy": "destroy_weights_update_group",
}

#: A call that would do nothing, or harm. It is not sent: it stands in a plan to be refused with its reason.
NOT_SENT = "not_sent"

#: The order in which the engine restores tags, whichever a call names first.
ORDER = ("weights", "kv_cache")


def plan(command: Command, facts: Facts, capabilities: Capabilities) -> tuple[Call, ...]:
    """The calls of a command, in order; empty where nothing needs to be sent."""
    acted_on = targets(command, facts, capabilities)
    match command:
        case Pause():
            return (_pause(facts),)
        case Drain():
            return ()
        case Release():
            return (_release(acted_on, facts, capabilities),) if acted_on else ()
        case RestoreWeights() | RestoreKV():
            return _restores(acted_on, facts)
        case UpdateWeights(source=Pushed() as source):
            return _pushed(source, capabilities)
        case UpdateWeights(source=source):
            return (_not_sent(f"tokenspeed loads no weights from {source}: push them"),)
        case Resume():
            return (_resume(facts),)
    raise TypeError(f"tokenspeed has no plan for {command}")


def push(how: str, args: Mapping[str, Any], version: str) -> Call:
    """One call of a push: `init`, `distributed`, `mooncake` or `destroy`, with the body of tokenspeed's endpoint."""
    if how not in PUSHES:
        raise ValueError(f"tokenspeed takes a push by {', '.join(map(repr, PUSHES))}, not {how!r}")
    loads = {"flush_cache": True, "weight_version": version} if how in ("distributed", "mooncake") else {}
    return Call(PUSHES[how], {**loads, **args})


def _pause(facts: Facts) -> Call:
    """A pause that fails opens the front end again: after a refusal nothing is known of admission."""
    why = thaws(facts)
    if why:
        return _not_sent(why)
    return Call(PAUSE, {"mode": "wait"}, call_effects.paused("wait"), repeatable=True)


def thaws(facts: Facts) -> str | None:
    """Why a pause may thaw the scheduler that a release has frozen; None where every tag is known to be mapped.

    Requests that it kept back would run on memory that is gone. Source: runtime/engine/pause.py, `request_drain`.
    """
    unmapped = sorted(facts.unmapped())
    if unmapped:
        return f"{', '.join(unmapped)} released: a pause would thaw its scheduler"
    unknown = sorted(tag for tag, mapped in facts.mapped.items() if mapped is None)
    if unknown or not facts.mapped:
        what = ", ".join(unknown) or "memory"
        return (
            f"whether {what} is released is not known, and a pause would thaw its scheduler over memory that is gone; "
            "where its sizes are known (the option sizes= of its URL), what is resident may tell"
        )
    return None


def _release(tags: frozenset[Tag], facts: Facts, capabilities: Capabilities) -> Call:
    """A refusal names what is wrong and changes nothing, so that a second one does no harm either."""
    effect: dict[Fact, Any] = {Fact.RUNNING: 0}
    for tag in _ordered(tags):
        kept = capabilities.spec(tag).on_release == "kept"
        effect |= call_effects.released(tag, facts, capabilities, kept=kept)
    effect |= {Fact.MAPPED: dict.fromkeys(tags, False)}
    return Call(RELEASE, {"tags": _ordered(tags)}, effect, repeatable=True, refusal_is_untouched=True)


def _restores(tags: frozenset[Tag], facts: Facts) -> tuple[Call, ...]:
    """A restore for each tag. Where it may leave nothing released, requests that were held may run, until the pause."""
    calls: list[Call] = []
    released = facts.unmapped() | tags
    for tag in _ordered(tags):
        released -= {tag}
        effect = dict(call_effects.restored(tag))
        effect |= {Fact.CACHE_FRESH: True} if tag == "kv_cache" else {}  # dropped by its release, and none was built
        effect |= {} if released else {Fact.RUNNING: None}
        calls.append(Call(RESTORE, {"tags": [tag]}, effect, repeatable=True, refusal_is_untouched=True))
    if calls and not released:
        idle = {**call_effects.paused("wait"), Fact.RUNNING: 0}  # answered once the scheduler has drained
        calls.append(Call(PAUSE, {"mode": "wait"}, idle, repeatable=True))
    return tuple(calls)


def _resume(facts: Facts) -> Call:
    released = sorted(tag for tag, mapped in facts.mapped.items() if mapped is not True)
    if released:
        return _not_sent(f"{', '.join(released)} not known to be mapped: its scheduler would not be resumed")
    return Call(CONTINUE, effect=call_effects.resumed(), repeatable=True)


def _pushed(source: Pushed, capabilities: Capabilities) -> tuple[Call, ...]:
    """The push, after the weights were labelled as being replaced: there is no call that begins one.

    So contents are unknown from the label on, also to whoever comes after a driver that ended meanwhile.
    """
    begun = {"new_version": f"being-replaced-by-{source.version}"}
    effect = call_effects.loading(capabilities)
    label = Call("update_weight_version", begun, effect, repeatable=True, refusal_is_untouched=True)
    loaded = {**call_effects.loaded(source.version, capabilities), Fact.CACHE_FRESH: True}
    return label, Call(PUSH.name, effect=loaded)


def _ordered(tags: frozenset[Tag]) -> list[Tag]:
    return sorted(tags, key=ORDER.index)


def _not_sent(why: str) -> Call:
    return Call(NOT_SENT, {"why": why}, refusal_is_untouched=True)
