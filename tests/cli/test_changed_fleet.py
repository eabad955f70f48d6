"""A fleet file that no longer matches what the journal says: what changed is said, and no engine is lost over it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle.nodes.processes import node_name

Change = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def other() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(weights_mib=96, kv_mib=96) as process:
        yield process


def at(process: LoopbackProcess) -> str:
    """The engine's address as messages have it."""
    return f"{node_name()}:{process.port}"


def table(name: str, process: LoopbackProcess, group: str = "rollout") -> str:
    url = f"loopback://127.0.0.1:{process.port}"
    return f'[[engines]]\nname = "{name}"\nurl = "{url}"\ngroup = "{group}"\n'


@pytest.fixture
def typed(lifecycle, tmp_path: Path) -> Change:
    """A command on the fleet of these tables, in a state folder of this test."""
    file = tmp_path / "fleet.toml"

    def run(command: str, *tables: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        file.write_text("[policy]\nresidual_threshold_gib = 0.125\n" + "".join(tables))
        result = lifecycle(command, str(file), *options, state=tmp_path / "state")
        assert "Traceback" not in result.stderr
        return result

    return run


@pytest.fixture
def released(typed: Change, engine: LoopbackProcess, other: LoopbackProcess) -> Iterator[Change]:
    """The same, after the fleet of `a` and `b` was released; it serves again at the end."""
    source = ("--weights", str(engine.weights), "--version", "v1")
    result = typed("offload", table("a", engine), table("b", other), options=source)
    assert result.returncode == 0, result.stderr
    yield typed
    back = typed("recover", table("a", engine), table("b", other), options=("--to", "serving"))
    assert back.returncode == 0, back.stdout + back.stderr


def states(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {line.split()[0]: line.split()[2] for line in result.stdout.splitlines()[1:3]}


def test_nothing_is_said_of_a_fleet_that_is_as_it_was(released: Change, engine, other) -> None:
    result = released("status", table("a", engine), table("b", other))
    assert (result.returncode, result.stderr) == (0, "")


def test_an_engine_that_was_renamed_is_known_by_its_address(released: Change, engine, other) -> None:
    result = released("status", table("first", engine), table("b", other))
    assert states(result) == {"first": "released", "b": "released"}
    assert result.stderr == (
        f"lifecycle: first ({at(engine)}) was called a; it is the same engine, and what is kept of it counts\n"
    )
    recovered = released("recover", table("first", engine), table("b", other), options=("--to", "serving"))
    assert (recovered.returncode, recovered.stdout) == (0, "first  serving\nb  serving\n")
    assert released("status", table("first", engine), table("b", other)).stderr == "", "it was driven so meanwhile"


def test_an_engine_in_another_group_is_said(released: Change, engine, other) -> None:
    result = released("recover", table("a", engine, "decode"), table("b", other), options=("--to", "serving"))
    assert (result.returncode, result.stdout) == (0, "a  serving\nb  serving\n")
    assert result.stderr == f"lifecycle: a ({at(engine)}) was in group rollout, and is in decode now\n"


@pytest.mark.parametrize("command", ["status", "recover"])
def test_an_engine_that_was_taken_out_while_it_is_released_is_named(
    released: Change, engine, other, command: str
) -> None:
    result = released(command, table("a", engine))
    assert result.stderr == (
        f"lifecycle: b ({at(other)}) was driven with engines of this fleet and is not in it; it was left released. Put "
        f"it back into the fleet, or bring it home alone: `lifecycle recover loopback://127.0.0.1:{other.port} --to "
        "serving`\n"
    )


@pytest.mark.slow
def test_it_is_named_still_after_the_others_were_brought_home(released: Change, engine, other) -> None:
    assert released("recover", table("a", engine), options=("--to", "serving")).returncode == 0
    assert f"b ({at(other)}) was driven with engines of this fleet" in released("status", table("a", engine)).stderr


@pytest.mark.slow
def test_what_the_message_names_brings_it_home(released: Change, engine, other, lifecycle, tmp_path: Path) -> None:
    said = released("status", table("a", engine)).stderr
    command = said.partition("`lifecycle ")[2].partition("`")[0].split()
    assert lifecycle(*command, state=tmp_path / "state").returncode == 0
    assert released("status", table("a", engine)).stderr == ""


@pytest.mark.slow
def test_an_engine_that_another_process_has_is_named_with_who_has_it(
    typed: Change, engine, other, tmp_path: Path
) -> None:
    holds = (
        "import asyncio, sys\n"
        "from lifecycle import Fleet, FromDisk, Policy\n"
        "async def main():\n"
        "    ports = zip('ab', sys.argv[1:3])\n"
        "    urls = [f'loopback://127.0.0.1:{port}?name={name}&group=rollout' for name, port in ports]\n"
        "    async with Fleet.connect(urls, policy=Policy(residual_threshold_gib=0.125)) as fleet:\n"
        "        async with fleet.offloaded(weights=FromDisk(sys.argv[3], 'v1')):\n"
        "            print('released', flush=True)\n"
        "            sys.stdin.readline()\n"
        "asyncio.run(main())\n"
    )
    arguments = [str(engine.port), str(other.port), str(engine.weights)]
    environment = {**os.environ, "LIFECYCLE_STATE_DIR": str(tmp_path / "state")}
    with subprocess.Popen(
        [sys.executable, "-c", holds, *arguments], stdin=-1, stdout=-1, text=True, env=environment
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "released\n"
        result = typed("recover", table("a", engine))
        held = f"it was left released, and pid {holder.pid} on "
        assert f"b ({at(other)}) was driven with engines of this fleet and is not in it; {held}" in result.stderr
        assert "has it for an engine that it left released, since " in result.stderr
        holder.communicate("go on\n", timeout=30)
    assert holder.returncode == 0
    assert typed("status", table("a", engine), table("b", other)).stderr == ""


@pytest.mark.slow
def test_a_name_that_is_at_another_engine_now_is_said(released: Change, engine, other, start_third) -> None:
    result = released("status", table("a", engine), table("b", start_third))
    assert states(result) == {"a": "released", "b": "serving"}
    moved, left = result.stderr.splitlines()
    assert moved == (
        f"lifecycle: b was at {at(other)}, and is at {at(start_third)} now: what is kept of the engine there is not "
        "about this one"
    )
    assert left.startswith(f"lifecycle: b ({at(other)}) was driven with engines of this fleet and is not in it")


@pytest.fixture
def start_third() -> Iterator[LoopbackProcess]:
    with LoopbackProcess.start(weights_mib=96, kv_mib=96) as process:
        yield process


def test_two_engines_that_changed_their_names_are_each_who_they_are(released: Change, engine, other) -> None:
    result = released("status", table("b", engine), table("a", other))
    assert states(result) == {"b": "released", "a": "released"}
    assert len(result.stderr.splitlines()) == 4


@pytest.mark.slow
def test_a_fleet_of_other_engines_hears_nothing_of_these(released: Change, start_third) -> None:
    assert released("status", table("c", start_third)).stderr == ""


def test_one_engine_by_its_url_is_no_fleet_that_could_have_changed(
    released: Change, engine, lifecycle, tmp_path: Path
) -> None:
    result = lifecycle("status", f"loopback://127.0.0.1:{engine.port}", state=tmp_path / "state")
    assert result.stderr == ""


def test_a_journal_of_another_version_does_not_keep_the_status_from_being_told(
    released: Change, engine, other, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "state" / "engines.sqlite3")) as db:
        db.execute("UPDATE journal SET format = 9")
        db.commit()
    result = released("status", table("first", engine), table("b", other))
    assert (states(result), result.stderr) == ({"first": "released", "b": "released"}, "")
