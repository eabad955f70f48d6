"""What the peers' table rests on: which functions ran, which lines count, what is hollow and what engines do."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hollow_modules
import peer_packages
import peer_step
import peers_page
import pytest
import record_peers
import test_peers
from functions_run import Function, FunctionsRun, merged


def test_lines_are_counted_without_imports_and_docstrings(tmp_path: Path) -> None:
    path = tmp_path / "shim.py"
    shim = [
        '"""Words',
        'of two lines."""',
        "import os",
        "",
        "class A:  # a comment",
        '    """Words."""',
        "    b = (",
        "        1",
        "    )",
    ]
    path.write_text("\n".join(shim))
    assert peers_page.code_lines(path) == {5, 7, 8, 9}


def test_a_peer_that_there_is_not_is_refused() -> None:
    command = [sys.executable, str(record_peers.HERE / "run_peer.py"), "slime", "--out", "/dev/null"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "invalid choice: 'slime'" in ended.stderr


def test_a_run_that_fails_is_no_result() -> None:
    with pytest.raises(RuntimeError, match="exit code 2"):
        record_peers.found_of("slime")


def test_packages_that_are_not_installed_are_named_and_nothing_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test that downloaded them would fail where a registry is slow."""
    monkeypatch.setattr(peer_packages, "CACHE", tmp_path)
    monkeypatch.delattr(subprocess, "run")
    assert "trl==1.16.0, skyrl==0.4.0, verl==0.9.1; make slow and make peers install it" in peer_packages.lacking()
    with pytest.raises(FileNotFoundError, match=r"verl==0\.9\.1 is not installed: make slow"):
        peer_packages.folder_of("verl")
    with pytest.raises(pytest.skip.Exception, match="make slow and make peers install it"):
        inspect.unwrap(test_peers.packages)()


def test_packages_are_installed_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], check: bool) -> None:
        ran.append(command)
        Path(command[command.index("--target") + 1]).mkdir()

    monkeypatch.setattr(peer_packages, "CACHE", tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    for _ in range(2):
        peer_packages.install()
    assert [next(each for each in command if "==" in each) for command in ran] == [
        package.release for package in peer_packages.PACKAGES.values()
    ]
    assert peer_packages.lacking() == ""
    assert peer_packages.folder_of("trl") == tmp_path / "trl-1.16.0"
    (tmp_path / "trl-1.16.0" / "recipe.sha256").write_text("another release beside it")
    assert peer_packages.lacking().startswith("not installed: trl==1.16.0;")


def test_make_slow_installs_them_before_its_tests() -> None:
    makefile = (record_peers.peers_page.ROOT / "Makefile").read_text()
    assert re.search(r"^\$\(PEERS\):.*\n\t.*tests/peers/peer_packages\.py$", makefile, re.MULTILINE)
    for target in ("slow", "peers", "long"):
        assert re.search(rf"^{target}:.* \$\(PEERS\)$", makefile, re.MULTILINE), target


def test_functions_and_lines_that_ran_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the folder, no class bodies, and of a function with two branches the lines of one."""
    (tmp_path / "half.py").write_text("class A:\n    b = 1\n\n\ndef f(x):\n    if x:\n        return 1\n    return 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before, ran = sys.gettrace(), FunctionsRun(tmp_path)
    with ran.recording():
        half = importlib.import_module("half")
        half.f(True)
    sys.settrace(before)
    assert ran.found() == [Function("half.py", "f", lines=3, ran=2)]
    assert half.f(False) == 2
    assert ran.found() == [Function("half.py", "f", lines=3, ran=2)]


def test_of_several_processes_the_one_counts_in_which_most_ran() -> None:
    one, more, other = Function("a", "f", 3, 1), Function("a", "f", 3, 2), Function("a", "g", 1, 1)
    assert merged([more, other, one]) == [more, other]


def test_hollow_modules_have_nothing_but_what_they_are_filled_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    finder = hollow_modules.installed(["hollow_one"], {"hollow_one.part": {"there": 7}})
    part = importlib.import_module("hollow_one.part")
    assert (part.there, part.function(), part.Kind.__name__) == (7, None, "Kind")
    assert finder.imported == ["hollow_one", "hollow_one.part"]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("hollow_two")
    with pytest.raises(RuntimeError, match=r"hollow_one, hollow_one\.part|hollow_one was imported"):
        hollow_modules.installed(["hollow_one"], {})


@pytest.mark.slow
def test_what_an_engine_serves_is_found_from_outside() -> None:
    known = {"launched": [1], "trained": [2]}
    with peer_step.engines("vllm:0.32", "dies", 2, known) as engines:
        asked = engines.found(lambda url, deadline_s: [2] if url == engines.urls[0] else [3])
        engines.processes[1].kill()
        gone = engines.found(peer_step.vllm_tokens)
    assert [each.split(" on ")[0] for each in asked] == ["serves trained weights", "serves other weights"]
    assert gone == ["serves other weights", "gone"]


@pytest.mark.parametrize(
    ("message", "noted"),
    [
        ("http://127.0.0.1:7/sleep failed\nand more", "raised ValueError: http://engine-0/sleep failed"),
        ("ray::Trainer.update() (pid=3, ip=1)\n  File\nOSError: no", "raised ValueError: OSError: no"),
        ("", "raised ValueError: "),
    ],
)
def test_an_error_of_a_loop_is_noted_in_one_line_that_names_engines(message: str, noted: str) -> None:
    outcome = peer_step.Outcome("loop", "none", "ours")
    engines: Any = SimpleNamespace(urls=["http://127.0.0.1:7"])
    with peer_step.recorded(outcome, engines):
        raise ValueError(message)
    assert outcome.ended == noted
    assert "ValueError" in outcome.trace
