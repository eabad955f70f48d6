"""The doctor, on real loopback engines and on engines that only say what they are."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from lifecycle.adapters.loopback import LoopbackProcess
from residual.stand_in_nvml import StandInNvml, gpu

from lifecycle import Capabilities, Engine, Observation, Policy, Process, TagSpec
from lifecycle.cli import doctor as command
from lifecycle.doctor import CHECKS, Finding, examine, worst
from lifecycle.nodes import this_host as nodes
from lifecycle.nodes.driver import NvmlDriver
from lifecycle.nodes.processes import by_pid

GIB = 1 << 30


@pytest.fixture(scope="module")
def good() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(weights_mib=96, kv_mib=96) as process:
        yield process


@pytest.fixture(scope="module")
def plain() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(weights_mib=96, kv_mib=96, memory_saver=False) as process:
        yield process


@pytest.fixture(scope="module")
def locked() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(weights_mib=96, kv_mib=96, api_key="k", admin_api_key="a") as process:
        yield process


@pytest.fixture
def nothing() -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """`lifecycle doctor` with these arguments: exit code and what it printed."""
    monkeypatch.setenv("LIFECYCLE_STATE_DIR", str(tmp_path))
    app = typer.Typer(pretty_exceptions_enable=False)
    command.register(app)
    app.command("other")(lambda: None)

    def go(*arguments: str) -> tuple[int, str]:
        code = app(["doctor", *arguments], standalone_mode=False)
        return code, capsys.readouterr().out

    return go


#: A residual threshold below what these small engines hold.
SMALL = ("--threshold-gib", "0.125")


def url(process: LoopbackProcess, query: str = "") -> str:
    return f"loopback://127.0.0.1:{process.port}?name=e{query}"


def test_a_good_engine(run: Any, good: LoopbackProcess) -> None:
    code, out = run(url(good), *SMALL)
    assert code == 0, out
    lines = out.splitlines()
    assert lines[0] == "e"
    assert len(lines) == 1 + len(CHECKS), "one line a check"
    assert all(line.startswith("  ok ") for line in lines[1:])
    for told in ("0.5.23", "memory saver    on", "weights 96 MiB", f"pid {good.pid}", "measured by process memory"):
        assert told in out


def test_a_threshold_that_nothing_can_exceed_is_a_warning(run: Any, good: LoopbackProcess) -> None:
    code, out = run(url(good))
    assert code == 4
    (warning,) = [line for line in out.splitlines() if "warning" in line]
    assert "threshold 3072 MiB; that is not below all it holds, and cannot be exceeded" in warning
    assert "Policy(residual_threshold_gib=...)" in warning
    assert "--threshold-gib" in warning


def test_without_memory_saver(run: Any, plain: LoopbackProcess) -> None:
    code, out = run(url(plain))
    assert code == 1
    (failure,) = [line for line in out.splitlines() if "failure" in line]
    assert "memory saver" in failure
    assert "--enable-memory-saver" in failure


def test_behind_a_wrong_key(run: Any, locked: LoopbackProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRONG", "guess")
    code, out = run(url(locked, "&api_key_env=WRONG"))
    assert code == 1
    assert "refuses the key" in out
    monkeypatch.setenv("RIGHT", "k")
    code, out = run(url(locked, "&api_key_env=RIGHT"))
    assert code == 1
    assert "control endpoints refuse the key" in out
    monkeypatch.setenv("ADMIN", "a")
    code, out = run(url(locked, "&api_key_env=RIGHT&admin_api_key_env=ADMIN"), *SMALL)
    assert code == 0, out


def test_nothing_there(run: Any, nothing: int) -> None:
    code, out = run(f"loopback://127.0.0.1:{nothing}")
    assert code == 1
    assert "nothing listens there" in out
    assert len(out.splitlines()) == 2


def test_json_and_the_worst_of_several(run: Any, good: LoopbackProcess, plain: LoopbackProcess) -> None:
    code, out = run(url(good), f"loopback://127.0.0.1:{plain.port}?name=p", "--json", *SMALL)
    told = json.loads(out)
    assert code == 1
    assert [(each["engine"], each["worst"]) for each in told] == [("e", "ok"), ("p", "failure")]
    assert {finding["check"] for finding in told[0]["findings"]} == {
        finding["check"] for finding in told[1]["findings"]
    }


def test_a_monitor_on_this_host_is_named(run: Any, good: LoopbackProcess) -> None:
    connect = f"s = socket.create_connection(('127.0.0.1', {good.port}))"
    code = f"import socket, sys; {connect}; print('on', flush=True); sys.stdin.read()"
    monitor = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert monitor.stdout is not None
        monitor.stdout.readline()
        code, out = run(url(good))
        assert code == 4
        assert f"connected now: pid {monitor.pid}" in out
        assert "/ping and /ready" in out
    finally:
        monitor.communicate()


DOCS = Path(__file__).parent.parent / "docs" / "doctor"


@pytest.mark.parametrize("name", ["good", "without-memory-saver", "wrong-key", "nothing-there"])
def test_the_outputs_in_the_docs_are_what_is_printed_now(
    run: Any, good: Any, plain: Any, locked: Any, nothing: int, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ports = {"good": good.port, "without-memory-saver": plain.port, "wrong-key": locked.port, "nothing-there": nothing}
    monkeypatch.setenv("WRONG_KEY", "guess")
    query = "?api_key_env=WRONG_KEY" if name == "wrong-key" else ""
    code, out = run(f"loopback://127.0.0.1:{ports[name]}{query}", *SMALL)
    asked = f"$ lifecycle doctor 'loopback://127.0.0.1:30000{query}' {' '.join(SMALL)}\n"
    told = f"{asked}{out}$ echo $?\n{code}\n"
    assert _of_any_machine(told) == _of_any_machine((DOCS / f"{name}.txt").read_text())


def _of_any_machine(output: str) -> str:
    """The output without what differs from one machine and process to the next."""
    output = re.sub(r"127\.0\.0\.1'?(:|, )\d+", "ADDRESS", output)
    return re.sub(r"pid \d+ on \S+,|\d+ MiB of host:\S+;|\(\S+engines\.sqlite3\)", "THERE", output)


def test_the_worst_level() -> None:
    ok, warning, failure = (Finding("c", level, "") for level in ("ok", "warning", "failure"))
    assert worst([]) == "ok"
    assert worst([ok, warning]) == "warning"
    assert worst([warning, failure, ok]) == "failure"


# engines on a GPU, as they say they are

CUDA = Capabilities(
    engine="SGLang",
    version="0.5.23",
    tags=(TagSpec("weights", "weights", "discarded", 2 * GIB), TagSpec("kv_cache", "kv", "discarded", 4 * GIB)),
    pause={},
    memory_saver=True,
    saver="torch_memory_saver",
    update=frozenset({"disk"}),
    device="cuda",
)


class SaysSo:
    """An engine that only says what it is: enough of an adapter for the doctor."""

    measured_on = ("0.5.23",)
    url = "sglang://127.0.0.1:1"

    def __init__(self, capabilities: Capabilities, admission: Any, process: Process | None) -> None:
        self.capabilities = capabilities
        self.admission = admission
        self.process = process

    async def connect(self, *, deadline_s: float) -> Capabilities:
        return self.capabilities

    async def observe(self, want: Any, *, deadline_s: float) -> Observation:
        return Observation(boot="b", alive=True, admission=self.admission)

    async def processes(self) -> tuple[Process, ...] | None:
        return (self.process,) if self.process else None


@pytest.fixture
def child() -> Iterator[Any]:
    """Starts a process with this environment."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str = "import sys; print(flush=True); sys.stdin.read()", **environ: str) -> Process:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, env=environ)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        return by_pid(process.pid)

    yield start
    for process in started:
        process.communicate()


def findings(
    monkeypatch: pytest.MonkeyPatch,
    process: Process | None,
    card: dict[str, Any],
    admission: Any = "open",
    **changes: Any,
) -> dict[str, Finding]:
    driver = NvmlDriver(StandInNvml.of(card))
    monkeypatch.setattr(nodes, "driver", lambda: driver)
    adapter: Any = SaysSo(replace(CUDA, **changes), admission, process)
    found = asyncio.run(examine(Engine(adapter, policy=Policy(unprovable="warn"))))
    return {finding.check: finding for finding in found}


def on(process: Process | None, **changes: Any) -> dict[str, Any]:
    compute = [{"pid": process.pid, "used": 8 * GIB}] if process else []
    return gpu(compute=compute, memory={"total": 80 * GIB, "used": 9 * GIB, "free": 71 * GIB}, **changes)


def test_a_good_engine_on_a_gpu(monkeypatch: pytest.MonkeyPatch, child: Any) -> None:
    process = child()
    found = findings(monkeypatch, process, on(process))
    assert worst(found.values()) == "ok", found
    assert "NVML by process: 8192 MiB of GPU-0000aaaa" in found["residual"].said


def test_preload_on_blackwell(monkeypatch: pytest.MonkeyPatch, child: Any) -> None:
    process, torch = child(), child(MILES_TMS_HOOK_MODE="torch")
    allowed = child(MILES_TMS_ALLOW_PRELOAD_ON_BLACKWELL="1")
    ours, wrong = child(LIFECYCLE_HOOK_MODE="auto"), child(LIFECYCLE_HOOK_MODE="fast")
    levels = {}
    for name, each in (("unset", process), ("torch", torch), ("allowed", allowed), ("auto", ours), ("wrong", wrong)):
        card = on(each, name="RTX 5090", capability=[12, 0])
        levels[name] = findings(monkeypatch, each, card)["hook mode"].level
    assert levels == {"unset": "failure", "torch": "ok", "allowed": "warning", "auto": "ok", "wrong": "failure"}


def test_what_is_preloaded_counts_more_than_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, child: Any) -> None:
    library = "/site/torch_memory_saver_hook_mode_preload_cu12.abi3.so"
    process = child(MILES_TMS_HOOK_MODE="torch", LD_PRELOAD=library)
    finding = findings(monkeypatch, process, on(process, name="RTX 5090", capability=[12, 0]))["hook mode"]
    assert finding.level == "failure"
    assert f"pid {process.pid} was to use hook mode torch and was started with LD_PRELOAD={library}" in finding.said
    assert findings(monkeypatch, process, on(process))["hook mode"].level == "ok", "before Blackwell it is safe"


def test_the_worst_process_of_the_tree_counts(monkeypatch: pytest.MonkeyPatch, child: Any) -> None:
    """The parent is safe; its child was started without the variable."""
    below = f"{sys.executable} -c 'import sys; print(flush=True); sys.stdin.read()'"
    code = f"import subprocess, shlex; subprocess.run(shlex.split({below!r}), env={{}})"
    parent = child(code, MILES_TMS_HOOK_MODE="torch")
    finding = findings(monkeypatch, parent, on(parent, name="RTX 5090", capability=[12, 0]))["hook mode"]
    assert finding.level == "failure"


def test_a_process_sees_only_its_devices(monkeypatch: pytest.MonkeyPatch, child: Any) -> None:
    process = child(CUDA_VISIBLE_DEVICES="")
    card = on(process, name="RTX 5090", capability=[12, 0])
    assert findings(monkeypatch, process, card)["hook mode"].level == "ok"


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_expandable_segments_under_either_name(monkeypatch: pytest.MonkeyPatch, child: Any, name: str) -> None:
    process = child(**{name: "max_split_size_mb:64,expandable_segments:True"})
    finding = findings(monkeypatch, process, on(process))["allocator"]
    assert finding.level == "failure"
    assert f"pid {process.pid}" in finding.said
    assert name in finding.said


def test_two_libraries_of_the_saver_are_one_too_many(monkeypatch: pytest.MonkeyPatch, child: Any) -> None:
    library = "/site/torch_memory_saver_hook_mode_preload{}.abi3.so"
    one, two = (
        child(LD_PRELOAD=":".join(["/lib/other.so", *map(library.format, suffixes)]))
        for suffixes in (["_cu12"], ["_cu12", ""])
    )
    assert findings(monkeypatch, one, on(one))["allocator"].level == "ok"
    finding = findings(monkeypatch, two, on(two))["allocator"]
    assert finding.level == "failure"
    assert f"pid {two.pid}" in finding.said
    assert "two libraries of torch_memory_saver" in finding.said
    assert findings(monkeypatch, two, on(two), saver="cumem")["allocator"].level == "ok"


def test_graphs_of_several_ranks_need_nccl_told_of_them(monkeypatch: pytest.MonkeyPatch, child: Any) -> None:
    unset, off = child(), child(NCCL_GRAPH_REGISTER="0")
    assert findings(monkeypatch, unset, on(unset))["allocator"].level == "ok", "one rank has no peer"
    assert findings(monkeypatch, off, on(off), ranks=2)["allocator"].level == "ok"
    finding = findings(monkeypatch, unset, on(unset), ranks=2)["allocator"]
    assert finding.level == "warning"
    assert "NCCL_GRAPH_REGISTER=unset" in finding.said


def test_the_worst_of_how_processes_were_started_is_said(monkeypatch: pytest.MonkeyPatch, child: Any) -> None:
    """The parent lacks a variable, which is a warning; its child cannot give memory back at all."""
    below = f"{sys.executable} -c 'import sys; print(flush=True); sys.stdin.read()'"
    environ = {"NCCL_GRAPH_REGISTER": "0", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    parent = child(f"import subprocess, shlex; subprocess.run(shlex.split({below!r}), env={environ!r})")
    finding = findings(monkeypatch, parent, on(parent), ranks=2)["allocator"]
    assert finding.level == "failure"
    assert "expandable_segments" in finding.said


def test_what_cannot_be_seen_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(monkeypatch, None, on(None))
    levels = {name: finding.level for name, finding in found.items() if finding.level != "ok"}
    assert levels == {"hook mode": "warning", "allocator": "warning", "processes": "failure", "residual": "failure"}
    assert "agent=HOST:PORT" in found["processes"].remedy


@pytest.mark.parametrize(
    ("changes", "check", "level"),
    [
        ({"version": "0.6.0"}, "version", "warning"),
        ({"memory_saver": None}, "memory saver", "warning"),
        ({"memory_saver": False}, "memory saver", "failure"),
        ({"idle_covers_device": False}, "device idle", "warning"),
        ({"update": frozenset()}, "weights", "failure"),
        ({"tags": ()}, "tags", "failure"),
        ({"tags": (TagSpec("weights", "weights", "kept"),)}, "tags", "warning"),
        ({"tags": (TagSpec("weights", "weights", "kept", 1 << 20),)}, "residual", "warning"),
        ({"admission": "closed"}, "state", "warning"),
        ({"admission": None}, "state", "failure"),
    ],
)
def test_each_check_by_itself(
    monkeypatch: pytest.MonkeyPatch, child: Any, changes: dict[str, Any], check: str, level: str
) -> None:
    process = child()
    found = findings(monkeypatch, process, on(process), **changes)
    assert found[check].level == level
    assert found[check].remedy or check in ("tags",)
