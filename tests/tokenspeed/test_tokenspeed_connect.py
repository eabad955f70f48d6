"""Connecting to a tokenspeed control server: what it can do, and each refusal with its remedy; nothing is changed."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from lifecycle.adapters.tokenspeed import TokenspeedAdapter
from lifecycle.adapters.tokenspeed import adapter as adapter_module
from tokenspeed_driving import driven
from tokenspeed_server import CONTROL_OFF, ENGINE_GONE, RecordedServer, arguments

from lifecycle import ConfigurationError, Engine, Fact, Grade, Policy, State
from lifecycle.core.errors import NothingListens
from lifecycle.nodes.address import parse

#: What is resident cannot be measured of a server that is a part of the test.
UNMEASURED = Policy(unprovable="warn")


async def refusal(server: RecordedServer, options: str = "") -> str:
    """The message with which a connect to this server is refused."""
    async with server:
        adapter = TokenspeedAdapter(parse(server.url + options))
        try:
            with pytest.raises(ConfigurationError) as refused:
                await adapter.connect(deadline_s=10)
        finally:
            await adapter.aclose()
        assert server.sent() == []
    return str(refused.value)


async def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        adapter = TokenspeedAdapter(parse(f"tokenspeed://127.0.0.1:{free.getsockname()[1]}"))
        with pytest.raises(NothingListens, match="nothing listens there"):
            await adapter.connect(deadline_s=5)
        await adapter.aclose()


SGLANG = {"internal_states": [{}], "version": "0.5.23", "weight_version": "default"}
OTHERS = [SGLANG, {"tokenspeed_version": "0.1.1"}, {"tokenspeed_version": 1, "start_time": "x"}, [], b"<html>"]


@pytest.mark.parametrize("info", OTHERS, ids=str)
async def test_an_engine_of_another_kind(info: Any) -> None:
    server = RecordedServer()
    server.script("GET /get_server_info", (200, info))
    assert "no tokenspeed server" in await refusal(server)


async def test_the_port_of_its_rl_control_app_is_named_as_such() -> None:
    server = RecordedServer()
    server.script("GET /get_server_info", (404, {"detail": "Not Found"}))
    said = await refusal(server)
    assert "--rl-control-port" in said
    assert "--control-port" in said


async def test_a_control_server_whose_engine_is_gone() -> None:
    server = RecordedServer()
    server.script("GET /get_server_info", ENGINE_GONE)
    assert "whose engine does not answer" in await refusal(server)


async def test_a_control_plane_that_is_off() -> None:
    server = RecordedServer()
    server.script("GET /get_weight_version", CONTROL_OFF)
    assert "start it with `ts serve`" in await refusal(server)


@pytest.mark.parametrize("version", ["0.0.9", "0.1.2", "1.0", "main"])
async def test_a_version_that_nobody_knows_is_refused_naming_those_that_are_known(version: str) -> None:
    said = await refusal(RecordedServer(version=version))
    assert f"tokenspeed {version} is not among the versions that are known here" in said
    assert "0.1.1 to before 0.1.2" in said
    assert "unknown_version=warn" in said


@pytest.mark.parametrize("version", ["0.1.2", "main"])
async def test_or_is_driven_as_the_nearest_with_a_warning(version: str) -> None:
    async with driven(version=version, options="unknown_version=warn") as (_, adapter):
        assert any("driven as 0.1.1 to before" in note for note in adapter._known().notes)


@pytest.mark.parametrize("options", ["", "?unknown_version=warn"])
async def test_a_version_that_calls_every_release_done_is_never_driven(options: str) -> None:
    said = await refusal(RecordedServer(version="0.1.0"), options)
    assert "0.1.0 cannot be driven: it answers a release that its engine refused as done" in said


async def test_keys_where_they_are_needed_and_where_they_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_KEY", "c")
    monkeypatch.setenv("GATEWAY_KEY", "g")
    options = "control_key_env=CONTROL_KEY&api_key_env=GATEWAY_KEY"
    async with driven(options=options, key="g", control_key="c") as (_, adapter):
        assert adapter._admits
        assert "=c" not in adapter.url.replace("_env=CONTROL", "")
    async with driven(options=options) as (_, adapter):
        assert adapter._admits


async def test_a_missing_control_key_is_named() -> None:
    assert "control_key_env=NAME" in await refusal(RecordedServer(control_key="c"))


async def test_what_it_can_do() -> None:
    asked = arguments(world_size=None, attn_tp_size=2.0, pipeline_parallel_size=2.0)
    async with driven(options="sizes=weights:7,kv_cache:9", arguments=asked) as (_, adapter):
        known = adapter._known()
        assert (known.engine, known.version, known.ranks, known.device) == ("tokenspeed", "0.1.1", 4, "cuda")
        assert set(known.pause) == {"wait"}
        assert known.update == {"push"}
        assert {spec.name: (spec.on_release, spec.expected_bytes) for spec in known.tags} == {
            "weights": ("kept", 7),
            "kv_cache": ("discarded", 9),
        }
        assert known.evidence["admission_closed"] is Grade.ACKNOWLEDGED
        assert Fact.MAPPED not in known.observable
        assert "read in 0.1.1" in adapter.version_known_by


@pytest.mark.parametrize(
    "sizes",
    [
        {"data_parallel_size": 2.0},
        {"world_size": 4.0, "attn_tp_size": 2.0},
        {"world_size": 8.0, "attn_tp_size": 2.0, "pipeline_parallel_size": 2.0},
    ],
    ids=str,
)
async def test_several_data_parallel_ranks_are_refused(sizes: dict[str, float]) -> None:
    unset = dict.fromkeys(("world_size", "attn_tp_size", "data_parallel_size", "pipeline_parallel_size"))
    said = await refusal(RecordedServer(arguments=arguments(**{**unset, **sizes})))
    assert "it has 2 data-parallel ranks, and answers a pause or a release with the reply of one of them" in said
    assert "start a server for each rank" in said


async def test_without_a_memory_saver_it_says_so() -> None:
    async with driven(arguments=arguments(enable_memory_saver=False)) as (_, adapter):
        assert adapter._known().memory_saver is False
        assert any("--enable-memory-saver" in note for note in adapter._known().notes)


@pytest.mark.parametrize("options", ["sizes=weights", "sizes=cuda_graph:1", "unknown_version=maybe", "what=1"])
async def test_options_that_cannot_be_meant(options: str) -> None:
    with pytest.raises(ConfigurationError):
        TokenspeedAdapter(parse(f"tokenspeed://127.0.0.1:1?{options}"))


async def test_a_token_says_that_it_is_open() -> None:
    async with RecordedServer() as server:
        engine = Engine(TokenspeedAdapter(parse(server.url)), name="e", policy=UNMEASURED, lease=None)
        await engine.connect()
        assert engine.state is State.SERVING
        await engine.aclose()


async def test_a_closed_front_end_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing counts the request: it waits at the gate. It is left, and the state is not guessed."""
    monkeypatch.setattr(adapter_module, "UNCOUNTED_S", 0.1)
    monkeypatch.setattr(adapter_module, "POLL_S", 0.05)
    async with RecordedServer() as server:
        server.gate.clear()
        engine = Engine(TokenspeedAdapter(parse(server.url)), name="e", policy=UNMEASURED, lease=None)
        await engine.connect()
        assert engine.state is State.FAILED
        assert engine.facts.admission is None
        await engine.aclose()


async def test_a_busy_one_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted is past the gate: the token comes."""
    monkeypatch.setattr(adapter_module, "UNCOUNTED_S", 0.0)
    monkeypatch.setattr(adapter_module, "POLL_S", 0.02)
    async with RecordedServer(requests=3) as server:
        server.gate.clear()
        adapter = TokenspeedAdapter(parse(server.url))

        async def admit() -> None:
            while len(server.sent("/v1/loads")) < 2:  # noqa: ASYNC110 - the adapter asks
                await asyncio.sleep(0.005)
            server.gate.set()

        admitting = asyncio.create_task(admit())
        await adapter.connect(deadline_s=10)
        await admitting
        assert adapter._admits
        await adapter.aclose()
