"""A verb that somebody else cancelled, or to which a rank does not answer, may have been carried out: it is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from lifecycle.adapters.declared import Verb
from test_declaration import BOTH
from test_declared_calls import driven, released_by

from lifecycle import Pending, Unmeasurable
from lifecycle.core.calls import Call
from lifecycle.core.facts import Facts
from lifecycle.core.observation import Probe


async def cancelled(*_: Any) -> None:
    """As a call ends whose HTTP client, or whose actor's loop, was closed by its owner."""
    raise asyncio.CancelledError


async def test_it_is_lost_and_nothing_is_sent_before_the_barrier() -> None:
    adapter, reply = await released_by(cancelled, refusal_is_untouched=True)
    assert (reply.outcome, reply.refused) == ("lost", False)
    assert "cancelled, by others than its caller" in reply.detail
    assert not await adapter.barrier(deadline_s=1.0), "nothing says that it does not run still"


async def test_the_barrier_that_was_declared_ends_it() -> None:
    adapter = driven(release=Verb(call=cancelled, effects=BOTH, name="release"), barrier=lambda: True)
    assert (await adapter.send(Call("release"), deadline_s=1.0)).outcome == "lost"
    assert await adapter.barrier(deadline_s=1.0)


@pytest.mark.parametrize("silent", [asyncio.CancelledError(), ConnectionError("reset"), TimeoutError("30 s")], ids=repr)
async def test_ranks_that_do_not_answer_have_not_refused(silent: BaseException) -> None:
    async def rank(error: BaseException) -> None:
        raise error

    adapter, reply = await released_by(lambda: [rank(silent), rank(ValueError("no such tag"))])
    assert reply.outcome == "lost"
    assert "rank 1: ValueError: no such tag" in reply.detail
    assert not await adapter.barrier(deadline_s=1.0)
    adapter, reply = await released_by(lambda: [rank(silent), rank(silent)])
    assert reply.outcome == "lost"


async def test_a_question_that_was_cancelled_says_nothing() -> None:
    adapter = driven(answer=cancelled, running=cancelled)
    token = await adapter.answers(Probe(), deadline_s=1.0)
    assert isinstance(token, Pending)
    assert "it was cancelled" in token.reason
    assert isinstance(await adapter.prove_idle(Facts(), deadline_s=1.0), Unmeasurable)
