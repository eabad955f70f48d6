"""What hypothesis draws: shapes of engines, commands, and faults of their calls."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from hypothesis import strategies as st

from lifecycle import Engine, FromDisk, Kept, Pushed
from lifecycle.core.facts import TagSpec
from lifecycle.testing import (
    CUDA_GRAPH,
    DIE,
    DIE_AFTER,
    HANG,
    HANG_AFTER,
    HANG_LATE,
    KEPT_WEIGHTS,
    KV_CACHE,
    LATE,
    LIE,
    LOST,
    LOST_AFTER,
    REJECTED,
    REJECTED_AFTER,
    RESTART,
    RESTART_AFTER,
    WEIGHTS,
    Act,
    ScriptedAdapter,
)

GIB = 1 << 30
V1 = FromDisk("/models/step-1", "v1")
V2 = FromDisk("/models/step-2", "v2")
DRAFT = TagSpec("draft_weights", "weights", "discarded", 2 * GIB)
SMALL = TagSpec("small_kv", "kv", "discarded", 1 << 20)

SHAPES: dict[str, tuple[TagSpec, ...]] = {
    "weights and kv": (WEIGHTS, KV_CACHE),
    "kept weights and kv": (KEPT_WEIGHTS, KV_CACHE),
    "two weights, two kv": (WEIGHTS, DRAFT, KV_CACHE, CUDA_GRAPH),
    "weights alone": (WEIGHTS,),
    "kv too small to see": (WEIGHTS, SMALL),
}

#: A late effect that takes place before the next call, unless a barrier comes first.
LATE_BEFORE_THE_NEXT = Act("lost", "late", after_calls=1, detail="the connection broke")
ACTS: dict[str, Act] = {
    "LIE": LIE,
    "REJECTED": REJECTED,
    "REJECTED_AFTER": REJECTED_AFTER,
    "LOST": LOST,
    "LOST_AFTER": LOST_AFTER,
    "LATE": LATE,
    "LATE_BEFORE_THE_NEXT": LATE_BEFORE_THE_NEXT,
    "HANG": HANG,
    "HANG_AFTER": HANG_AFTER,
    "HANG_LATE": HANG_LATE,
    "DIE": DIE,
    "DIE_AFTER": DIE_AFTER,
    "RESTART": RESTART,
    "RESTART_AFTER": RESTART_AFTER,
}
CALLS = ("pause", "resume", "flush", "release", "restore", "load", "begin_update", "push_tensor", "end_update")
ASKS = ("observe", "prove_idle", "answers", "barrier")

faults = st.tuples(st.sampled_from(CALLS), st.sampled_from(sorted(ACTS))) | st.tuples(
    st.sampled_from(ASKS), st.sampled_from(["LOST", "HANG", "DIE", "RESTART"])
)
acts = st.sampled_from(sorted(ACTS))
some_faults = st.just([]) | st.lists(faults, min_size=1, max_size=3)
deadlines_s = st.sampled_from([0.4, 4.0])
#: After how many turns of the loop (int) or seconds (float) the command is cancelled; None: never.
patience = st.none() | st.none() | st.integers(1, 40) | st.sampled_from([0.1, 0.35, 1.0])


def script(adapter: ScriptedAdapter, faults: Sequence[tuple[str, str]]) -> None:
    """Scripts the drawn faults. A false reply to a pause is left out where no observation could show it."""
    for name, act in faults:
        unseen = name == "pause" and act in ("LIE", "REJECTED_AFTER") and not adapter.reports_admission
        if name != "push" and not unseen:
            adapter.script(name, ACTS[act])


async def push(engines: Sequence[Engine]) -> None:
    """The trainer sends its weights to every engine."""
    for engine in engines:
        await engine.push("tensor")


async def push_half(engines: Sequence[Engine]) -> None:
    """The trainer raises after the first engine."""
    await engines[0].push("tensor")
    raise RuntimeError("the trainer broke")


async def push_nothing(engines: Sequence[Engine]) -> None:
    """The trainer sends nothing."""


Verb = Callable[[Engine, float], Coroutine[Any, Any, object]]

COMMANDS: dict[str, Verb] = {
    "pause": lambda engine, limit: engine.pause(deadline_s=limit),
    "pause keep": lambda engine, limit: engine.pause("keep", deadline_s=limit),
    "pause freeze": lambda engine, limit: engine.pause("freeze", deadline_s=limit),
    "drain": lambda engine, limit: engine.drain(deadline_s=limit),
    "release": lambda engine, limit: engine.release(weights=V1, deadline_s=limit),
    "release kv": lambda engine, limit: engine.release(engine.capabilities.stage("kv") or None, deadline_s=limit),
    "release weights": lambda engine, limit: engine.release(
        engine.capabilities.stage("weights"), weights=V2, deadline_s=limit
    ),
    "release kept": lambda engine, limit: engine.release(weights=Kept(), deadline_s=limit),
    "restore_weights": lambda engine, limit: engine.restore_weights(deadline_s=limit),
    "update v1": lambda engine, limit: engine.update_weights(V1, force=True, deadline_s=limit),
    "update v2": lambda engine, limit: engine.update_weights(V2, deadline_s=limit),
    "push v3": lambda engine, limit: engine.update_weights(Pushed(push, "v3"), deadline_s=limit),
    "push half": lambda engine, limit: engine.update_weights(Pushed(push_half, "v4"), deadline_s=limit),
    "push nothing": lambda engine, limit: engine.update_weights(Pushed(push_nothing, "v5"), deadline_s=limit),
    "restore_kv": lambda engine, limit: engine.restore_kv(deadline_s=limit),
    "resume": lambda engine, limit: engine.resume(deadline_s=limit),
}
