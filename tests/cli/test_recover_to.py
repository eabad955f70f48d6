"""`lifecycle recover --to`: one command finishes what another left in the middle."""

from __future__ import annotations

from lifecycle.adapters.loopback import LoopbackProcess


def test_an_engine_that_was_left_paused_serves_again(lifecycle, address: str) -> None:
    assert lifecycle("pause", address).returncode == 0
    result = lifecycle("recover", address, "--to", "serving")
    assert (result.returncode, result.stdout) == (0, f"{address}  serving\n")


def test_an_engine_that_serves_is_released_and_serves_again(lifecycle, engine: LoopbackProcess, address: str) -> None:
    source = ("--weights", str(engine.weights), "--version", "again", "--threshold-gib", "0.125")
    released = lifecycle("recover", address, "--to", "released", *source)
    assert released.returncode == 0, released.stderr
    assert released.stdout == f"{address}  released\n"
    assert lifecycle("recover", address, "--to", "serving").returncode == 0


def test_one_that_cannot_be_brought_there_is_1_and_says_why(lifecycle, address: str) -> None:
    result = lifecycle("recover", address, "--to", "released", "--weights", "kept")
    assert result.returncode == 1
    assert result.stdout.startswith(f"{address}  serving: weights_recoverable: ")
    assert "what leads on:" in result.stdout
    assert lifecycle("status", address).returncode == 0, "nothing was done to it"


def test_a_place_that_is_none_is_a_usage_error(lifecycle, address: str) -> None:
    result = lifecycle("recover", address, "--to", "asleep")
    assert (result.returncode, result.stderr) == (2, "lifecycle: --to 'asleep': one of serving, released\n")
