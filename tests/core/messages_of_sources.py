"""Messages about where weights come from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from advice_text import ways_in
from messages import BAD, POLICY, Met, case, engine_in, met
from rig import V2, put

from lifecycle import Fleet, FromDisk, Pushed, State
from lifecycle.testing import (
    REJECTED_AFTER,
    ScriptedAdapter,
)

# sources


@case
async def an_onload_where_no_source_is_known() -> Met:
    engine = await engine_in(State.RELEASED)
    put(engine, desired=replace(engine.desired, source=None, version=None))
    fleet = Fleet([engine], policy=POLICY)
    found = await met(engine, fleet.onload(), fleet=fleet)
    assert engine.adapter.journal.calls(engine.name) == [], "it is refused before any call"
    assert "weights=" in found.message
    assert "--weights" in found.message
    return found


@case
async def an_onload_of_what_another_process_was_to_push() -> Met:
    engine = await engine_in(State.DRAINED)
    await engine.release(weights=Pushed(None, "v3").bind(_never))
    put(engine, desired=replace(engine.desired, source=Pushed(None, "v3")))
    fleet = Fleet([engine], policy=POLICY)
    return await met(engine, fleet.onload(), fleet=fleet)


async def _never(engines: object) -> None:
    raise RuntimeError("the trainer has no weights yet")


@case
async def an_onload_whose_trainer_fails() -> Met:
    engine = await engine_in(State.DRAINED)
    await engine.release(weights=Pushed(_never, "v3"))
    fleet = Fleet([engine], policy=POLICY)
    return await met(engine, fleet.onload(), fleet=fleet)


@case
async def an_onload_with_other_weights_of_one_that_serves() -> Met:
    engine = await engine_in(State.SERVING)
    fleet = Fleet([engine], policy=POLICY)
    return await met(engine, fleet.onload(weights=V2), fleet=fleet)


def _refuses_bad(adapter: ScriptedAdapter) -> None:
    """The engine refuses one checkpoint, every time, and loads all others."""
    perform = adapter._perform

    async def performed(call: Any, deadline_s: float) -> Any:
        if call.name == "load" and call.args["path"] == BAD.path:
            adapter.script("load", REJECTED_AFTER)
        return await perform(call, deadline_s)

    adapter._perform = performed  # type: ignore[method-assign]


async def _with_a_wrong_checkpoint(**caps: Any) -> Met:
    engine = await engine_in(State.SERVING, caps=caps)
    _refuses_bad(engine.adapter)
    fleet = Fleet([engine], policy=POLICY)
    await fleet.offload(weights=BAD)
    return await met(engine, fleet.onload(), fleet=fleet)


@case
async def a_wrong_checkpoint_in_a_fresh_process() -> Met:
    return await _with_a_wrong_checkpoint()


@case
async def a_wrong_checkpoint_in_a_process_that_tells_its_launch() -> Met:
    found = await _with_a_wrong_checkpoint(launch_source=FromDisk("/models/launch", "v0"))
    assert ways_in(found.message)[1].call == "fleet.onload(weights=FromDisk('/models/launch', 'v0'), engines=['e'])"
    return found


@case
async def a_wrong_checkpoint_that_is_recovered_first() -> Met:
    found = await _with_a_wrong_checkpoint()
    recovered = (await found.fleet.recover(engines=["e"]))["e"]
    return replace_message(found, str(recovered))


@case
async def a_label_that_is_not_that_of_the_checkpoint() -> Met:
    engine = await engine_in(State.RELEASED)
    engine.adapter.engine.false_label = "v7"
    fleet = Fleet([engine], policy=POLICY)
    found = await met(engine, fleet.onload(), fleet=fleet)
    engine.adapter.engine.false_label = None
    return found


def replace_message(found: Met, message: str) -> Met:
    return Met(found.fleet, found.engine, message, found.heal)
