"""A fleet behind a router that is named by its URL: in Python, in fleet.toml and on the command line."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from lifecycle.adapters.loopback import LoopbackProcess
from recorded import RecordedRouter

from lifecycle import BaseObserver, Fleet, Kept, Policy, State, Transition, sync
from lifecycle.cli import main
from lifecycle.core.errors import RouterError

POLICY = Policy(residual_threshold_gib=0.25, settle_s=1.0, poll_s=0.05)
WAY_HOME = ["--weights", "kept", "--threshold-gib", "0.25"]


@pytest.fixture(scope="module")
def engine() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(weights_mib=96, kv_mib=96, weights_backup=True) as process:
        yield process


@pytest.fixture
def url(engine: LoopbackProcess) -> str:
    return f"loopback://127.0.0.1:{engine.port}?name=e"


@pytest.fixture(
    params=["sglang-router", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("smg", "vllm-router"))]
)
def router(request: pytest.FixtureRequest, engine: LoopbackProcess) -> Iterator[RecordedRouter]:
    """A router that sends to the engine, in a thread of its own."""
    with start_blocking_portal() as portal:
        made = RecordedRouter(request.param, removes_s=0.05)
        made.has(f"http://127.0.0.1:{engine.port}")
        with portal.wrap_async_context_manager(made):
            yield made


class OpenAtPause(BaseObserver):
    """To whom the router sends when an engine begins to be paused."""

    def __init__(self, router: RecordedRouter) -> None:
        self.router = router
        self.seen: list[list[str]] = []

    def transition(self, record: Transition) -> None:
        if record.dest is State.PAUSING:
            self.seen.append(self.router.open())


async def test_a_move_closes_it_before_the_pause_and_opens_it_last(url: str, router: RecordedRouter) -> None:
    observer = OpenAtPause(router)
    async with Fleet.connect([url], router=router.url(), policy=POLICY, observers=[observer]) as fleet:
        async with fleet.offloaded(weights=Kept(), mode="wait"):
            assert router.open() == []
            assert fleet["e"].facts.routed is False
        assert fleet["e"].facts.routed is True
        assert len(router.open()) == 1
    assert observer.seen == [[]]


async def test_the_option_worker_says_where_the_router_reaches_it(url: str, router: RecordedRouter) -> None:
    router.workers.clear()
    router.has("http://engine-0.pod:30000")
    async with Fleet.connect([url], router=router.url(), policy=POLICY) as fleet:
        with pytest.raises(RouterError, match="worker="):
            await fleet.offload(weights=Kept())
        assert fleet["e"].state is State.SERVING
    assert router.open() == ["http://engine-0.pod:30000"]
    async with Fleet.connect([f"{url}&worker=http://engine-0.pod:30000"], router=router.url(), policy=POLICY) as fleet:
        await fleet.offload(weights=Kept())
        assert router.open() == []
        await fleet.onload()
    assert router.open() == ["http://engine-0.pod:30000"]


async def test_a_fleet_lets_go_of_its_connections_to_the_router(url: str, router: RecordedRouter) -> None:
    async with Fleet.connect([url], router=router.url(), policy=POLICY) as fleet:
        assert await fleet.router.is_open("e") is True
        assert router.connections() == 1
    async with asyncio.timeout(5):
        while router.connections():  # noqa: ASYNC110 - the router is in another thread
            await asyncio.sleep(0.01)


def test_the_blocking_fleet_takes_the_url(url: str, router: RecordedRouter) -> None:
    with sync.Fleet.connect([url], router=router.url(), policy=POLICY) as fleet:
        fleet.pause()
        assert router.open() == []
        fleet.resume()
        assert len(router.open()) == 1


def test_commands_name_it_by_an_option_or_in_the_file(url: str, router: RecordedRouter, tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(f'router = "{router.url()}"\n[policy]\nresidual_threshold_gib = 0.25\n[[engines]]\nurl = "{url}"\n')
    assert main(["offload", str(file), "--weights", "kept", "--mode", "wait"]) == 0
    assert router.open() == []
    assert main(["onload", str(file)]) == 0
    assert len(router.open()) == 1
    assert main(["offload", url, *WAY_HOME, "--router", router.url()]) == 0
    assert router.open() == []
    assert main(["recover", url, "--to", "serving", "--router", router.url(), "--threshold-gib", "0.25"]) == 0
    assert len(router.open()) == 1


def test_without_a_router_a_wait_pause_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pause", url, "--mode", "wait"]) == 3
    assert "needs a router" in capsys.readouterr().err


def test_a_router_that_is_down_leaves_the_engines_serving(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    down = ["--router", "smg://127.0.0.1:1?api_key=secret"]
    for command in (["offload", url, *WAY_HOME], ["cycle", url, *WAY_HOME], ["pause", url]):
        assert main([*command, *down]) == 3, "no engine was touched"
        error = capsys.readouterr().err
        assert "the router smg://127.0.0.1:1: nothing listens there" in error
        assert "start it, or correct its URL. Nothing was sent to the engines: they are as they were" in error
        assert "secret" not in error
    assert main(["doctor", url, "--threshold-gib", "0.05", *down]) == 1
    assert "failure  router          the router smg://127.0.0.1:1: nothing listens there" in capsys.readouterr().out
    assert main(["status", url]) == 0
    assert "serving" in capsys.readouterr().out


def test_a_router_that_goes_down_meanwhile_leaves_the_engines_serving(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["offload", url, *WAY_HOME]) == 0
    assert main(["onload", url, "--router", "smg://127.0.0.1:1"]) == 1, "the engine was touched"
    assert "no engine failed: the router smg://127.0.0.1:1: nothing listens there" in capsys.readouterr().err
    assert main(["status", url]) == 0
    assert "serving" in capsys.readouterr().out


def test_an_engine_that_the_router_may_know_by_another_url_is_left_serving(
    url: str, router: RecordedRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    router.workers.clear()
    router.has("http://engine-0.pod:30000")
    for command in (["offload", url, *WAY_HOME], ["cycle", url, *WAY_HOME], ["pause", url]):
        assert main([*command, "--router", router.url()]) == 3, "no engine was touched"
        error = capsys.readouterr().err
        assert "does not list e (loopback://127.0.0.1:" in error
        assert "it lists http://engine-0.pod:30000. Give the engine's URL the option worker=" in error
    assert router.open() == ["http://engine-0.pod:30000"]
    assert main(["status", url]) == 0
    assert "serving" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("router = 3", "router=3: Input should be a valid string"),
        ('router = "nginx://127.0.0.1:80"', "no router 'nginx'; installed are"),
        ('router = "smg://127.0.0.1"', "has no port"),
    ],
)
def test_wrong_values_in_the_file(
    line: str, said: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(f'{line}\n[[engines]]\nurl = "{url}"\n')
    assert main(["pause", str(file)]) == 2
    assert said in capsys.readouterr().err


def test_doctor_finds_what_the_router_sends_to(
    url: str, router: RecordedRouter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def findings(code: int) -> str:
        assert main(["doctor", url, "--threshold-gib", "0.05", "--router", router.url()]) == code
        return capsys.readouterr().out.partition(f"{router.url()}\n")[2].strip()

    assert findings(0).startswith("ok       router          it sends to e, which is serving")
    assert main(["pause", url]) == 0  # and nobody told the router
    capsys.readouterr()
    assert re.match("warning  router +it sends to e, which is (paused|drained), .* may ask /health", findings(4))
    assert main(["resume", url]) == 0
    router.workers.clear()
    capsys.readouterr()
    assert "it does not send to e, which serves; lifecycle onload with --router adds it" in findings(4)
    assert main(["onload", url, "--router", router.url()]) == 0
    assert len(router.open()) == 1
    router.workers.clear()
    router.has("http://engine-0.pod:30000")
    shutil.rmtree(tmp_path / "state" / "routers")
    capsys.readouterr()
    assert "failure  router          the router " in findings(1)
