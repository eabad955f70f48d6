"""The table of engine and case, and which cases run where.

`make test` asks the first engine of SGLang and of vLLM the quick cases. `make slow` asks them of every engine, and
every other case of one engine: those of SGLang's dialect and vLLM's take turns. `make long` asks every case of every
engine, and so does `pytest tests/conformance`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lifecycle import Rejected
from lifecycle.testing.conformance.table import Table

#: vLLM before 0.31 answers a sleep while KV alone is asleep, and does nothing: the adapter refuses to send it.
NO_SLEEP_HALF_AWAKE = pytest.mark.xfail(raises=Rejected, strict=True, reason="this version sleeps only as a whole")

#: A case for each thing that the suite can find out.
QUICK = {
    "test_it_is_what_its_author_says",
    "test_update[update_weights-from-paused]",
    "test_tags_that_cannot_be_meant",
    "test_in_flight[keep]",
    "test_lost[release-answer-lost-first]",
    "test_lost[restore_kv-never-sent-last]",
    "test_deadline[release]",
    "test_cancelled[release-on-its-way]",
    "test_met_afresh[released]",
    "test_taken_over[released]",
    "test_killed[release-after-its-answer]",
}


def pytest_configure(config: pytest.Config) -> None:
    """The table is printed at the end."""
    Table.register(config)


#: The engines of these modules take turns at the cases in `make slow`; those of others have the quick ones there.
FULL = ("test_loopback", "test_vllm_dialect")

#: Cases that apply to one dialect alone, by the calls that its steps send.
ONLY_OF = {
    "test_kv_first_and_then_the_weights": "test_loopback",
    "test_lost[release-answer-lost-last]": "test_loopback",
    "test_lost[release-never-sent-last]": "test_loopback",
    "test_lost[update_weights-answer-lost-last]": "test_vllm_dialect",
    "test_lost[update_weights-never-sent-last]": "test_vllm_dialect",
}

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the cases that are slow, and those that `make slow` leaves to `make long`."""
    mine = [item for item in items if item.path.parent == HERE]
    names = list(dict.fromkeys(item.name for item in mine))
    engines: dict[str, list[str]] = {}
    for item in mine:
        of_module = engines.setdefault(item.path.stem, [])
        if _cls(item) not in of_module:
            of_module.append(_cls(item))
    for item in mine:
        of_module, turn = engines[item.path.stem], names.index(item.name)
        quick, first = item.name in QUICK, _cls(item) in ("TestLoopback", "TestVLLM")
        whose = ONLY_OF.get(item.name, FULL[turn % 2])
        its_turn = item.path.stem == whose and of_module[turn // 2 % len(of_module)] == _cls(item)
        if not (quick and first):
            item.add_marker(pytest.mark.slow)
        if not (quick or its_turn):
            item.add_marker(pytest.mark.long)
        old = _cls(item) in ("TestVLLM24", "TestVLLM30")
        if old and item.name == "test_row[release-from-weights_restored]":
            item.add_marker(NO_SLEEP_HALF_AWAKE)


def _cls(item: pytest.Item) -> str:
    return getattr(getattr(item, "cls", None), "__name__", "")
