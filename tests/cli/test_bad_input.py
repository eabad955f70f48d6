"""Bad input: one clear message, an exit code, and an engine that is left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

BAD = [
    (("status", "smtp://127.0.0.1:1"), 2, "another comes with a package"),
    (("pause", "nonsense"), 2, "no engine URL"),
    (("pause", "loopback://127.0.0.1:9"), 2, "nothing listens there"),
    (("pause", "loopback://127.0.0.1"), 2, "has no port; it looks like loopback://127.0.0.1:30000"),
    (("pause", "loopback://me:secret@127.0.0.1:9"), 2, "a user means nothing here"),
    (("pause", "loopback://127.0.0.1:9/v1"), 2, "a path, a fragment or a user"),
    (("pause", "loopback://[::1]:9?naem=x"), 2, "loopback://[::1]:9: unknown option 'naem'"),
    (("pause", "loopback://a..b:9"), 2, "is no engine URL: encoding with 'idna' codec failed"),
    (("offload", "ADDRESS?tags="), 2, "tags names none"),
    (("pause", "ADDRESS", "ADDRESS"), 2, "stands twice"),
    (("pause", "ADDRESS", "--mode", "gently"), 2, "one of abort, wait, keep, freeze"),
    (("pause", "ADDRESS", "--mode", "wait"), 3, "needs a router"),
    (("pause", "ADDRESS", "--deadline", "0"), 2, "must be a finite number > 0"),
    (("pause", "ADDRESS", "--deadline", "nan"), 2, "must be a finite number > 0"),
    (("pause", "ADDRESS", "--deadline", "-1"), 2, "must be a finite number > 0"),
    (("pause", "ADDRESS", "--engines", "nobody"), 2, "no engine 'nobody'"),
    (("pause", "ADDRESS", "--group", "nobody"), 2, "the fleet has default"),
    (("pause", "ADDRESS", "--engines", ","), 2, "--engines names none"),
    (("override", "drained", "ADDRESS", "--by", "me", "--reason", "x", "--engines", "nobody"), 2, "no engine 'nobody'"),
    (("drain", "ADDRESS"), 3, "allowed here: pause"),
    (("offload", "ADDRESS"), 3, "name a source"),
    (("offload", "ADDRESS", "--tags", "lungs"), 3, "unknown tag lungs; it has kv_cache, weights"),
    (("offload", "ADDRESS", "--tags", ","), 2, "names none"),
    (("offload", "ADDRESS", "--weights", "kept"), 3, "keeps no backup"),
    (("offload", "ADDRESS", "--weights", "/checkpoint"), 2, "--version"),
    (("offload", "ADDRESS", "--weights", "", "--version", "v"), 2, "which is missing"),
    (("offload", "ADDRESS", "--weights", "kept", "--version", "v"), 2, "which is missing"),
    (("restore", "ADDRESS", "--only", "kv", "--weights", "/checkpoint", "--version", "v"), 2, "leave out --weights"),
    (("offload", "ADDRESS", "--threshold-gib", "nan"), 2, "residual_threshold_gib must be a finite number"),
    (("cycle", "ADDRESS", "--times", "0"), 2, "times"),
    (("diagram", "--docs", "/proc/nowhere"), 2, "--docs /proc/nowhere: No such file"),
    (("diagram", "--format", "png"), 2, "one of ring, full as mermaid, svg, table"),
    (("status", "missing.toml"), 2, "No such file"),
    (("nonsense",), 2, "No such command"),
]


@pytest.mark.parametrize(("arguments", "code", "said"), BAD, ids=[" ".join(each[0]) for each in BAD])
def test_bad_input_is_one_clear_message(lifecycle, address: str, arguments, code: int, said: str) -> None:
    result = lifecycle(*(argument.replace("ADDRESS", address) for argument in arguments))
    assert result.returncode == code, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--port", "99999", "less than or equal to 65535"), ("--host", "a..b", "cannot listen on a..b")],
)
def test_an_agent_that_can_listen_nowhere_says_so(
    lifecycle, monkeypatch: pytest.MonkeyPatch, option: str, value: str, said: str
) -> None:
    monkeypatch.setenv("LIFECYCLE_AGENT_TOKEN", "t")
    result = lifecycle("agent", option, value, "--port" if option == "--host" else "--host", "0")
    assert result.returncode == 2
    assert said in result.stderr


def test_a_path_too_long_to_exist_is_the_engines_own(lifecycle, address: str) -> None:
    result = lifecycle("offload", address, "--weights", "x" * 5000, "--version", "v", "--dry-run")
    assert result.returncode == 0, result.stderr


def test_a_state_folder_that_cannot_be_used_is_named(lifecycle, address: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "engines.sqlite3").write_text("not a database, and long enough to be taken for one")
    for folder in (tmp_path / "file", tmp_path):
        result = lifecycle("pause", address, state=folder)
        assert result.returncode == 2
        assert "LIFECYCLE_STATE_DIR names another folder" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.fixture(scope="module", autouse=True)
def untouched(lifecycle, engine) -> Iterator[None]:
    """After all of them the engine serves what it was started with, and was never paused."""
    yield
    status = lifecycle("status", f"loopback://127.0.0.1:{engine.port}").stdout
    assert "serving" in status
    assert "launched(default)" in status
