"""The client of `/workers`, on a server that answers as the real routers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from lifecycle.adapters.routers.workers import creation_of
from recorded import ENGINES, A, B, RecordedRouter, client

from lifecycle.core.errors import RouterError

KINDS = ["sglang-router", "smg", "vllm-router"]
EVERY = pytest.mark.parametrize("kind", KINDS)
WITH_SETTINGS = pytest.mark.parametrize("kind", KINDS[:2])


# closing and opening


@EVERY
async def test_what_is_closed_is_listed_no_more_and_what_is_opened_is_listed_again(kind: str) -> None:
    async with RecordedRouter(kind, removes_s=0.05) as router:
        router.has(A), router.has(B)
        asks = client(router)
        assert [await asks.is_open(name) for name in "ab"] == [True, True]
        await asks.close(["a", "b"])
        assert router.open() == []
        assert [await asks.is_open(name) for name in "ab"] == [False, False]
        await asks.open(["b"])
        assert router.open() == [B]
        await asks.open(["a", "b"])
        assert sorted(router.open()) == [A, B]
        assert len(router.bodies) == 2
        await asks.aclose()


@EVERY
async def test_closing_twice_and_opening_twice_ask_for_it_once(kind: str) -> None:
    async with RecordedRouter(kind) as router:
        router.has(A), router.has(B)
        asks = client(router)
        for _ in range(2):
            await asks.close(["a"])
        assert sum(each.startswith("DELETE") for each in router.asked) == 1
        for _ in range(2):
            await asks.open(["a"])
        assert len(router.bodies) == 1
        await asks.aclose()


async def test_a_worker_that_drains_is_closed_and_is_added_once_it_is_gone() -> None:
    async with RecordedRouter("smg", removes_s=0.3) as router:
        router.has(A)
        asks = client(router)
        await asks.close(["a"])
        assert [each["status"] for each in router.workers.values()] == ["draining"]
        assert await asks.is_open("a") is False
        assert router.bodies == []
        await asks.open(["a"])
        assert [each["status"] for each in router.workers.values()] == ["ready"]
        assert len(router.bodies) == 1  # none that was refused by 409
        await asks.aclose()


@EVERY
async def test_a_removal_that_is_not_confirmed_is_an_error(kind: str) -> None:
    async with RecordedRouter(kind, stuck=frozenset({"DELETE"})) as router:
        router.has(A)
        asks = client(router, deadline_s="0.3")
        with pytest.raises(RouterError, match=r"a is not removed after 0\.3 s.*GET /workers"):
            await asks.close(["a"])
        assert await asks.is_open("a") is True
        await asks.aclose()


@EVERY
async def test_an_addition_that_is_not_confirmed_is_an_error(kind: str) -> None:
    async with RecordedRouter(kind, stuck=frozenset({"POST"})) as router:
        router.has(A), router.has(B)
        asks = client(router, deadline_s="0.3")
        await asks.close(["a"])
        with pytest.raises(
            RouterError, match=r"does not list as healthy a.*does the router reach the engine\?"
        ) as error:
            await asks.open(["a"])
        if kind != "vllm-router":
            assert "(a: processing)" in str(error.value)
        assert await asks.is_open("a") is None  # it may come about yet
        with pytest.raises(RouterError, match=r"a is not removed .*still queued"):
            await asks.close(["a"])
        router.stuck = frozenset()
        router.jobs.clear()  # the addition has failed after all
        asks._deadline_s = 10.0
        await asks.open(["a"])
        await asks.close(["a"])
        assert await asks.is_open("a") is False
        await asks.aclose()


@WITH_SETTINGS
async def test_an_addition_that_comes_about_late_is_removed_when_it_is_closed(kind: str) -> None:
    async with RecordedRouter(kind, adds_s=0.6) as router:
        router.has(A), router.has(B)
        asks = client(router, deadline_s="0.3")
        await asks.close(["a"])
        with pytest.raises(RouterError, match="does not list as healthy"):
            await asks.open(["a"])
        await client(router, deadline_s="5").close(["a"])  # another process: it knows from the file
        assert router.open() == [B]
        assert [each.startswith("DELETE") for each in router.asked].count(True) == 2
        await asks.aclose()


@WITH_SETTINGS
async def test_an_addition_that_failed_holds_nothing_up(kind: str) -> None:
    async with RecordedRouter(kind, stuck=frozenset({"POST"})) as router:
        router.has(A), router.has(B)
        asks = client(router, deadline_s="0.2")
        await asks.close(["a"])
        with pytest.raises(RouterError):
            await asks.open(["a"])
        for job in router.jobs.values():
            job |= {"status": "failed", "message": "no such host"}
        await asks.close(["a"])
        assert await asks.is_open("a") is False
        await asks.aclose()


@WITH_SETTINGS
async def test_a_failed_removal_does_not_end_an_addition(kind: str) -> None:
    # measured on both: the removal of a worker that is not listed yet fails, and its addition goes on
    async with RecordedRouter(kind, stuck=frozenset({"POST"})) as router:
        router.has(A), router.has(B)
        asks = client(router, deadline_s="0.2")
        await asks.close(["a"])
        with pytest.raises(RouterError):
            await asks.open(["a"])
        for job in router.jobs.values():
            job |= {"job_type": "RemoveWorker", "status": "failed", "message": "not found"}
        with pytest.raises(RouterError, match="still queued"):
            await asks.close(["a"])
        await asks.aclose()


async def test_an_unhealthy_worker_is_open_and_not_opened() -> None:
    async with RecordedRouter("sglang-router") as router:
        router.has(A)["is_healthy"] = False
        asks = client(router, deadline_s="0.2")
        assert await asks.is_open("a") is True  # it would be sent requests again once it is healthy
        with pytest.raises(RouterError, match="does not list as healthy a"):
            await asks.open(["a"])
        assert router.bodies == []
        await asks.close(["a"])
        assert router.open() == []
        await asks.aclose()


@EVERY
async def test_a_delete_whose_answer_is_lost_is_sent_again(kind: str) -> None:
    async with RecordedRouter(kind, drops=["DELETE"] * 2) as router:
        router.has(A)
        asks = client(router)
        await asks.close(["a"])
        assert sum(each.startswith("DELETE") for each in router.asked) == 3
        assert router.open() == []
        await asks.aclose()


async def test_a_worker_that_somebody_else_removed_meanwhile_is_closed() -> None:
    async with RecordedRouter("sglang-router") as router:
        router.has(A)

        def answer(method: str, path: str) -> web.Response | None:
            if method == "DELETE":
                router.workers.clear()
            return None

        router.answer = answer
        asks = client(router)
        await asks.close(["a"])
        assert await asks.is_open("a") is False
        await asks.aclose()


# settings


@WITH_SETTINGS
async def test_settings_come_back_also_in_another_process(kind: str) -> None:
    settings = {"priority": 7, "cost": 2.0, "labels": {"rack": "b"}, "worker_type": "prefill", "bootstrap_port": 9001}
    async with RecordedRouter(kind) as router:
        before = dict(router.has(A, **settings, model_id="m", models=[{"id": "m"}]))
        asks = client(router, {"a": ENGINES["a"]})
        await asks.close(["a"])
        await asks.aclose()
        later = client(router, {"a": ENGINES["a"]}, worker_api_key="wk")
        await later.open(["a"])
        assert without_id(router) == [{name: value for name, value in before.items() if name != "id"}]
        (body,) = router.bodies
        assert body["labels"] == {"rack": "b"}  # what the engine tells is asked of it again
        assert (body["worker_type"], body["bootstrap_port"], body["api_key"]) == ("prefill", 9001, "wk")
        assert {"id", "load", "is_healthy", "status", "metadata"}.isdisjoint(body)
        await later.aclose()


@WITH_SETTINGS
async def test_a_setting_that_does_not_come_back_is_an_error(kind: str) -> None:
    async with RecordedRouter(kind) as router:
        router.has(A, priority=7, labels={"rack": "b"})
        asks = client(router)
        await asks.close(["a"])
        real = router._entry
        router._entry = lambda given: real({"url": given["url"]})  # type: ignore[method-assign]
        with pytest.raises(RouterError, match=r"a: priority 7 is now 50; a: label rack 'b' is now None"):
            await asks.open(["a"])
        await asks.aclose()


@EVERY
async def test_keys_are_sent_and_not_kept(kind: str, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_KEY", "secret-r")
    monkeypatch.setenv("WORKER_KEY", "secret-w")
    async with RecordedRouter(kind, key="secret-r") as router:
        router.has(A)
        for options, key in (({}, "secret-r"), ({"worker_api_key_env": "WORKER_KEY"}, "secret-w")):
            asks = client(router, api_key_env="ROUTER_KEY", **options)
            await asks.close(["a"])
            await asks.open(["a"])
            assert router.bodies[-1]["api_key"] == key
            assert "secret" not in asks.url
            await asks.aclose()
    (file,) = files_below(state)
    assert "secret" not in file.read_text()


@EVERY
async def test_an_addition_whose_answer_was_lost_may_come_about(kind: str) -> None:
    async with RecordedRouter(kind, loses=["POST"], stuck=frozenset({"POST"})) as router:
        router.has(A), router.has(B)
        asks = client(router, deadline_s="0.3")
        await asks.close(["a"])
        with pytest.raises(RouterError, match="does not list as healthy a"):
            await asks.open(["a"])
        with pytest.raises(RouterError, match="still queued"):
            await asks.close(["a"])
        await asks.aclose()


@WITH_SETTINGS
async def test_an_addition_that_is_under_way_is_waited_for(kind: str) -> None:
    async with RecordedRouter(kind, adds_s=0.6) as router:
        asks = client(router, deadline_s="0.2")
        with pytest.raises(RouterError, match="does not list as healthy a"):
            await asks.open(["a"])
        await client(router).open(["a"])  # smg refuses a second addition, 409
        assert router.open() == [A]
        await asks.aclose()


def test_a_model_that_the_router_does_not_know_is_not_given_to_it() -> None:
    entry = {"url": A, "model_id": "unknown", "labels": {}, "connection_mode": "HTTP", "bootstrap_port": None}
    assert creation_of(entry) == {"url": A, "labels": {}}
    assert creation_of({**entry, "model_id": "m"})["model_id"] == "m"


@EVERY
async def test_a_router_that_lost_its_list_gets_its_workers_again(kind: str) -> None:
    async with RecordedRouter(kind) as router:
        router.has(A, priority=7), router.has(B)
        asks = client(router)
        await asks.close(["a"])
        router.workers.clear()
        await asks.close(["a", "b"])  # nothing is sent to anybody
        await asks.open(["a", "b"])
        assert sorted(router.open()) == [A, B]
        assert [each["url"] for each in router.bodies] == [A, B]
        router.workers.clear()
        assert await asks.is_open("a") is False  # its addition was confirmed: none can come about any more
        await asks.aclose()


@WITH_SETTINGS
async def test_a_worker_of_an_unknown_role_is_not_added(kind: str) -> None:
    async with RecordedRouter(kind) as router:
        router.has(A, worker_type="prefill")
        asks = client(router)
        with pytest.raises(RouterError, match=r"of b is not known which it was: add it by POST /workers"):
            await asks.open(["b"])
        assert router.bodies == []
        await asks.aclose()


async def test_where_settings_cannot_be_kept_nothing_is_removed(state: Path) -> None:
    put(state, "a file where the folder should be")
    async with RecordedRouter("smg") as router:
        router.has(A)
        asks = client(router)
        with pytest.raises(RouterError, match=r"settings of the worker .* cannot be kept.*LIFECYCLE_STATE_DIR"):
            await asks.close(["a"])
        assert router.open() == [A]
        await asks.aclose()


async def test_a_file_that_cannot_be_read_is_no_settings(state: Path) -> None:
    async with RecordedRouter("smg") as router:
        router.has(A, priority=7)
        asks = client(router)
        await asks.close(["a"])
        (file,) = files_below(state)
        put(file, "{")
        await asks.open(["a"])
        assert [each["priority"] for each in router.workers.values()] == [50]
        await asks.aclose()


def files_below(folder: Path) -> list[Path]:
    return list(folder.rglob("*.json"))


def put(path: Path, text: str) -> None:
    path.write_text(text)


def without_id(router: RecordedRouter) -> list[dict[str, Any]]:
    return [{name: value for name, value in each.items() if name != "id"} for each in router.workers.values()]
