"""`core.frozen.replace`, which stands for `dataclasses.replace`, and what values share."""

from __future__ import annotations

import dataclasses

import pytest

from lifecycle import ConfigurationError, Facts, Policy, State
from lifecycle.core.frozen import EMPTY, FrozenMap, freeze, replace
from lifecycle.core.record import Record
from lifecycle.core.verdicts import Refuted
from lifecycle.fleet.quarantine import Occupied, may_share


def test_it_makes_what_dataclasses_make() -> None:
    record = Record(State.PAUSED, Facts(boot="b", mapped={"weights": True}))
    for changes in ({"state": State.DRAINED}, {"facts": Facts()}, {"conditions": {}, "state": State.FAILED}, {}):
        made = replace(record, **changes)
        assert made == dataclasses.replace(record, **changes)
        assert hash(made) == hash(dataclasses.replace(record, **changes))
    assert isinstance(replace(record.facts, mapped={"weights": False}).mapped, FrozenMap)
    assert replace(Refuted(reason="r", denied=frozenset("d")), reason="s") == Refuted(reason="s", denied=frozenset("d"))


def test_a_value_that_is_not_changed_is_not_copied() -> None:
    record = Record(State.PAUSED)
    assert replace(record, state=State.PAUSED, facts=record.facts) is record
    assert replace(record, state=State.DRAINED) is not record
    assert record.facts.learn({}, None) is record.facts  # type: ignore[arg-type]


def test_a_value_that_could_not_be_made_is_not_made_by_a_change() -> None:
    with pytest.raises(TypeError, match="Record has no field status"):
        replace(Record(), status=1)
    with pytest.raises(ConfigurationError, match="poll_s must be"):
        replace(Policy(), poll_s=-1.0)


def test_what_is_empty_is_one_object() -> None:
    assert freeze({}) is EMPTY
    assert Facts().mapped is Facts().basis is Record().conditions is EMPTY
    assert Record().facts is Record().facts


def test_an_engine_may_share_a_device_that_any_of_the_others_is_on() -> None:
    others = Occupied.of({"b": frozenset({"gpu-1", "gpu-2"}), "c": frozenset({"gpu-2", "gpu-3"})})
    assert may_share(frozenset({"gpu-9"}), others) is None
    assert may_share(frozenset({"gpu-9", "gpu-2"}), others) == "it is on gpu-2, as b is"
    assert may_share(None, others) == "which devices it is on is not known"
    unknown = Occupied.of({"b": frozenset({"gpu-1"}), "c": None})
    assert may_share(frozenset({"gpu-9"}), unknown) == "which devices c is on is not known"
