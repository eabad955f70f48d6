"""A state folder that cannot be written to: what was kept there is read, and no engine is touched without a record."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from journal_files import copied
from lifecycle.adapters.loopback import LoopbackProcess

from lifecycle.core.lease import Driver, LeasedEngine, LeaseUse
from lifecycle.nodes.same_address import address_of
from lifecycle.store.journal import read_file
from lifecycle.store.leases import Leases
from lifecycle.store.sqlite import Store

ReadOnly = Callable[[Path], Path]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[ReadOnly]:
    """A folder with the same files, in which nothing can be written."""
    with ExitStack() as stack:

        def made(source: Path) -> Path:
            folder = tmp_path / f"read-only-{source.name}"
            folder.mkdir()
            if os.getuid():  # the superuser writes into any folder
                shutil.copytree(source, folder, dirs_exist_ok=True)
                folder.chmod(0o555)
                stack.callback(folder.chmod, 0o755)
                return folder
            if not _ran("mount", "-t", "tmpfs", "tmpfs", str(folder)):
                pytest.skip("this user may not mount a disk")
            stack.callback(_ran, "umount", "-l", str(folder))
            shutil.copytree(source, folder, dirs_exist_ok=True)
            assert _ran("mount", "-o", "remount,ro", str(folder))
            return folder

        yield made


def _ran(*command: str) -> bool:
    return shutil.which(command[0]) is not None and not subprocess.run(command, capture_output=True).returncode


@pytest.fixture
def clean(driven, tmp_path: Path) -> Path:
    """A folder in which no process has a journal open, as one that ended in order leaves it."""
    folder = tmp_path / "clean"
    folder.mkdir()
    copied(driven.path, folder / "engines.sqlite3").close()
    return folder


@pytest.fixture
def killed(clean: Path, tmp_path: Path) -> Path:
    """A folder whose last writer was killed: a part of the journal lies beside its file."""
    pid = os.fork()
    if pid == 0:
        try:
            last = next(iter(read_file(clean / "engines.sqlite3")))
            store = Store(clean / "engines.sqlite3")
            store.journal.note([last])
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(3)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert {each.suffix for each in clean.iterdir()} == {".sqlite3", ".sqlite3-shm", ".sqlite3-wal"}
    return clean


def _is_read(lifecycle, state: Path, count: int) -> None:
    """Every command that only reads prints so many entries."""
    for command in (("history", "--json"), ("logs", "--json")):
        result = lifecycle(*command, state=state)
        assert (result.returncode, result.stderr) == (0, "")
        assert len(result.stdout.splitlines()) == count
    verified = lifecycle("verify-journal", str(state / "engines.sqlite3"))
    assert verified.stdout.endswith("1 journals, 0 violations\n"), verified.stderr


def test_a_journal_that_no_process_has_open_is_read(lifecycle, driven, clean: Path, read_only: ReadOnly) -> None:
    _is_read(lifecycle, read_only(clean), len(driven.entries))


def test_what_a_killed_writer_left_is_read_too(lifecycle, driven, killed: Path, read_only: ReadOnly) -> None:
    _is_read(lifecycle, read_only(killed), len(driven.entries) + 1)


def test_a_copy_of_it_without_what_its_processes_shared_is_read_too(
    lifecycle, driven, killed: Path, read_only: ReadOnly
) -> None:
    (killed / "engines.sqlite3-shm").unlink()
    folder = read_only(killed)
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    _is_read(lifecycle, folder, len(driven.entries) + 1)
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before


def test_where_no_copy_can_be_made_it_says_what_to_do(
    lifecycle, killed: Path, read_only: ReadOnly, monkeypatch: pytest.MonkeyPatch
) -> None:
    (killed / "engines.sqlite3-shm").unlink()
    folder = read_only(killed)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    result = lifecycle("history", state=folder)
    assert result.returncode == 2
    assert "no copy could be made ([Errno 28] No space left on device); copy it with its -wal file" in result.stderr


@pytest.mark.parametrize("left", ["clean", "killed"])
def test_nothing_is_done_to_an_engine_that_could_not_be_written_down(
    left: str, request: pytest.FixtureRequest, lifecycle, engine: LoopbackProcess, address: str, read_only: ReadOnly
) -> None:
    folder = read_only(request.getfixturevalue(left))
    for command in (("pause",), ("recover", "--to", "released"), ("offload", "--weights", "kept")):
        result = lifecycle(command[0], address, *command[1:], state=folder)
        assert result.returncode == 2, result.stdout
        assert f"(nothing can be written in {folder})" in result.stderr
        assert "LIFECYCLE_STATE_DIR names another folder" in result.stderr
        assert "Traceback" not in result.stderr
    assert "serving" in lifecycle("status", address).stdout


def test_a_folder_that_cannot_be_made_is_named(
    lifecycle, address: str, clean: Path, read_only: ReadOnly, tmp_path: Path
) -> None:
    result = lifecycle("pause", address, state=read_only(clean) / "below")
    assert result.returncode == 2
    assert f"{tmp_path}/read-only-clean/below/engines.sqlite3" in result.stderr
    assert "LIFECYCLE_STATE_DIR names another folder" in result.stderr


def test_a_journal_that_cannot_be_followed_yet_is_waited_for_in_no_read_only_folder(
    lifecycle, clean: Path, read_only: ReadOnly
) -> None:
    with closing(copied(clean / "engines.sqlite3", clean / "other")) as db:
        db.execute("DROP TABLE journal")
        db.commit()
    result = lifecycle("history", "--file", str(read_only(clean) / "other"))
    assert (result.returncode, result.stdout) == (2, "")
    assert "no journal can be read there" in result.stderr


def test_a_file_that_is_in_use_and_cannot_be_opened_is_not_copied(
    lifecycle, killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    class Closed(sqlite3.Connection):
        def execute(self, *_: object) -> sqlite3.Cursor:
            error = sqlite3.OperationalError("unable to open database file")
            error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
            raise error

    def closed(path: Any, **how: Any) -> sqlite3.Connection:
        return connect(path, **how, **({"factory": Closed} if "mode=ro" in str(path) else {}))

    monkeypatch.setattr(sqlite3, "connect", closed)  # as for who may not read what its processes share
    monkeypatch.setattr(shutil, "copyfile", lambda *_: pytest.fail("a copy would have parts of two moments"))
    result = lifecycle("history", "--file", str(killed / "engines.sqlite3"))
    assert (result.returncode, result.stdout) == (2, "")
    assert "no journal can be read there: unable to open database file" in result.stderr


@pytest.mark.parametrize("left", ["clean", "killed"])
@pytest.mark.parametrize("command", ["status", "doctor"])
def test_what_only_reads_needs_no_place_to_write_to(
    command: str, left: str, request: pytest.FixtureRequest, lifecycle, driven, address: str, read_only: ReadOnly
) -> None:
    folder = read_only(request.getfixturevalue(left))
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    for state in (folder, folder / "below"):
        result = lifecycle(command, address, "--threshold-gib", "0.125", state=state)
        assert result.returncode == (0 if command == "status" else 4), result.stderr
        assert "serving" in result.stdout
        assert f"{state}/engines.sqlite3: nothing can be written there: what it has is read" in result.stderr
        assert "LIFECYCLE_STATE_DIR names another folder" in result.stderr
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before
    if command == "doctor":  # who drives it is not kept away, and that is not said to be so
        assert re.search("warning +lease +none is taken: no other driver is kept away", result.stdout)


def test_what_is_kept_there_counts_and_who_has_the_engine(
    lifecycle, engine: LoopbackProcess, address: str, kept: Path, read_only: ReadOnly
) -> None:
    assert lifecycle("pause", address).returncode == 0
    try:
        folder = read_only(kept)
        for state, found in ((folder, "drained|paused"), (folder / "below", "failed")):
            assert re.search(f" ({found}) ", lifecycle("status", address, state=state).stdout)
    finally:
        assert lifecycle("resume", address).returncode == 0


def test_of_a_file_that_describes_a_fleet_too(lifecycle, clean: Path, address: str, read_only: ReadOnly) -> None:
    (clean / "fleet.toml").write_text(f'[[engines]]\nurl = "{address}"\n')
    result = lifecycle("status", str(clean / "fleet.toml"), state=read_only(clean))
    assert result.returncode == 0, result.stderr
    assert "serving" in result.stdout


def test_the_driver_that_has_an_engine_is_named_from_there(
    lifecycle, address: str, tmp_path: Path, read_only: ReadOnly
) -> None:
    source, driver = tmp_path / "leased", Driver("a-token", "the driver of a test")
    key = address_of(address)
    assert key is not None
    Leases(source / "engines.sqlite3").take(driver, LeasedEngine(key, None), LeaseUse("a window", None))
    result = lifecycle("doctor", address, "--threshold-gib", "0.125", state=read_only(source))
    assert re.search("warning +lease +.*the driver of a test", result.stdout), result.stdout


def test_leases_that_only_read_make_no_file(tmp_path: Path) -> None:
    leases = Leases(tmp_path / "none" / "engines.sqlite3", reads_only=True)
    assert leases.seen(LeasedEngine("127.0.0.1:1", None)) is None
    assert leases.records().load("127.0.0.1:1") is None
    assert not (tmp_path / "none").exists()
