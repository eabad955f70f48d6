"""Settings: where each value comes from, what is refused and how it is said, and that the threshold arrives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle import ConfigurationError, Engine, Grade, Policy, Process, Unmeasurable
from lifecycle.cli import agent, config, env
from lifecycle.environment import apply_offload_defaults, forwarded, parse_env_positive_float
from lifecycle.launch_environment import launch_environment, preload_library
from lifecycle.registry import adapter_for, parse
from lifecycle.residual import Reading, remote
from lifecycle.residual.owners import by_pid
from lifecycle.residual.remote import TOKEN, RemoteNode
from lifecycle.settings import Settings, load

THRESHOLD = "LIFECYCLE_RESIDUAL_THRESHOLD_GIB"
MILES = "MILES_MAX_RESIDUAL_GPU_MEM_GB"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's settings reaches a test."""
    for name in list(os.environ):
        if name.startswith(("LIFECYCLE_", "MILES_", "RLIX_", "PYTORCH_")):
            monkeypatch.delenv(name)


@pytest.fixture
def fleet_toml(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a fleet.toml with one engine and these lines."""

    def write(text: str) -> Path:
        path = tmp_path / "fleet.toml"
        path.write_text(f'{text}\n[[engines]]\nurl = "loopback://127.0.0.1:1"\n')
        return path

    return write


def test_the_defaults_are_those_of_the_policy() -> None:
    loaded = load()
    assert loaded.settings.policy() == Policy()
    assert set(loaded.origins.values()) == {"default"}
    assert {field.name for field in fields(Policy)} <= set(Settings.model_fields)


def test_the_strongest_source_wins_and_is_named(monkeypatch: pytest.MonkeyPatch, fleet_toml: Any) -> None:
    path = fleet_toml("[policy]\nresidual_threshold_gib = 5.0\nsettle_s = 7\n[agent]\nport = 4000")
    loaded = load(path)
    assert loaded.settings.residual_threshold_gib == 5.0
    assert loaded.settings.agent_port == 4000
    assert loaded.origins["residual_threshold_gib"] == f"{path}: policy.residual_threshold_gib"
    monkeypatch.setenv(MILES, "4.5")
    loaded = load(path)
    assert (loaded.settings.residual_threshold_gib, loaded.origins["residual_threshold_gib"]) == (4.5, MILES)
    monkeypatch.setenv(THRESHOLD, "2.25")
    loaded = load(path)
    assert (loaded.settings.residual_threshold_gib, loaded.origins["residual_threshold_gib"]) == (2.25, THRESHOLD)
    assert loaded.settings.policy().settle_s == 7.0
    assert loaded.settings.policy().threshold_bytes == 2.25 * (1 << 30)


@pytest.mark.parametrize("name", [THRESHOLD, MILES])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0", "-1", "3GB", ""])
def test_a_threshold_that_means_nothing(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refused:
        load()
    assert str(refused.value) == f"{name}={value!r}: must be a finite number > 0"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LIFECYCLE_HOOK_MODE", "preloaded", "'auto', 'torch' or 'preload'"),
        ("LIFECYCLE_HOOK_MODE", "", "'auto', 'torch' or 'preload'"),
        ("LIFECYCLE_PAUSE_MODE", "nap", "'abort', 'wait', 'keep' or 'freeze'"),
        ("LIFECYCLE_ON_FAILURE", "panic", "'restore'"),
        ("LIFECYCLE_RESIDUAL_SCOPE", "gpu", "'process' or 'device'"),
        ("LIFECYCLE_ALLOW_PRELOAD_ON_BLACKWELL", "yes", "must be 1 or 0"),
        ("LIFECYCLE_RETURNED_FRACTION", "1.5", "> 0 and <= 1"),
        ("LIFECYCLE_AGENT_PORT", "70000", "less than or equal to 65535"),
        ("LIFECYCLE_DEADLINES_S__DRAIN", "soon", "must be a finite number > 0"),
        ("LIFECYCLE_DEADLINES_S__NAP", "1", "'nap' is not one of pause, drain"),
        ("LIFECYCLE_ACCEPT__IDLE", "guessed", "one of declared, acknowledged, reported, measured"),
        ("LIFECYCLE_DEADLINES_S", "60", "valid dictionary"),
        ("LIFECYCLE_DEADLINES_S", "{drain", "JSON"),
        ("LIFECYCLE_CANARY_TOKENS", "-1", "greater than or equal to 0"),
    ],
)
def test_a_bad_value_names_its_key_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refused:
        load()
    told = str(refused.value)
    assert said in told
    assert name.partition("__")[0].lower().removeprefix("lifecycle_") in told.lower()


def test_a_bad_value_of_the_file_names_it(fleet_toml: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"fleet.toml: launch.hook_mode='fast'"):
        load(fleet_toml('[launch]\nhook_mode = "fast"'))
    with pytest.raises(ConfigurationError, match=r"fleet.toml: launch.speed=1: no such setting"):
        load(fleet_toml("[launch]\nspeed = 1"))
    with pytest.raises(ConfigurationError, match=r"fleet.toml:2: policy.residual_threshold_gib"):
        load(fleet_toml("[policy]\nresidual_threshold_gib = nan"))


@pytest.mark.parametrize(
    ("value", "mode"), [("torch", "torch"), ("TORCH", "preload"), ("", "preload"), ("x", "preload")]
)
def test_the_hook_mode_of_miles_follows_their_table(monkeypatch: pytest.MonkeyPatch, value: str, mode: str) -> None:
    monkeypatch.setenv("MILES_TMS_HOOK_MODE", value)
    assert load().settings.hook_mode == mode
    monkeypatch.setenv("LIFECYCLE_HOOK_MODE", "auto")
    assert load().settings.hook_mode == "auto"


@pytest.mark.parametrize(("value", "allowed"), [("1", True), ("0", False), ("true", False), ("", False)])
def test_the_escape_of_miles_is_exactly_1(monkeypatch: pytest.MonkeyPatch, value: str, allowed: bool) -> None:
    monkeypatch.setenv("MILES_TMS_ALLOW_PRELOAD_ON_BLACKWELL", value)
    assert load().settings.allow_preload_on_blackwell is allowed


def test_nested_settings_by_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_DEADLINES_S__DRAIN", "90")
    monkeypatch.setenv("LIFECYCLE_ACCEPT", '{"memory_returned": "acknowledged"}')
    policy = load().settings.policy()
    assert policy.deadline_s("drain") == 90.0
    assert policy.least_grade("memory_returned") is Grade.ACKNOWLEDGED


# the command line


def run(capsys: pytest.CaptureFixture[str], module: Any, *arguments: str) -> tuple[int, str]:
    app = typer.Typer(pretty_exceptions_enable=False)
    module.register(app)
    app.command("other")(lambda: None)
    name = module.__name__.rpartition(".")[2]
    result = app([name, *arguments], standalone_mode=False)
    return result, capsys.readouterr().out


def test_config_prints_values_and_origins(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv(MILES, "2.5")
    monkeypatch.setenv(TOKEN, "hunter2")
    monkeypatch.setenv("LIFECYCLE_RESIDUAL_TRESHOLD_GIB", "1")
    code, out = run(capsys, config)
    assert code == 0
    lines = {line.split()[0]: line.split() for line in out.splitlines()}
    assert lines["residual_threshold_gib"] == ["residual_threshold_gib", "2.5", MILES]
    assert lines["settle_s"] == ["settle_s", "5.0", "default"]
    assert "hunter2" not in out
    assert "warning: LIFECYCLE_RESIDUAL_TRESHOLD_GIB is set, and is no setting" in out
    told = json.loads(run(capsys, config, "--json")[1])
    assert told["residual_threshold_gib"] == {"value": 2.5, "origin": MILES}


@pytest.mark.parametrize("engine", ["sglang", "torch"])
def test_env_prints_what_every_process_must_get(monkeypatch: pytest.MonkeyPatch, capsys: Any, engine: str) -> None:
    monkeypatch.setenv(MILES, "2.5")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64,expandable_segments:True")
    told = json.loads(run(capsys, env, "--engine", engine, "--json")[1])["env_vars"]
    assert told["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64,expandable_segments:False"
    assert told["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:False"
    assert told["NCCL_GRAPH_REGISTER"] == "0"
    assert told["LIFECYCLE_HOOK_MODE"] == told["MILES_TMS_HOOK_MODE"]
    assert (told[THRESHOLD], told[MILES]) == ("2.5", "2.5")
    code, out = run(capsys, env, "--engine", engine)
    assert code == 0
    assert "export NCCL_GRAPH_REGISTER=0" in out


def test_env_of_vllm_and_of_nothing_known(capsys: Any) -> None:
    code, out = run(capsys, env, "--engine", "vllm")
    assert code == 0
    assert "export VLLM_SERVER_DEV_MODE=1" in out
    assert "NCCL_GRAPH_REGISTER" not in out
    with pytest.raises(ConfigurationError, match="one of sglang, vllm, torch"):
        run(capsys, env, "--engine", "mlx")


@pytest.fixture
def saver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A site with torch_memory_saver's files in it."""
    (tmp_path / "torch_memory_saver").mkdir()
    (tmp_path / "torch_memory_saver" / "__init__.py").touch()
    for suffix in ("_cu12", "_cu13", ""):
        (tmp_path / f"torch_memory_saver_hook_mode_preload{suffix}.abi3.so").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("cuda", "name"), [("12.9", "_cu12"), ("13.0", "_cu13"), ("14.0", ""), (None, "")])
def test_the_right_library_is_preloaded(saver: Path, cuda: str | None, name: str) -> None:
    library = saver / f"torch_memory_saver_hook_mode_preload{name}.abi3.so"
    assert preload_library(cuda) == library
    before = {"LD_PRELOAD": "/lib/a.so:/old/torch_memory_saver_hook_mode_preload.abi3.so"}
    told = launch_environment("torch", "preload", cuda, before)
    assert told.variables["LD_PRELOAD"] == f"{library}:/lib/a.so"


def test_who_sets_ld_preload_for_sglang(saver: Path) -> None:
    assert "LD_PRELOAD" not in launch_environment("sglang", "preload", "12.9", {}).variables
    assert "LD_PRELOAD" in launch_environment("sglang", "preload", "12.9", {}, spawned=True).variables
    assert "LD_PRELOAD" not in launch_environment("torch", "torch", "12.9", {}).variables


# what frameworks call


@pytest.mark.parametrize(("text", "value"), [(None, 3.0), ("2.5", 2.5), (" 1e1 ", 10.0)])
def test_a_number_from_the_environment(text: str | None, value: float) -> None:
    assert parse_env_positive_float("X", 3.0, {} if text is None else {"X": text}) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3GB", "must be a number"),
        ("", "must be a number"),
        ("nan", "must be a finite number"),
        ("inf", "must be a finite number"),
        ("-inf", "must be a finite number"),
        ("0", "must be > 0"),
        ("-1", "must be > 0"),
    ],
)
def test_what_is_no_such_number(monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setenv("X", text)
    with pytest.raises(ConfigurationError, match=said) as refused:
        parse_env_positive_float("X", 3.0)
    assert f"X {said}" in str(refused.value)
    assert repr(text) in str(refused.value)


def offload(environ: dict[str, str], **given: bool) -> tuple[bool, dict[str, bool]]:
    args = SimpleNamespace(**given)
    return apply_offload_defaults(args, environ), vars(args)


def test_offload_is_forced_on_for_a_shared_gpu() -> None:
    assert offload({"RLIX_CONTROL_PLANE": "rlix"}, offload_rollout=False) == (True, {"offload_rollout": True})
    assert offload({"RLIX_CONTROL_PLANE": "rlix"}) == (True, {"offload_rollout": True})


def test_offload_is_left_alone_without_the_variable() -> None:
    assert offload({}, offload_rollout=False) == (False, {"offload_rollout": False})


@pytest.mark.parametrize("value", ["", "RLIX", "other", "1"])
def test_offload_is_left_alone_for_another_value(value: str) -> None:
    assert offload({"RLIX_CONTROL_PLANE": value}) == (False, {})


def test_forcing_offload_twice_changes_nothing() -> None:
    assert offload({"RLIX_CONTROL_PLANE": "rlix"}, offload_rollout=True) == (False, {"offload_rollout": True})


def test_offload_of_the_trainer_is_untouched() -> None:
    told = offload({"RLIX_CONTROL_PLANE": "rlix"}, offload_train=False)
    assert told == (True, {"offload_train": False, "offload_rollout": True})


# the agent, and that the threshold arrives


@pytest.fixture
def start_agent() -> Iterator[Callable[..., str]]:
    """Starts an agent of its own process; ends it after the test. Returns its address."""
    with ExitStack() as stack:
        yield lambda *arguments, **environ: _start(stack, {TOKEN: "s3cret", **environ}, *arguments)


def _start(stack: ExitStack, environ: dict[str, str], *arguments: str) -> str:
    code = "import typer; from lifecycle.cli import agent; app = typer.Typer(); agent.register(app); app()"
    command = [sys.executable, "-c", code, "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environ})
    for end in (process.stdout.close, process.stderr.close, lambda: process.wait(10), process.terminate):
        stack.callback(end)
    return str(json.loads(process.stdout.readline())["agent"])


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """One agent for all that only ask it."""
    with ExitStack() as stack:
        yield _start(stack, {TOKEN: "s3cret"})


@pytest.fixture
def engine() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(weights_mib=64, kv_mib=64) as process:
        yield process


async def test_the_threshold_reaches_the_agent_by_environment_argument_and_question(start_agent: Any) -> None:
    environ = Settings(residual_threshold_gib=1.75).environment()
    assert environ.items() >= forwarded(1.75).items()
    address = start_agent(**environ)
    told = await RemoteNode(address, token="s3cret").about(deadline_s=10)
    assert told["threshold_gib"] == 1.75
    process = (by_pid(os.getpid()),)
    node = RemoteNode(address, token="s3cret", threshold_gib=0.25)
    assert isinstance(await node.read(process, kind="cpu", scope="process", deadline_s=10), Reading)
    assert (await node.about(deadline_s=10))["threshold_gib"] == 0.25
    other = start_agent("--threshold-gib", "0.5", **environ)
    assert (await RemoteNode(other, token="s3cret").about(deadline_s=10))["threshold_gib"] == 0.5


async def test_an_engine_measured_through_its_agent(
    monkeypatch: pytest.MonkeyPatch, start_agent: Any, engine: LoopbackProcess
) -> None:
    address = start_agent()
    monkeypatch.setenv(TOKEN, "s3cret")
    policy = Policy(residual_threshold_gib=0.25)
    adapter = adapter_for(parse(f"loopback://127.0.0.1:{engine.port}?agent={address}"))
    driven = Engine(adapter, policy=policy)
    try:
        await driven.connect()
        (process,) = await adapter.processes()
        assert (process.pid, process.agent) == (engine.pid, address)
        assert (await RemoteNode(address).about(deadline_s=10))["threshold_gib"] == 0.25, "by the probe"
        await driven.pause()
        await driven.drain()
        released = await driven.release(weights=_pushed())
        assert released.returned_bytes >= 0.9 * (128 << 20)
        engine.kill()
        assert str(await driven.verify()) == "gone", "the agent tells the end of a process from silence"
    finally:
        await driven.aclose()


def _pushed() -> Any:
    from lifecycle import Pushed

    return Pushed(lambda engines: None, "v2")  # type: ignore[arg-type, return-value]


MINE = [Process("here", os.getpid(), 0.0)]


async def test_an_agent_with_another_token(address: str) -> None:
    verdict = await RemoteNode(address, token="guess").read(MINE, kind="cpu", scope="process", deadline_s=10)
    assert isinstance(verdict, Unmeasurable)
    assert "refuses the token" in verdict.reason
    assert TOKEN in verdict.reason


async def test_an_agent_of_another_version(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(remote, "PROTOCOL", 2)
    verdict = await RemoteNode(address, token="s3cret").hook_mode(MINE, deadline_s=10)
    assert isinstance(verdict, Unmeasurable)
    assert "speaks protocol 1" in verdict.reason
    assert "this is 2" in verdict.reason


async def test_no_agent_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    verdict = await RemoteNode(address).free(["host:x"], MINE, need_bytes=1, deadline_s=5)
    assert isinstance(verdict, Unmeasurable)
    assert "lifecycle agent" in verdict.reason
    assert await RemoteNode(address).any_alive(MINE, deadline_s=5) is None


async def test_an_agent_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        verdict = await RemoteNode(address).find(port=1, deadline_s=0.3)
    assert "no answer in 0.3 s" in verdict.reason


async def test_what_listens_is_no_agent(engine: LoopbackProcess) -> None:
    verdict = await RemoteNode(f"127.0.0.1:{engine.port}").about(deadline_s=5)
    assert "is no lifecycle agent" in verdict.reason


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("find", {"pid": 1 << 22}, "there is no process 4194304"),
        ("find", {"port": 0}, "port must be a number > 0"),
        ("find", {"port": "x"}, "port must be a number > 0"),
        ("residual", {"processes": 1}, "processes must be a list"),
        ("residual", {"processes": [{"pid": "a"}]}, "a process is {pid, start_time}"),
        ("residual", {"processes": [], "kind": "tpu"}, "kind must be one of cuda, cpu"),
        ("hook_mode", {"processes": [], "deadline_s": -1}, "deadline_s must be a number > 0"),
        ("dance", {}, "no question 'dance'"),
    ],
)
async def test_questions_that_mean_nothing(address: str, name: str, body: Any, said: str) -> None:
    told = await RemoteNode(address, token="s3cret")._ask(name, body, dict, 10)
    assert isinstance(told, Unmeasurable)
    assert said in told.reason


async def test_a_pid_that_is_not_there_is_refused_at_connect(
    monkeypatch: pytest.MonkeyPatch, address: str, engine: LoopbackProcess
) -> None:
    monkeypatch.setenv(TOKEN, "s3cret")
    adapter = adapter_for(parse(f"loopback://127.0.0.1:{engine.port}?pid=4194304&agent={address}"))
    with pytest.raises(ConfigurationError, match="there is no process 4194304"):
        await adapter.connect(deadline_s=10)
    await adapter.aclose()


def test_an_agent_does_not_start_without_a_token_or_a_port(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with pytest.raises(ConfigurationError, match=TOKEN):
        run(capsys, agent)
    monkeypatch.setenv(TOKEN, "s3cret")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(ConfigurationError, match="cannot listen on"):
            run(capsys, agent, "--port", port)
