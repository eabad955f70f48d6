"""Requests that run in a server that was drained say that somebody else opened it, where nothing else explains them."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from engines import post, url
from lifecycle.adapters.sglang.answers import FLUSH_REFUSED
from lifecycle.adapters.sglang.capabilities import counts_requests_alone

from lifecycle import Engine, Facts, Fleet, FromDisk, Policy, State, Unreachable
from lifecycle.core.verdicts import REQUESTS_RUN
from lifecycle.testing.conformance.in_flight import until_running

LONG = {"text": "a long story", "sampling_params": {"max_new_tokens": 4000, "ignore_eos": True}}


async def let_in(process: Any, engine: Engine) -> None:
    """Somebody else opens the server, a request comes, and it is frozen."""
    await asyncio.to_thread(post, process, "/continue_generation", {})
    threading.Thread(target=_request, args=(process,), daemon=True).start()
    await until_running(engine, 1)
    await asyncio.to_thread(post, process, "/pause_generation", {"mode": "in_place"})


def _request(process: Any) -> None:
    try:
        post(process, "/generate", LONG)
    except OSError:  # the server is stopped while it waits
        return


@pytest.mark.slow
async def test_a_release_that_finds_requests_leaves_the_weights_unknown(start: Any, policy: Policy) -> None:
    process = start(arguments=("--step-delay-s", "0.02"))
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        engine = fleet["e"]
        await engine.pause()
        await engine.drain()
        await let_in(process, engine)
        with pytest.raises(Unreachable, match="requests run, and it was left idle and closed"):
            await engine.release(weights=FromDisk("/models/step-1", "v1"))
        assert engine.state is State.PAUSED
        assert engine.facts.contents == {"weights": None}
        await engine.recover()
        assert engine.state is State.PAUSED
        assert engine.facts.contents == {"weights": None}
        await engine.pause("keep")
        await engine.drain()
        assert engine.facts.contents == {"weights": None}


@pytest.mark.parametrize("detail", ["<html>bad request</html>", "Timed out waiting for idle state."])
async def test_only_its_own_refusal_to_flush_is_about_requests(start: Any, policy: Policy, detail: str) -> None:
    process = start()
    async with Fleet.connect([url(process, name="e")], policy=policy) as fleet:
        adapter: Any = fleet["e"].adapter
        answers, said = adapter._http.request, [f"{FLUSH_REFUSED}\n", detail]

        async def refused(*args: Any, **how: Any) -> Any:
            answer = await answers(*args, **how)
            return type(answer)(status=400, body=said.pop(0).encode())

        adapter._http.request = refused
        verdicts = [await adapter.prove_idle(Facts(), deadline_s=5.0) for _ in range(2)]
        adapter._idle.counts_requests_alone, said[:] = False, [FLUSH_REFUSED]
        verdicts.append(await adapter.prove_idle(Facts(), deadline_s=5.0))
        adapter._http.request = answers
    assert [verdict.figures[REQUESTS_RUN] for verdict in verdicts] == [True, False, False]


@pytest.mark.parametrize(
    ("info", "alone"),
    [
        ({}, True),
        ({"disaggregation_mode": "null", "tokenizer_worker_num": 1, "enable_hierarchical_cache": False}, True),
        ({"disaggregation_mode": "decode"}, False),
        ({"enable_hierarchical_cache": True}, False),
        ({"tokenizer_worker_num": 2}, False),
    ],
)
def test_what_else_a_refused_flush_may_be_about(info: dict[str, Any], alone: bool) -> None:
    assert counts_requests_alone(info) is alone
