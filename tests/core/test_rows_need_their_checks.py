"""Each guard and each proof of each row, by itself: with only that one spoiled the command is refused, or fails.

So a guard or proof that is taken out of a row, or made to pass always, fails the test of that name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from by_hand import CHECKS
from rig import V1, V2, believing, engine_in, put, sent

from lifecycle import (
    Command,
    Drain,
    Engine,
    Fact,
    FromDisk,
    Grade,
    GuardRefused,
    NotProved,
    Pause,
    Refuted,
    Release,
    RestoreKV,
    RestoreWeights,
    Resume,
    State,
    UpdateWeights,
)
from lifecycle.core.readings import Reading
from lifecycle.engine import attempt
from lifecycle.testing import LOST

GIB = 1 << 30
NO = Refuted(reason="spoiled by the test")

COMMANDS: dict[str, Command] = {
    "pause": Pause(),
    "drain": Drain(),
    "release": Release(None, V1),
    "restore_weights": RestoreWeights(),
    "update_weights": UpdateWeights(V2),
    "restore_kv": RestoreKV(),
    "resume": Resume(),
}

Patch = Callable[[Any, str, Any], None]


def shown(patch: Patch, after: int, **parts: Any) -> None:
    """From the gathering after so many on, the evidence has these parts, whatever was asked for."""
    gather, count = attempt.gather, iter(range(1000))

    async def spoiled(*asked: Any, **how: Any) -> Any:
        evidence = await gather(*asked, **how)
        seen = {"observed": replace(evidence.observed, admission="open")} if "admission" in parts else parts
        return evidence if next(count) < after else replace(evidence, **seen)

    patch(attempt, "gather", spoiled)


def labelled_otherwise_by_the_load(engine: Engine, patch: Patch) -> None:
    """Before the load it has the label that it is known by: another one would deny that."""
    send = engine.adapter.send

    async def sent_and_labelled(call: Any, **how: Any) -> Any:
        reply = await send(call, **how)
        if call.name == "load":
            engine.adapter.engine.false_label = "v7"
        return reply

    patch(engine.adapter, "send", sent_and_labelled)


def without_memory_saver(engine: Engine, patch: Patch) -> None:
    patch(engine._session, "_capabilities", replace(engine.capabilities, memory_saver=False))


def only_remembering(engine: Engine, patch: Patch) -> None:
    """Its mapping is only remembered, and all that it holds is resident, or nothing where all should be.

    What it held before was not read: bytes that went since would say that somebody else acted, before any guard.
    """
    calibration = replace(engine.record.calibration, reading_all_mapped=None, reading_all_released=None)
    facts = engine.facts.learn({Fact.MAPPED: {}}, Grade.ASSERTED, cause="remembered")
    put(engine, facts=facts, calibration=calibration, conditions={})
    held_gib = 12 if engine.facts.unmapped() else 0
    engine.adapter.probe.always = Reading({"gpu-0": held_gib * GIB}, (), "a test")


def of_few_bytes(engine: Engine, patch: Patch) -> None:
    few = tuple(replace(spec, expected_bytes=1 << 20) for spec in engine.capabilities.tags)
    patch(engine._session, "_capabilities", replace(engine.capabilities, tags=few))


#: How a guard alone is made to refuse: what is done to the engine, and the command if it is another one.
GUARDS: dict[str, tuple[Callable[[Engine, Patch], None], Command | None]] = {
    "mode_supported": (lambda engine, patch: None, Pause("nap")),  # type: ignore[arg-type]
    "derouted": (lambda engine, patch: patch(engine._session, "has_router", True), None),
    "mode_change_safe": (lambda engine, patch: believing(engine, paused_by="freeze"), None),
    "mode_drains": (lambda engine, patch: believing(engine, paused_by="freeze"), None),
    "still_idle": (lambda engine, patch: engine.adapter.always("prove_idle", LOST), None),
    "memory_saver_enabled": (without_memory_saver, None),
    "hook_mode_safe": (lambda engine, patch: shown(patch, 0, hook_mode=NO), None),
    "tags_releasable": (lambda engine, patch: None, Release(frozenset({"kv"}), V1)),
    "weights_recoverable": (lambda engine, patch: None, Release(None, None)),
    "bytes_visible": (of_few_bytes, None),
    "host_has_room": (lambda engine, patch: shown(patch, 0, host_room=NO), None),
    "device_has_room": (lambda engine, patch: shown(patch, 0, device_room=NO), None),
    "cotenants_within_budget": (lambda engine, patch: shown(patch, 0, cotenants=NO), None),
    "source_ready": (lambda engine, patch: None, UpdateWeights(FromDisk("/models/step-2", " "))),
    "live_update_supported": (lambda engine, patch: believing(engine, paused_by="abort"), None),
    "mapping_borne_out": (only_remembering, None),
    "all_mapped": (lambda engine, patch: believing(engine, mapped={"kv_cache": None}), None),
    "weights_valid": (lambda engine, patch: believing(engine, contents={"weights": None}), None),
    "cache_fresh": (lambda engine, patch: believing(engine, cache_fresh=None), None),
}


def answered_without(engine: Engine, patch: Patch, **effect: Any) -> None:
    """Its calls are acknowledged, and their effect on the facts is this instead."""
    plan = engine.adapter.plan
    changed = {Fact(name): value for name, value in effect.items()}

    def spoiled(command: Command, facts: Any) -> Any:
        return tuple(
            replace(call, effect={fact: changed.get(fact, value) for fact, value in call.effect.items()})
            for call in plan(command, facts)
        )

    patch(engine.adapter, "plan", spoiled)


def too_much_stays(engine: Engine, patch: Patch) -> None:
    """All that was expected comes back, and more than the threshold stays."""
    engine.adapter.probe.script(Reading({"gpu-0": 40 * GIB}, (), "a test"))
    engine.adapter.probe.always = Reading({"gpu-0": 28 * GIB}, (), "a test")


#: How a proof alone is made to fail.
PROOFS: dict[str, Callable[[Engine, Patch], None]] = {
    "admission_closed": lambda engine, patch: shown(patch, 1, admission="open"),
    "idle": lambda engine, patch: shown(patch, 1, idle=NO),
    "tags_unmapped": lambda engine, patch: answered_without(engine, patch, mapped={}),
    "memory_returned": too_much_stays,
    "weights_mapped": lambda engine, patch: answered_without(engine, patch, mapped={}),
    "kv_mapped": lambda engine, patch: answered_without(engine, patch, mapped={}),
    "weights_match": lambda engine, patch: labelled_otherwise_by_the_load(engine, patch),
    "cache_fresh": lambda engine, patch: answered_without(engine, patch, cache_fresh=False),
    "answers": lambda engine, patch: shown(patch, 1, answer=NO),
}


async def ready(command: str, source: State) -> Engine:
    """An engine in which this command would succeed."""
    engine = await engine_in(source)
    if command == "restore_kv":
        await engine.update_weights(V1)
    if command == "update_weights" and source is State.PAUSED:
        await engine.resume()
        await engine.pause("freeze")
    engine.adapter.journal.clear()
    return engine


ROWS = [(command, State(source)) for source, command in CHECKS]
GUARDED = [(command, State(source), name) for (source, command), (names, _) in CHECKS.items() for name in names.split()]
PROVED = [(command, State(source), name) for (source, command), (_, names) in CHECKS.items() for name in names.split()]


@pytest.mark.parametrize(("command", "source"), ROWS)
async def test_the_row_succeeds_where_nothing_is_spoiled(command: str, source: State) -> None:
    engine = await ready(command, source)
    await engine.execute(COMMANDS[command], deadline_s=2)


@pytest.mark.parametrize(("command", "source", "guard"), GUARDED)
async def test_each_guard_refuses_alone(
    command: str, source: State, guard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await ready(command, source)
    spoil, other = GUARDS[guard]
    spoil(engine, monkeypatch.setattr)
    with pytest.raises(GuardRefused) as refused:
        await engine.execute(other or COMMANDS[command], deadline_s=2)
    assert list(refused.value.reasons) == [guard]
    assert engine.state is source
    assert sent(engine) == []


@pytest.mark.parametrize(("command", "source", "proof"), PROVED)
async def test_each_proof_fails_alone(command: str, source: State, proof: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await ready(command, source)
    PROOFS[proof](engine, monkeypatch.setattr)
    with pytest.raises(NotProved) as failed:
        await engine.execute(COMMANDS[command], deadline_s=0.1)
    assert list(failed.value.verdicts) == [proof]
    assert failed.value.settled is engine.state
    assert engine.state.stable
