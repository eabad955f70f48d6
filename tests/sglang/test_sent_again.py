"""Which requests of the adapter may be sent a second time: reads, and what harms nothing when it runs twice."""

from __future__ import annotations

from typing import Any

import pytest
from lifecycle.adapters.http import Answer
from lifecycle.adapters.sglang import SGLangAdapter
from lifecycle.adapters.sglang.checksums import read_checksums

from lifecycle import Call
from lifecycle.core.facts import Facts
from lifecycle.core.observation import Probe
from lifecycle.nodes.address import parse


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> tuple[SGLangAdapter, dict[str, Any]]:
    """An adapter, and what it says of each path whether a request there may be repeated."""
    made, said = SGLangAdapter(parse("sglang://127.0.0.1:1?checksum=true")), dict[str, Any]()

    async def request(method: str, path: str, *, repeatable: bool | None = None, **_: Any) -> Answer:
        said[path] = method == "GET" if repeatable is None else repeatable
        return Answer(200, b"{}")

    monkeypatch.setattr(made._http, "request", request)
    return made, said


@pytest.mark.parametrize("repeatable", [True, False])
async def test_a_call_as_its_plan_says(adapter: tuple[SGLangAdapter, dict[str, Any]], repeatable: bool) -> None:
    made, said = adapter
    await made.send(Call("release_memory_occupation", {"tags": ["weights"]}, repeatable=repeatable), deadline_s=1.0)
    assert said == {"/release_memory_occupation": repeatable}


async def test_what_only_asks(adapter: tuple[SGLangAdapter, dict[str, Any]]) -> None:
    made, said = adapter
    await made.prove_idle(Facts(), deadline_s=1.0)
    await made._token(Probe(), 1.0)
    await read_checksums(made._http, made._admin_key, 1.0)
    assert said == {"/flush_cache": True, "/generate": True, "/weights_checker": True}
