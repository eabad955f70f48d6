"""Which worker an engine is, and what goes wrong at a router, on a server that answers as the real ones do."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from aiohttp import web
from lifecycle.adapters.routers import WorkersRouter
from recorded import ENGINES, A, B, RecordedRouter, client

from lifecycle import ConfigurationError
from lifecycle.core.errors import RouterError
from lifecycle.core.ports import RoutesToWorkers, WorkerURL
from lifecycle.fleet.registry import router_for

KINDS = ["sglang-router", "smg", "vllm-router"]
EVERY = pytest.mark.parametrize("kind", KINDS)


# which worker an engine is


@EVERY
async def test_an_engine_that_may_be_listed_by_another_url_is_refused(kind: str) -> None:
    async with RecordedRouter(kind) as router:
        router.has("http://engine-0.pod:30000")
        asks = client(router, {"a": ENGINES["a"]})
        with pytest.raises(
            RouterError, match=r"does not list a \(sglang://10\.0\.0\.1:30000\).*it lists .*pod.*worker="
        ):
            await asks.close(["a"])
        assert await asks.is_open("a") is None
        for verb in (asks.check, asks.open):  # it would be a worker twice
            with pytest.raises(RouterError, match="worker="):
                await verb(["a"])
        assert len(router.open()) == 1
        asks.knows({"a": WorkerURL("http://engine-0.pod:30000", exact=True)})
        await asks.check(["a"])
        await asks.close(["a"])
        assert router.open() == []
        await asks.aclose()


@pytest.mark.parametrize("how", ["its URL is given", "it was removed here"])
async def test_an_engine_is_none_where_its_url_is_known(how: str) -> None:
    async with RecordedRouter("smg") as router:
        asks = client(router, {"a": WorkerURL(A, exact=how == "its URL is given")})
        if how == "it was removed here":
            router.has(A)
            await asks.close(["a"])
        router.has("http://engine-0.pod:30000")
        await asks.close(["a"])
        assert await asks.is_open("a") is False
        await asks.open(["a"])
        assert len(router.open()) == 2
        del router.workers[next(name for name, each in router.workers.items() if each["url"] == A)]
        if how == "it was removed here":  # it served since: somebody else may have given it another name there
            with pytest.raises(RouterError, match="worker="):
                await asks.close(["a"])
        await asks.aclose()


async def test_an_engine_that_somebody_else_added_again_may_have_another_url_later() -> None:
    async with RecordedRouter("smg") as router:
        router.has(A)
        asks = client(router, {"a": ENGINES["a"]})
        await asks.close(["a"])
        router.has(A)
        await asks.open(["a"])
        router.workers.clear()
        router.has("http://engine-0.pod:30000")
        with pytest.raises(RouterError, match="worker="):
            await asks.close(["a"])
        await asks.aclose()


async def test_an_engine_is_none_where_every_worker_is_another_engine() -> None:
    async with RecordedRouter("smg") as router:
        router.has(B)
        asks = client(router)
        await asks.close(["a"])
        assert await asks.is_open("a") is False
        assert router.open() == [B]
        await asks.aclose()


@EVERY
async def test_spellings_of_this_host_are_one(kind: str) -> None:
    async with RecordedRouter(kind) as router:
        router.has("http://localhost:30000/")
        asks = client(router, {"a": WorkerURL("loopback://127.0.0.1:30000")})
        await asks.close(["a"])
        assert router.open() == []
        await asks.open(["a"])
        assert router.open() == ["http://localhost:30000/"]  # as the router spelled it
        await asks.aclose()


async def test_ranks_of_one_engine_are_closed_together() -> None:
    async with RecordedRouter("sglang-router") as router:
        router.has(f"{A}@0"), router.has(f"{A}@1")
        asks = client(router)
        await asks.close(["a"])
        assert router.open() == []
        await asks.open(["a"])
        assert [each["url"] for each in router.bodies] == [A]
        await asks.aclose()


async def test_an_engine_of_which_it_was_not_told_is_an_error() -> None:
    async with RecordedRouter("smg") as router:
        asks = client(router, {})
        with pytest.raises(RouterError, match="was not told at which URL it reaches x"):
            await asks.close(["x"])
        await asks.aclose()


# what goes wrong


@EVERY
async def test_a_router_that_is_down(kind: str) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        asks = router_for(f"{kind}://127.0.0.1:{sock.getsockname()[1]}")
        assert isinstance(asks, WorkersRouter)
        asks.knows(ENGINES)
        for verb in (asks.close, asks.open, asks.check):
            with pytest.raises(RouterError, match=r"nothing listens there .*start it, or correct its URL"):
                await verb(["a"])
        assert await asks.is_open("a") is None
        assert await asks.in_flight("a") is None
        await asks.aclose()


@EVERY
async def test_a_key_that_is_refused(kind: str) -> None:
    async with RecordedRouter(kind, key="k") as router:
        router.has(A)
        asks = client(router, api_key="wrong")
        with pytest.raises(RouterError, match=r"refuses the key \(401\): give its URL api_key_env=NAME"):
            await asks.close(["a"])
        assert await asks.is_open("a") is None
        assert router.open() == [A]
        await asks.aclose()


@pytest.mark.parametrize(
    "wrong",
    [
        web.Response(status=404),
        web.Response(text="<html>"),
        web.json_response({"workers": {}}),
        web.json_response({"workers": ["http://a"]}),
        web.json_response([]),
    ],
    ids=["404", "html", "no list", "no entries", "list"],
)
async def test_a_server_that_is_no_such_router(wrong: web.Response) -> None:
    text, status, kind = wrong.text, wrong.status, wrong.content_type
    async with RecordedRouter(
        "smg", answer=lambda *_: web.Response(text=text, status=status, content_type=kind)
    ) as router:
        asks = client(router)
        with pytest.raises(RouterError, match="is no router that this library knows; is its URL that of an engine"):
            await asks.close(["a"])
        assert await asks.is_open("a") is None
        await asks.aclose()


@pytest.mark.parametrize("how", [{"hangs": frozenset({"GET"})}, {"drops": ["GET"] * 9}], ids=["hangs", "breaks"])
async def test_a_router_that_does_not_answer(how: dict[str, Any]) -> None:
    async with RecordedRouter("smg", **how) as router:
        asks = client(router, deadline_s="0.3")
        with pytest.raises(RouterError, match=r"GET /workers: (no answer in 0\.3 s|the connection broke).*is it up\?"):
            await asks.close(["a"])
        await asks.aclose()


@EVERY
async def test_an_addition_without_an_answer_is_confirmed_by_the_listing(kind: str) -> None:
    async with RecordedRouter(kind, loses=["POST"]) as router:
        router.has(A)
        asks = client(router)
        await asks.close(["a"])
        await asks.open(["a"])
        assert router.open() == [A]
        assert len(router.bodies) == 1
        await asks.aclose()


@EVERY
async def test_a_removal_and_an_addition_that_are_refused(kind: str) -> None:
    refusing = {"DELETE": False, "POST": False}

    def answer(method: str, path: str) -> web.Response | None:
        return web.Response(status=500, text="Job queue not initialized") if refusing.get(method) else None

    async with RecordedRouter(kind, answer=answer) as router:
        router.has(A)
        asks = client(router)
        refusing["DELETE"] = True
        with pytest.raises(RouterError, match=f"does not remove {A}: 500 Job queue not initialized"):
            await asks.close(["a"])
        refusing["DELETE"] = False
        await asks.close(["a"])
        refusing["POST"] = True
        with pytest.raises(RouterError, match="does not add a: 500 Job queue not initialized"):
            await asks.open(["a"])
        assert await asks.is_open("a") is False  # a refusal is no addition that may come about
        await asks.aclose()


# counts


@pytest.mark.parametrize(
    ("kind", "loads", "found"),
    [
        ("smg", [3], 3),
        ("smg", [0], 0),
        ("smg", [2, 1], 3),
        ("smg", [None], None),
        ("sglang-router", [3], 3),
        ("sglang-router", [0], None),
        ("vllm-router", [0], None),
        ("smg", [], None),
    ],
)
async def test_requests_in_flight(kind: str, loads: list[int | None], found: int | None) -> None:
    async with RecordedRouter(kind) as router:
        for rank, load in enumerate(loads):
            router.has(f"{A}@{rank}")["load"] = load
        asks = client(router)
        assert await asks.in_flight("a") == found
        await asks.aclose()


# configuration


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "nginx://127.0.0.1:80",
            r"no router 'nginx'; installed are sglang-router, smg, vllm-router;.*'lifecycle\.routers'",
        ),
        ("smg://127.0.0.1:80?deadline_s=nan", "deadline_s must be a finite number > 0, got 'nan'"),
        ("smg://127.0.0.1:80?deadline_s=soon", "deadline_s must be a finite number > 0, got 'soon'"),
        ("smg://127.0.0.1:80?policy=random", "unknown option 'policy'; it has api_key"),
        ("smg://127.0.0.1:80?api_key_env=NOT_SET_HERE", "api_key_env names NOT_SET_HERE, which is not set"),
        ("smg://127.0.0.1", "has no port"),
        ("127.0.0.1:80", "is no router URL"),
    ],
)
def test_wrong_urls(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        router_for(url)


@EVERY
def test_a_router_is_made_from_its_url(kind: str) -> None:
    router = router_for(f"{kind}://127.0.0.1:80?api_key=secret")
    assert isinstance(router, RoutesToWorkers)
    assert router.url == f"{kind}://127.0.0.1:80"
