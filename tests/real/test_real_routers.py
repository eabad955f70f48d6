"""Real routers in front of loopback engines: what is closed gets no request, none is lost, and settings come back."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from lifecycle.adapters.loopback import LoopbackProcess
from real_router import RealRouter, free_port
from router_env import PACKAGES

from lifecycle import BaseObserver, Fleet, Kept, Policy, State, Transition
from lifecycle.cli import main
from lifecycle.core.errors import RouterError
from lifecycle.core.ports import WorkerURL
from lifecycle.fleet.registry import router_for

KINDS = list(PACKAGES)
POLICY = Policy(residual_threshold_gib=0.25, settle_s=2.0, poll_s=0.05)
CLIENTS, CYCLES, TOKENS = 16, 5, 60


@dataclass(frozen=True)
class Pair:
    """Two engines."""

    engines: tuple[LoopbackProcess, ...]

    @property
    def ports(self) -> list[int]:
        return [each.port for each in self.engines]

    @property
    def workers(self) -> list[str]:
        """Their URLs, as a router is told them."""
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def urls(self) -> list[str]:
        """Their URLs, as a fleet is told them."""
        return [f"loopback://127.0.0.1:{port}?name=e{number}" for number, port in enumerate(self.ports)]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        options: dict[str, Any] = {"weights_mib": 96, "kv_mib": 96, "memory_saver": True, "weights_backup": True}
        options |= {"arguments": ["--step-delay-s", "0.01"]}
        yield Pair(tuple(stack.enter_context(LoopbackProcess.start(**options)) for _ in range(2)))


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_STATE_DIR", str(tmp_path / "state"))


@dataclass
class Client:
    """Sends requests through the router, one after another, and each again until it is answered 200."""

    base: str
    streams: bool
    prompt: str
    ended: list[list[int]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    async def run(self, session: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        body = {
            "text": self.prompt,
            "sampling_params": {"max_new_tokens": TOKENS, "temperature": 0, "ignore_eos": True},
        }
        while not stop.is_set():
            async with session.post(f"{self.base}/generate", json={**body, "stream": self.streams}) as answer:
                raw = await answer.read()
            if answer.status == 200:
                self.ended.append(self._tokens(raw))
                continue
            # smg forgets the model with its last worker, and calls that 404
            assert answer.status == 503 or (answer.status == 404 and b"model_not_found" in raw), (answer.status, raw)
            self.refused[str(answer.status)] += 1
            await asyncio.sleep(0.02)

    def _tokens(self, raw: bytes) -> list[int]:
        if not self.streams:
            return list(json.loads(raw)["output_ids"])
        events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
        return list(events[-1]["output_ids"])


@dataclass
class ListedAtPause(BaseObserver):
    """What the router lists at the moment at which an engine begins to be paused."""

    router: RealRouter
    seen: dict[str, list[list[str]]] = field(default_factory=dict)

    def transition(self, record: Transition) -> None:
        if record.dest is State.PAUSING:
            self.seen.setdefault(record.engine, []).append([each["url"] for each in self.router.listed()])


@pytest.mark.parametrize("kind", KINDS)
async def test_sixteen_clients_over_five_cycles_get_all_their_tokens(kind: str, pair: Pair) -> None:
    with RealRouter(kind, pair.workers) as router:
        observer, stop = ListedAtPause(router), asyncio.Event()
        clients = [Client(f"http://127.0.0.1:{router.port}", n % 2 == 1, f"prompt {n % 4}") for n in range(CLIENTS)]
        fleet = Fleet.connect(pair.urls(), router=router.url(), policy=POLICY, observers=[observer])
        async with fleet, aiohttp.ClientSession() as session:
            running = [asyncio.create_task(client.run(session, stop)) for client in clients]
            for _ in range(CYCLES):
                before = [(client, len(client.ended)) for client in clients]
                async with asyncio.timeout(60):
                    while not all(len(client.ended) > count for client, count in before):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                async with fleet.offloaded(weights=Kept(), mode="wait"):
                    assert [await fleet.router.is_open(each.name) for each in fleet] == [False, False]
                    refused = sum(sum(client.refused.values()) for client in clients)
                    async with asyncio.timeout(30):  # every client is refused, tries again, and ends 200 later
                        while sum(sum(client.refused.values()) for client in clients) == refused:  # noqa: ASYNC110
                            await asyncio.sleep(0.02)
            stop.set()
            await asyncio.gather(*running)
        assert len(router.listed()) == 2
    assert all(urls == [] for seen in observer.seen.values() for urls in seen)
    assert [len(seen) for seen in observer.seen.values()] == [CYCLES, CYCLES]
    for number in range(4):
        outputs = {tuple(each) for client in clients[number::4] for each in client.ended}
        assert [len(each) for each in outputs] == [TOKENS]
    assert all(len(client.ended) >= CYCLES for client in clients)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_wait_pause_ends_what_is_in_flight_and_needs_the_router(kind: str, pair: Pair) -> None:
    with RealRouter(kind, pair.workers) as router:
        async with (
            Fleet.connect(pair.urls(), router=router.url(), policy=POLICY) as fleet,
            aiohttp.ClientSession() as s,
        ):
            clients = [Client(f"http://127.0.0.1:{router.port}", n % 2 == 1, "hello") for n in range(4)]
            stop = asyncio.Event()
            running = [asyncio.create_task(client.run(s, stop)) for client in clients]
            await until_running(pair, 4)
            stop.set()
            await fleet.pause("wait")
            assert [each.state for each in fleet] == [State.PAUSED] * 2
            await fleet.drain()
            await asyncio.gather(*running)
            assert [len(client.ended[-1]) for client in clients] == [TOKENS] * 4
            await fleet.resume()
        assert len(router.listed()) == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_in_flight_are_counted_or_unknown(kind: str, pair: Pair) -> None:
    with RealRouter(kind, pair.workers) as router:
        client = told(router, pair)
        assert await client.in_flight("e0") == (0 if kind == "smg" else None)
        stop, base = asyncio.Event(), f"http://127.0.0.1:{router.port}"
        async with aiohttp.ClientSession() as session:
            running = [asyncio.create_task(Client(base, True, "hello").run(session, stop)) for _ in range(4)]
            await until_running(pair, 4)
            found = [await client.in_flight(name) for name in ("e0", "e1")]
            assert found == [None, None] if kind != "smg" else sum(found) == 4
            stop.set()
            await asyncio.gather(*running)
        await client.aclose()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vllm-router"])
async def test_a_worker_comes_back_with_the_settings_that_it_had(kind: str, pair: Pair) -> None:
    given = {"priority": 7, "cost": 2.0, "labels": {"rack": "b"}, "model_id": "m", "models": [{"id": "m"}]}
    with RealRouter(kind) as router:
        assert router.ask("POST", "/workers", {"url": pair.workers[0], **given})[0] == 202
        before = router.until_listed(1)
        client = told(router, pair)
        await client.close(["e0"])
        assert router.listed() == []
        await client.aclose()
        later = told(router, pair)  # as another process would
        await later.open(["e0"])
        assert lasting(router.listed()) == lasting(before)
        assert before[0]["model_id"] == "m"
        await later.aclose()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vllm-router"])
async def test_prefill_and_decode_come_back_as_what_they_were(kind: str) -> None:
    with ExitStack() as stack:
        options = [["--disaggregation-mode", mode] for mode in ("prefill", "decode")]
        started = (LoopbackProcess.start(weights_mib=16, kv_mib=16, arguments=each) for each in options)
        pair = Pair(tuple(stack.enter_context(each) for each in started))
        split = ["--pd-disaggregation", "--prefill", pair.workers[0], "9001", "--decode", pair.workers[1]]
        router = stack.enter_context(RealRouter(kind, extra=[*split, "--policy", "round_robin"]))
        before = router.listed()
        client = told(router, pair)
        await client.close(["e0", "e1"])
        assert router.listed() == []
        await client.open(["e1", "e0"])
        assert lasting(router.listed()) == lasting(before)
        assert {(each["worker_type"], each.get("bootstrap_port")) for each in before} == {
            ("prefill", 9001),
            ("decode", None),
        }
        await client.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_router_that_restarted_with_an_empty_list_gets_its_workers_again(kind: str, pair: Pair) -> None:
    with RealRouter(kind, pair.workers) as router:
        async with Fleet.connect(pair.urls(), router=router.url(), policy=POLICY) as fleet:
            await fleet.offload(weights=Kept())
            router.stop()
            router.workers = ()
            router.start()
            await fleet.onload()
        assert len(router.until_listed(2)) == 2
        router.stop()
        with router, pytest.raises(AssertionError, match="lists"):
            router.until_listed(1, deadline_s=0.5)
        router.start()
        async with Fleet.connect(pair.urls(), router=router.url(), policy=POLICY) as fleet:  # and while they serve
            await fleet.offload(weights=Kept())
            await fleet.onload()
        assert len(router.until_listed(2)) == 2


@pytest.mark.parametrize("kind", KINDS)
async def test_keys_of_the_router_and_its_workers(kind: str) -> None:
    with ExitStack() as stack:
        engine = stack.enter_context(LoopbackProcess.start(weights_mib=16, kv_mib=16, api_key="k"))
        pair = Pair((engine,))
        router = stack.enter_context(RealRouter(kind, pair.workers, key="k"))
        before = router.listed()
        client = told(router, pair)
        await client.close(["e0"])
        await client.open(["e0"])
        assert lasting(router.listed()) == lasting(before)
        status, body = router.ask("POST", "/generate", {"text": "a", "sampling_params": {"max_new_tokens": 2}})
        assert (status, len(body["output_ids"])) == (200, 2)
        await client.aclose()
        refused = router_for(f"{kind}://127.0.0.1:{router.port}")
        refused.knows({"e0": WorkerURL(pair.workers[0])})
        if kind != "vllm-router":  # its listing needs no key, measured
            with pytest.raises(RouterError, match="refuses the key"):
                await refused.close(["e0"])
        await refused.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_router_that_does_not_know_an_engine_and_one_that_is_down(kind: str, pair: Pair) -> None:
    with RealRouter(kind, pair.workers[:1]) as router:
        client = router_for(router.url())
        client.knows({"e1": WorkerURL(pair.workers[1])})
        with pytest.raises(RouterError, match="may have it under another URL"):
            await client.close(["e1"])
        assert await client.is_open("e1") is None
        client.knows({"e1": WorkerURL(pair.workers[1], exact=True)})
        await client.close(["e1"])
        assert await client.is_open("e1") is False
        assert len(router.listed()) == 1
        nowhere = router_for(router.url(deadline_s="2"))
        nowhere.knows({"x": WorkerURL(f"http://127.0.0.1:{free_port()}", exact=True)})
        with pytest.raises(RouterError, match=r"does not add x|does not list as healthy x"):
            await nowhere.open(["x"])
        await nowhere.aclose()
        router.stop()
        with pytest.raises(RouterError, match="nothing listens there"):
            await client.close(["e1"])
        assert await client.is_open("e1") is None
        await client.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_no_health_check_is_asked_of_a_worker_that_was_closed(kind: str) -> None:
    class Counting(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        asked: list[str] = []

        def do_GET(self) -> None:
            self.asked.append(self.path)
            body = json.dumps({"model_path": "m", "served_model_name": "m", "data": [{"id": "m"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    worker = f"http://127.0.0.1:{server.server_port}"
    with RealRouter(kind, [worker], extra=["--health-check-interval-secs", "1", "--policy", "round_robin"]) as router:
        client = router_for(router.url())
        client.knows({"e": WorkerURL(worker)})
        end = time.monotonic() + 10
        while Counting.asked.count("/health") < 3:
            assert time.monotonic() < end, Counting.asked
            await asyncio.sleep(0.05)
        await client.close(["e"])
        Counting.asked.clear()
        await asyncio.sleep(3)  # three of its intervals
        assert "/health" not in Counting.asked  # smg reads the load of one that drains still
        await client.aclose()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("kind", KINDS)
def test_commands_in_processes_of_their_own(
    kind: str, pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RealRouter(kind, pair.workers) as router:
        before = router.listed()
        engines = "".join(f'[[engines]]\nurl = "{url}"\n' for url in pair.urls())
        file = tmp_path / "fleet.toml"
        file.write_text(f'router = "{router.url()}"\n[policy]\nresidual_threshold_gib = 0.25\n{engines}')
        assert main(["doctor", str(file)]) in (0, 4)
        assert f"{kind}://127.0.0.1:{router.port}\n  ok       router          it sends to e0" in capsys.readouterr().out
        assert main(["offload", str(file), "--weights", "kept", "--mode", "wait"]) == 0
        assert router.listed() == []
        assert main(["onload", str(file)]) == 0
        assert lasting(router.listed()) == lasting(before)
        assert main(["pause", *pair.urls(), "--router", router.url()]) == 0
        assert router.listed() == []
        assert main(["resume", *pair.urls(), "--router", router.url()]) == 0
        assert lasting(router.listed()) == lasting(before)


# helpers


def told(router: RealRouter, pair: Pair) -> Any:
    """A client of this router that knows the engines."""
    client = router_for(router.url())
    client.knows({f"e{number}": WorkerURL(url) for number, url in enumerate(pair.workers)})
    return client


def lasting(workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is listed, without what is of the moment, in an order of its own."""
    moment = {"id", "load", "engine_load", "job_status"}
    found = [{name: value for name, value in each.items() if name not in moment} for each in workers]
    for each in found:
        labels = each.get("metadata") or {}
        for name in ("priority", "cost"):
            labels.pop(name, None)
    return sorted(found, key=lambda each: str(each["url"]))


async def until_running(pair: Pair, count: int) -> None:
    """So many requests run on the engines together."""
    async with asyncio.timeout(20):
        while await asyncio.to_thread(_running, pair) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def _running(pair: Pair) -> int:
    total = 0
    for worker in pair.workers:
        with urllib.request.urlopen(f"{worker}/v1/loads?include=core", timeout=5) as answer:
            total += sum(each["num_running_reqs"] for each in json.loads(answer.read())["loads"])
    return total
