"""Every fault that is put back is found by the explorer, with its trace."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from explore import follow, repeated, walk
from model_run import _replaced
from put_back import PUT_BACK, PutBack
from scenarios import all_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.changes_the_table,
    pytest.mark.timeout(300),
    pytest.mark.alone,
]


@pytest.mark.parametrize("name", PUT_BACK)
def test_it_is_found(name: str, monkeypatch: pytest.MonkeyPatch, report: Callable[[str], None]) -> None:
    fault: PutBack = PUT_BACK[name]
    scenario = all_of(fault.engines, fault.budget)[fault.scenario]
    with monkeypatch.context() as patch:
        fault.put_back(patch.setattr)
        found = walk(scenario, limit_s=200.0, to_the_first=True)
        assert fault.says in found.violation
        assert str(repeated(scenario, follow(found.path))), "its trace does not repeat it"
    report(f"put back: {name}: found after {found.states} states, {len(found.path)} steps")
    assert str(repeated(scenario, follow(found.path))) == "", "the trace breaks an invariant without the fault"


def test_a_fault_of_a_name_that_is_not_there_is_not_put_back() -> None:
    where = SimpleNamespace(there=1)
    _replaced(where, "there", 2)
    assert where.there == 2
    with pytest.raises(AttributeError, match="gone"):
        _replaced(where, "gone", 2)
