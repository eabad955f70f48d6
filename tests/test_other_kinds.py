"""An engine of another kind than its URL says: what it is is asked for a short time, and never past the deadline."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from answering_server import AnsweringServer, Request, Shape
from lifecycle.adapters import kinds
from lifecycle.adapters.http import Answer, HttpClient
from lifecycle.adapters.sglang import SGLangAdapter
from lifecycle.adapters.tokenspeed import TokenspeedAdapter
from lifecycle.adapters.vllm import VLLMAdapter

from lifecycle import ConfigurationError
from lifecycle.nodes.address import parse

ADAPTERS: dict[str, Any] = {"sglang": SGLangAdapter, "vllm": VLLMAdapter, "tokenspeed": TokenspeedAdapter}

#: What each adapter reads first of a server.
OWN = {"sglang": "/server_info", "vllm": "/server_info", "tokenspeed": "/get_server_info"}

#: What each asks of it then.
ASKED = {
    "sglang": {"/load", "/get_server_info"},
    "vllm": {"/get_server_info"},  # whether it is SGLang, its own first read has told
    "tokenspeed": {"/server_info", "/load"},
}

#: What one kind answers and no other does, by path.
MARKS = {
    "/server_info": {"internal_states": []},
    "/load": {"server_load": 0},
    "/get_server_info": {"tokenspeed_version": "0.1.1"},
}


@dataclass(kw_only=True)
class OtherServer(AnsweringServer):
    """Some server: what it was told to answer, and 404 to all else; to `awaits` once all of them were asked for."""

    awaits: set[str] = field(default_factory=set)

    async def answer(self, request: Request, headers: dict[str, str]) -> Shape:
        while request.path in self.awaits and not self.awaits <= {each.path for each in self.seen}:  # noqa: ASYNC110 - a request of its own adds to it
            await asyncio.sleep(0.001)
        return 404, {"detail": "Not Found"}


async def refusal(server: OtherServer, scheme: str, *, deadline_s: float) -> tuple[str, float]:
    """What connecting says of it, and the seconds that this took."""
    async with server:
        adapter = ADAPTERS[scheme](parse(f"{scheme}://127.0.0.1:{server.port}"))
        begun = time.monotonic()
        try:
            with pytest.raises(ConfigurationError) as refused:
                await adapter.connect(deadline_s=deadline_s)
        finally:
            await adapter.aclose()
    return str(refused.value), time.monotonic() - begun


@pytest.mark.parametrize("scheme", ADAPTERS)
async def test_a_server_that_leaves_the_questions_of_its_kind_unanswered_is_refused_soon(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "READ_S", 0.1)
    server = OtherServer(hangs=ASKED[scheme])
    said, took_s = await refusal(server, scheme, deadline_s=4.0)
    assert "it answers as" not in said
    assert took_s < 2.0, "it was waited for to the deadline"


@pytest.mark.parametrize("scheme", ADAPTERS)
async def test_no_question_of_another_kind_outlasts_the_deadline(scheme: str) -> None:
    server = OtherServer(hangs=ASKED[scheme])
    _, took_s = await refusal(server, scheme, deadline_s=0.3)
    assert took_s < kinds.READ_S * 0.75


async def test_one_question_that_is_not_answered_hides_no_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "READ_S", 0.2)
    server = OtherServer(hangs={"/load"})
    server.script("GET /get_server_info", (200, MARKS["/get_server_info"]))
    said, _ = await refusal(server, "sglang", deadline_s=4.0)
    assert f"it answers as tokenspeed does: write tokenspeed://127.0.0.1:{server.port}" in said


@pytest.mark.parametrize("scheme", ADAPTERS)
async def test_each_question_is_asked_once_and_all_at_the_same_time(scheme: str) -> None:
    server = OtherServer(awaits=ASKED[scheme])
    server.script(f"GET {OWN[scheme]}", (404, {}))
    _, took_s = await refusal(server, scheme, deadline_s=30.0)
    assert took_s < kinds.READ_S * 0.75, "the second question waited for the answer to the first"
    assert sorted(each.path for each in server.seen if each.path in MARKS) == sorted({OWN[scheme]} | ASKED[scheme])


@pytest.mark.parametrize(
    "known",
    [Answer(status=None, error="no answer"), Answer(status=200, body=json.dumps(MARKS["/server_info"]).encode())],
)
async def test_a_server_that_does_not_answer_or_is_of_that_kind_is_no_other(known: Answer) -> None:
    async with OtherServer() as server:
        http = HttpClient(f"http://127.0.0.1:{server.port}")
        said = await kinds.other_kind("sglang", http, {"/server_info": known}, None, 5.0)
        await http.aclose()
    assert said == ""
    assert bool(server.seen) is (known.status is not None)
