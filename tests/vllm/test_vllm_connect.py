"""Connecting to a vLLM server: what it can do, and each refusal with its remedy; no server is changed."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from lifecycle.adapters.vllm import VLLMAdapter
from vllm_driving import driven
from vllm_server import KEY_ERROR, RecordedServer, config

from lifecycle import ConfigurationError, Engine, Fact, Fleet, FleetError, FromDisk, Grade, Kept, Policy, State, doctor
from lifecycle.core.errors import NothingListens
from lifecycle.core.facts import SizeGrade
from lifecycle.nodes.address import parse

#: What is resident cannot be measured of a server that is a part of the test.
UNMEASURED = Policy(unprovable="warn")


async def refusal(server: RecordedServer, options: str = "", kind: type[Exception] = ConfigurationError) -> str:
    """The message with which a connect to this server is refused."""
    async with server:
        adapter = VLLMAdapter(parse(server.url + options))
        try:
            with pytest.raises(kind) as refused:
                await adapter.connect(deadline_s=10)
        finally:
            await adapter.aclose()
        assert server.sent() == []
    return str(refused.value)


async def test_without_its_development_mode_it_names_the_variable() -> None:
    said = await refusal(RecordedServer(dev_mode=False))
    assert "vLLM 0.32.0 listens there without its development mode" in said
    assert "VLLM_SERVER_DEV_MODE=1" in said


async def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        adapter = VLLMAdapter(parse(f"vllm://127.0.0.1:{free.getsockname()[1]}"))
        with pytest.raises(NothingListens, match="nothing listens there"):
            await adapter.connect(deadline_s=5)
        await adapter.aclose()


SGLANG = {"internal_states": [{}], "startup_time": {"load_weight": 0.5}, "random_seed": 7, "version": "0.5.23"}
OTHERS = [SGLANG, {"vllm_config": "text"}, {"vllm_config": {"instance_id": "x"}}, [], b"<html>", b""]
OTHERS += [{"vllm_config": {**config(), "instance_id": ""}}]


@pytest.mark.parametrize("info", OTHERS, ids=str)
async def test_an_engine_of_another_kind(info: Any) -> None:
    server = RecordedServer()
    server.script("GET /server_info", (200, info))
    said = await refusal(server)
    assert "no vLLM server" in said
    assert ("write sglang://" in said) is (info is SGLANG)


async def test_a_server_without_a_version_is_none() -> None:
    server = RecordedServer()
    server.script("GET /version", (404, {"detail": "Not Found"}))
    assert "no vLLM server" in await refusal(server)


@pytest.mark.parametrize("version", ["0.21.0", "0.34.0", "1.0", "main"])
async def test_a_version_that_nobody_knows_is_refused_naming_those_that_are_known(version: str) -> None:
    said = await refusal(RecordedServer(version))
    assert f"vLLM {version} is not among the versions that are known here (0.22 to before 0.25" in said
    assert "0.33 to before 0.34" in said
    assert "unknown_version=warn" in said


@pytest.mark.parametrize(("version", "as_one"), [("0.34.1", "0.33"), ("0.21.0", "0.22"), ("main", "0.33")])
async def test_or_is_driven_as_the_nearest_with_a_warning(version: str, as_one: str) -> None:
    async with driven(version, options="unknown_version=warn") as (_, adapter):
        assert any(f"driven as {as_one} to before" in note for note in adapter._known().notes)
        assert adapter._effects.refuses_new is (as_one == "0.33")


async def test_builds_of_a_known_version_are_known() -> None:
    for version in ("0.32.0rc1", "0.32.1.dev3+gabc", "v0.33.0+cu128", "0.24"):
        async with driven(version):
            pass


async def test_a_key_that_is_refused_and_one_that_nobody_asks_for() -> None:
    assert "refuses the key; give api_key_env=NAME" in await refusal(RecordedServer(key="secret"))
    assert "refuses the key" in await refusal(RecordedServer(key="secret"), "?api_key=wrong")
    async with driven(key="secret", options="api_key=secret") as (_, adapter):
        assert "secret" not in adapter.url
    async with driven(options="api_key=secret"):
        pass


async def test_a_proxy_that_wants_a_key() -> None:
    server = RecordedServer()
    server.script("GET /server_info", KEY_ERROR)
    assert "refuses the key" in await refusal(server)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("colour=red", "unknown option 'colour'"),
        ("sizes=weights", "sizes must be TAG:BYTES"),
        ("sizes=cuda_graph:5", "with the tags weights and kv_cache"),
        ("checksum=maybe", "checksum must be false or true"),
        ("unknown_version=perhaps", "unknown_version must be refuse or warn"),
        ("api_key_env=NO_SUCH_VARIABLE", "NO_SUCH_VARIABLE, which is not set"),
    ],
)
def test_options_that_cannot_be_meant(options: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        VLLMAdapter(parse(f"vllm://127.0.0.1:1?{options}"))


async def test_a_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_KEY", "secret")
    async with driven(key="secret", options="api_key_env=VLLM_KEY"):
        pass


async def test_what_a_server_can_do() -> None:
    async with driven(options="sizes=weights:1000,kv_cache:2000") as (_, adapter):
        able = adapter._known()
        assert (able.engine, able.version, able.device, able.ranks) == ("vLLM", "0.32.0", "cuda", 1)
        assert (able.memory_saver, able.saver, able.saver_option) == (True, "cumem", "--enable-sleep-mode")
        assert [(spec.name, spec.stage, spec.on_release, spec.expected_bytes) for spec in able.tags] == [
            ("weights", "weights", "as_wanted", 1000),
            ("kv_cache", "kv", "discarded", 2000),
        ]
        assert {spec.size_grade for spec in able.tags} == {SizeGrade.TENSORS}
        assert able.launch_source == FromDisk("/models/tiny", "default")
        assert set(able.pause) == {"abort", "wait", "keep", "freeze"}
        assert not able.pause["wait"].needs_router
        assert able.evidence["weights_match"] is Grade.REPORTED
        assert Fact.CONTENTS in able.observable
        assert Fact.MAPPED not in able.observable


async def test_a_version_without_labels_reports_no_version_and_no_launch_source() -> None:
    async with driven("0.25.1") as (_, adapter):
        able = adapter._known()
        assert able.launch_source is None
        assert able.evidence["weights_match"] is Grade.ACKNOWLEDGED
        assert Fact.CONTENTS not in able.observable


async def test_weights_that_were_labelled_are_not_those_of_the_launch() -> None:
    server = RecordedServer(label="step-3")
    async with server:
        adapter = VLLMAdapter(parse(server.url))
        assert (await adapter.connect(deadline_s=5)).launch_source is None
        await adapter.aclose()


SAVERS = [
    ("cuda", {"enable_cumem_allocator": True, "enable_sleep_mode": True}, True),
    ("cuda", {"enable_cumem_allocator": True, "enable_sleep_mode": False}, True),
    ("cuda", {"enable_cumem_allocator": False, "enable_sleep_mode": False}, False),
    ("cuda", {"enable_cumem_allocator": None, "enable_sleep_mode": None}, None),
    ("cpu", {"enable_cumem_allocator": False, "enable_sleep_mode": False}, None),
]


@pytest.mark.parametrize(("device", "model", "saves"), SAVERS)
async def test_whether_a_sleep_can_free(device: str, model: dict[str, Any], saves: bool | None) -> None:
    settings = {**config(**model), "device_config": {"device": device}}
    async with driven(config=settings) as (_, adapter):
        able = adapter._known()
        assert able.memory_saver is saves
        told = any("free nothing" in note or "frees nothing" in note for note in able.notes)
        assert told is (saves is False or device == "cpu")


@pytest.mark.parametrize(
    ("told", "device"),
    [
        ({"device": "cpu"}, "cpu"),  # recorded: `device_type` is no part of the answer
        ({"device": "cuda"}, "cuda"),
        ({"device": "cuda:0"}, "cuda"),
        ({"device_type": "cpu"}, "cpu"),
        ({"device": None}, None),
        ({"device": "tpu"}, None),
        ({}, None),
    ],
)
async def test_what_it_runs_on(told: dict[str, Any], device: str | None) -> None:
    async with driven(config={**config(), "device_config": told}) as (_, adapter):
        assert adapter._known().device == device


@pytest.mark.parametrize(("device", "alone"), [("cuda", True), ("cpu", False)])
async def test_kv_is_not_released_alone_on_a_cpu(device: str, alone: bool) -> None:
    """The server refuses it there by 500, and says from then on that KV is asleep."""
    settings = config(enable_sleep_mode=alone, enable_cumem_allocator=alone)
    async with driven(config={**settings, "device_config": {"device": device}}) as (_, adapter):
        assert (frozenset({"kv_cache"}) in adapter._known().releasable) is alone


async def test_ranks_of_every_kind_count() -> None:
    settings = config()
    settings["parallel_config"] |= {"tensor_parallel_size": 2, "pipeline_parallel_size": 3, "data_parallel_size": 4}
    async with driven(config=settings) as (_, adapter):
        assert adapter._known().ranks == 24


@pytest.mark.parametrize("version", ["0.31.0", "0.32.0"])
async def test_ranks_that_a_version_does_not_compare_are_noted(version: str) -> None:
    settings = config()
    settings["parallel_config"]["data_parallel_size"] = 2
    async with driven(version, config=settings) as (_, adapter):
        noted = any("only whether the first is paused" in note for note in adapter._known().notes)
        assert noted is (version == "0.31.0")
    async with driven(version) as (_, adapter):
        assert not any("only whether the first is paused" in note for note in adapter._known().notes)


@pytest.mark.parametrize("version", ["0.32.0", "0.33.0"])
async def test_the_doctor_says_what_a_version_is_known_by(version: str) -> None:
    async with RecordedServer(version) as server:
        engine = await Engine(VLLMAdapter(parse(server.url)), name="e", lease=None, policy=UNMEASURED).connect()
        finding = await doctor.version(engine)
        await engine.aclose()
    assert (finding.level == "ok") is (version == "0.32.0")
    assert ("0.33 to before 0.34, read in 0.33.0" in finding.said) is (version == "0.33.0")


async def test_commands_before_connect_are_refused() -> None:
    adapter = VLLMAdapter(parse("vllm://127.0.0.1:1"))
    with pytest.raises(ConfigurationError, match="not connected yet"):
        adapter.close_push_call()
    await asyncio.sleep(0)


async def test_without_its_sleep_mode_nothing_is_sent() -> None:
    """On a GPU its sleep would be answered 200, and free nothing."""
    settings = config(enable_sleep_mode=False, enable_cumem_allocator=False)
    async with RecordedServer(config=settings) as server:
        engine = await Engine(VLLMAdapter(parse(server.url)), name="e", lease=None, policy=UNMEASURED).connect()
        fleet = Fleet([engine])
        with pytest.raises(FleetError, match=r"refused before anything was sent.*--enable-sleep-mode"):
            await fleet.offload(weights=Kept())
        assert engine.state is State.SERVING
        assert server.sent() == []
        await engine.aclose()
