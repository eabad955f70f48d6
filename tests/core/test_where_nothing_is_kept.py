"""An engine without store, lease and journal: nothing is put into words for nobody, and no call waits for others."""

from __future__ import annotations

import asyncio

import pytest
from rig import V1

from lifecycle import Engine, State
from lifecycle.core.calls import Call, Reply
from lifecycle.core.record import Intent
from lifecycle.engine.call import joined, send
from lifecycle.engine.session import Session
from lifecycle.testing import QUICK, ScriptedAdapter


@pytest.fixture(autouse=True)
def _no_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every driver in a test has one, in which the rules of journals are checked."""
    monkeypatch.setattr(Session, "journal_file", lambda session: None)


async def engine_alone() -> Engine:
    adapter = ScriptedAdapter("e")
    return await Engine(adapter, name="e", probe=adapter.probe, policy=QUICK, lease=None).connect()


async def test_a_call_is_sent_in_the_turn_in_which_it_is_asked_for() -> None:
    engine, turns = await engine_alone(), list[int]()

    async def answers_at_once(call: Call, *, deadline_s: float) -> Reply:
        return Reply("done")

    engine.adapter.send = answers_at_once
    asyncio.get_running_loop().call_soon(turns.append, 1)
    await send(engine._session, Call("push_tensor"), deadline_s=1.0)
    assert turns == []


async def test_no_intent_is_made() -> None:
    engine, intents = await engine_alone(), list[Intent | None]()
    really_send = engine.adapter.send

    async def looked(call: Call, *, deadline_s: float) -> Reply:
        intents.append(engine.record.uncertain.intent)
        reply: Reply = await really_send(call, deadline_s=deadline_s)
        return reply

    engine.adapter.send = looked
    await engine.pause()
    await engine.drain()
    await engine.release(weights=V1)
    assert intents == [None] * 3


async def test_who_drives_it_is_not_put_into_words() -> None:
    engine = await engine_alone()
    await engine.pause()
    assert engine._session.owner._driver is None
    assert engine._session.owner.driver.who.endswith("engine e)")
    assert engine._session.owner.driver is engine._session.owner.driver


async def test_a_cycle_ends_as_it_does_where_all_is_kept() -> None:
    engine = await engine_alone()
    await engine.pause()
    await engine.drain()
    await engine.release(weights=V1)
    assert engine.memory_is_free
    await engine.restore_weights()
    assert engine.conditions["memory_returned"].verdict.word == "pending"
    await engine.update_weights(V1, force=True)
    await engine.restore_kv()
    await engine.resume()
    assert engine.state is State.SERVING


async def test_who_waits_for_an_effect_and_gives_up_is_told_so_also_where_it_failed() -> None:
    effect: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(joined(effect))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done(), "the effect has not ended"
    effect.set_exception(OSError("it broke"))
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_an_effect_that_failed_says_how_to_whom_waited() -> None:
    effect: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    effect.set_exception(OSError("it broke"))
    with pytest.raises(OSError, match="it broke"):
        await joined(effect)
