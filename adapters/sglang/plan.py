"""The calls that SGLang is sent for each command: a pure function of the command and the facts.

Source: sglang 0.5.23, measured.

- Every request has a body, since one without is refused.
- A release names only mapped tags and a restore only released ones: releasing a tag twice, or resuming one that is
  mapped, kills the server.
- The mode `keep` is SGLang's retract. After in_place, frozen requests still hold memory, and a release kills the
  server.
- Its own abort asks once a second whether all requests have ended. A retract puts the running ones into the queue at
  once, where an abort of all requests ends them with what they have generated. A request that reaches the scheduler
  after that waits there until the continue, as those wait that come while it is paused.
- Tensors are taken between `begin_weight_update` and `end_weight_update` only. A second begin is refused until the end,
  whoever began, so a push that failed is ended all the same: a session left open makes every later push fail. Before
  0.5.21 there are no sessions: a flush before and one after the push stand for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.core.calls import PUSH, Call
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command, Drain, Pause, Release, RestoreKV, RestoreWeights, Resume, UpdateWeights
from lifecycle.core.facts import Fact, Facts, PauseMode, Tag
from lifecycle.core.sources import FromDisk, Pushed
from lifecycle.rules.evidence import targets

from .. import call_effects

MODES: Mapping[PauseMode, str] = {"abort": "abort", "wait": "abort", "keep": "retract", "freeze": "in_place"}

#: The order in which tags are released; they are restored in reverse. SGLang accepts any order. KV comes first, since
#: its release drops the prefix cache.
RELEASE_ORDER = ("kv_cache", "weights", "cuda_graph")

#: The call that ends a push which failed. It is `/end_weight_update`, and done also where no session is open.
CLOSE_PUSH = "close_weight_update"

#: What SGLang says where a session is open, or none is. Source: sglang 0.5.23, weight_updater.py.
SESSION_OPEN, NO_SESSION = "session is already open", "no weight-update session is open"

FLUSH = Call("flush_cache", effect={Fact.CACHE_FRESH: True}, repeatable=True, refusal_is_untouched=True)


def plan(
    command: Command, facts: Facts, capabilities: Capabilities, *, retracts: bool = False, sessions: bool = True
) -> tuple[Call, ...]:
    """The calls of a command, in order; empty where nothing needs to be sent.

    `retracts`: a pause by abort is a retract and an abort of all requests. `sessions`: there is `begin_weight_update`.
    """
    acted_on = targets(command, facts, capabilities)
    match command:
        case Pause(mode="abort") if retracts:
            return _pause("keep") + ABORT_ALL
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
            return _pushed(source, capabilities) if sessions else _pushed_without_session(source, capabilities)
        case Resume():
            return (Call("continue_generation", effect=call_effects.resumed(), repeatable=True),)
    raise TypeError(f"SGLang has no plan for {command}")


def push(how: str, args: Mapping[str, Any], version: str) -> Call:
    """One call of a push: `tensor` or `distributed`, with the arguments of SGLang's endpoint of that name."""
    if how not in ("tensor", "distributed"):
        raise ValueError(f"SGLang takes a push by 'tensor' or 'distributed', not {how!r}")
    body = {"flush_cache": False, "weight_version": version, **args}
    return Call(f"update_weights_from_{how}", body)


def close_push(capabilities: Capabilities) -> Call:
    """Ends a push that failed: its session is closed, and what it left in the weights is unknown."""
    effect = call_effects.loading(capabilities)
    return Call(CLOSE_PUSH, {}, effect, repeatable=True, refusal_is_untouched=True, push="ends")


def explained(call: Call, detail: str) -> str:
    """What the server said about a call that it refused, and what that means."""
    if call.push == "begins" and SESSION_OPEN in detail:
        return (
            f"{detail} (an earlier push, of this program or another, was never ended; this one ends it in failing, so "
            "push again, or load from disk)"
        )
    return detail


#: Ends what a retract has put into the queue. The engine is paused as by abort then: it has none of its requests.
ABORT_ALL = (
    Call(
        "abort_request",
        {"abort_all": True},
        {Fact.PAUSED_BY: "abort", Fact.RUNNING: None},
        repeatable=True,
        refusal_is_untouched=True,
    ),
)


def _pause(mode: PauseMode) -> tuple[Call, ...]:
    effect = call_effects.paused(mode)
    call = Call("pause_generation", {"mode": MODES[mode]}, effect, repeatable=True, refusal_is_untouched=True)
    waiting = Call("await_idle", repeatable=True, refusal_is_untouched=True)
    return (waiting, call) if mode == "wait" else (call,)


def _release(tag: Tag, facts: Facts, capabilities: Capabilities) -> Call:
    kept = capabilities.spec(tag).on_release == "kept"
    effect = call_effects.released(tag, facts, capabilities, kept=kept)
    return Call("release_memory_occupation", {"tags": [tag]}, effect)


def _restore(tag: Tag) -> Call:
    return Call("resume_memory_occupation", {"tags": [tag]}, call_effects.restored(tag))


def _from_disk(source: FromDisk, facts: Facts, capabilities: Capabilities) -> Call:
    flush = facts.paused_by != "freeze"  # with frozen requests the flush would fail after the weights were replaced
    body = {"model_path": source.path, "weight_version": source.version, "flush_cache": flush, **source.options}
    effect = {**call_effects.loaded(source.version, capabilities), Fact.CACHE_FRESH: flush}
    return Call("update_weights_from_disk", body, effect, repeatable=True)


def _pushed(source: Pushed, capabilities: Capabilities) -> tuple[Call, ...]:
    """The push between its begin and end. The contents are unknown from the begin until the end is acknowledged."""
    begin = Call("begin_weight_update", {}, call_effects.loading(capabilities), push="begins")
    end = Call("end_weight_update", {}, call_effects.loaded(source.version, capabilities), push="ends")
    return begin, PUSH, end, FLUSH


def _pushed_without_session(source: Pushed, capabilities: Capabilities) -> tuple[Call, ...]:
    """The push between two flushes, which end nothing on the server: what is known of the contents hangs on them."""
    begin = Call("flush_cache", {}, call_effects.loading(capabilities), push="begins")
    loaded = {**call_effects.loaded(source.version, capabilities), Fact.CACHE_FRESH: True}
    return begin, PUSH, Call("flush_cache", {}, loaded, push="ends")


def _ordered(tags: frozenset[Tag]) -> list[Tag]:
    return sorted(tags, key=lambda tag: (RELEASE_ORDER.index(tag) if tag in RELEASE_ORDER else 99, tag))
