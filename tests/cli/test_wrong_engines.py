"""Engines that cannot be driven as their URL says: each command says why in one message, with what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import permutations

import pytest
from lifecycle.adapters.loopback import LoopbackProcess

Start = Callable[..., str]

SCHEMES = ("sglang", "vllm", "tokenspeed")


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """The address of an engine that was started with these options, one for all tests that ask for the same."""
    started: dict[str, LoopbackProcess] = {}
    with ExitStack() as stack:

        def address(dialect: str, **options: object) -> str:
            asked = f"{dialect} {options}"
            if asked not in started:
                process = LoopbackProcess.start(dialect=dialect, **options)  # type: ignore[arg-type]
                started[asked] = stack.enter_context(process)
            return f"127.0.0.1:{started[asked].port}"

        yield address


@pytest.mark.parametrize(("written", "there"), list(permutations(SCHEMES, 2)))
def test_an_engine_of_another_kind_is_named_with_the_scheme_to_write(
    lifecycle, start: Start, written: str, there: str
) -> None:
    at = start(there)
    for command, code in (("doctor", 1), ("status", 1), ("pause", 2), ("cycle", 2)):
        result = lifecycle(command, f"{written}://{at}")
        assert result.returncode == code, result.stderr
        assert f"does: write {there}://{at}" in result.stdout + result.stderr
        assert "Traceback" not in result.stderr
    assert "serving" in lifecycle("status", f"{there}://{at}").stdout


def test_an_engine_of_another_kind_is_named_where_nothing_can_drive_it(lifecycle, start: Start) -> None:
    at = start("vllm", arguments=("--no-dev-mode",))
    assert f"write vllm://{at}" in lifecycle("pause", f"sglang://{at}").stderr
