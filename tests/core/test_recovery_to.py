"""fleet.recover(to=...): what a driver left in the middle is finished, for each engine that can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from journal_rig import driver
from rig import V1, fleet_of, serving, states

from lifecycle import ConfigurationError, Engine, Fleet, FromDisk, Kept, Pushed, State
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.encoding import decode, encode
from lifecycle.core.facts import TagSpec
from lifecycle.core.record import Record
from lifecycle.core.sources import Source
from lifecycle.core.units import GIB
from lifecycle.testing import REJECTED, ScriptedAdapter, capabilities


async def a_mixed_fleet() -> Fleet:
    """One that serves, one paused, one released, one failed that can be found, one gone, one that does not answer."""
    fleet, _ = await fleet_of("serves", "paused", "released", "failed", "gone", "silent")
    await fleet["paused"].pause()
    await fleet.offload(weights=V1, engines=["released"])
    fleet["failed"]._session.go("contradicted", reason="a test")
    for name in ("gone", "silent"):
        fleet[name]._session.go("contradicted", reason="a test")
    fleet["gone"].adapter.engine.die("killed")
    fleet["silent"].adapter.engine.reachable = False
    return fleet


async def test_all_that_live_are_brought_to_serving_and_the_others_say_why() -> None:
    fleet = await a_mixed_fleet()
    found = await fleet.recover(to="serving", deadline_s=0.5)
    assert states(fleet) == {
        "serves": "serving",
        "paused": "serving",
        "released": "serving",
        "failed": "serving",
        "gone": "gone",
        "silent": "failed",
    }
    assert {name: str(each.state) for name, each in found.items()} == states(fleet)
    assert found["silent"].reason == "it does not answer (no answer)"
    assert found["gone"].reason == fleet["gone"].reason
    assert found["gone"].advice.choices[0].first == "start it anew"
    assert all(engine.adapter.engine.violations == [] for engine in fleet)


async def test_all_that_live_are_brought_to_released() -> None:
    fleet = await a_mixed_fleet()
    found = await fleet.recover(to="released", weights=V1, deadline_s=0.5)
    assert [name for name, each in found.items() if each.state is State.RELEASED] == [
        "serves",
        "paused",
        "released",
        "failed",
    ]
    assert all(fleet[name].memory_is_free for name in ("serves", "paused", "released", "failed"))
    assert found["silent"].state is State.FAILED
    await fleet.recover(to="serving", deadline_s=0.5)
    assert states(fleet)["released"] == "serving"


async def test_one_whose_weights_come_by_a_push_alone_stays_released_and_says_that_the_trainer_must_push() -> None:
    fleet, _ = await fleet_of("pushed", "loaded")

    async def push(engines: Sequence[Engine], version: str) -> None:
        raise AssertionError("nobody pushes here")

    await fleet.offload(weights=Pushed(push, "v2"), engines=["pushed"])
    await fleet.offload(weights=V1, engines=["loaded"])
    fleet["pushed"]._session.commit(fleet["pushed"].record)
    found = await fleet.recover(to="serving")
    assert states(fleet) == {"pushed": "released", "loaded": "serving"}
    assert "only the trainer can make that" in found["pushed"].reason
    assert (await fleet.recover(to="serving", weights=V1))["pushed"].state is State.SERVING


@pytest.mark.parametrize("restored", [False, True], ids=["half-way home", "all of it"])
async def test_one_that_waits_for_the_trainer_gives_its_memory_back(restored: bool) -> None:
    fleet, journal = await fleet_of("pushed")

    async def push(engines: Sequence[Engine], version: str) -> None:
        raise AssertionError("nobody pushes here")

    await fleet.offload(weights=Pushed(push, "v2"))
    await fleet["pushed"].restore_weights()
    engine = fleet["pushed"]
    kept = decode(Record, encode(engine.record))  # as another driver has it: without the callback
    engine._session.commit(kept)
    if restored:
        fleet["pushed"].adapter.script("resume", REJECTED)
        fleet["pushed"]._session.go("contradicted", reason="a test")
        await fleet["pushed"].recover()
    found = await fleet.recover(to="serving")
    assert fleet["pushed"].memory_is_free
    assert found["pushed"].state is State.RELEASED
    assert "only the trainer can make that" in found["pushed"].reason
    assert [str(call) for call in journal.calls("pushed")].count("pushed: resume") == 0


async def test_one_that_cannot_give_its_memory_back_says_why() -> None:
    fleet, _ = await fleet_of("pushed")

    async def push(engines: Sequence[Engine], version: str) -> None:
        raise AssertionError("nobody pushes here")

    await fleet.offload(weights=Pushed(push, "v2"))
    await fleet["pushed"].restore_weights()
    fleet["pushed"].adapter.always("release", REJECTED)
    found = await fleet.recover(to="serving")
    assert found["pushed"].state is not State.RELEASED
    assert "release" in found["pushed"].reason


async def test_one_that_cannot_give_its_memory_back_keeps_no_other_from_it() -> None:
    fleet, journal = await fleet_of("stuck", "pushed")

    async def push(engines: Sequence[Engine], version: str) -> None:
        raise AssertionError("nobody pushes here")

    await fleet.offload(weights=Pushed(push, "v2"))
    await fleet.restore_weights()
    fleet["stuck"].adapter.always("release", REJECTED)
    journal.clear()
    found = await fleet.recover(to="serving")
    assert "release" in found["stuck"].reason
    assert found["pushed"].state is State.RELEASED, found["pushed"]
    assert "only the trainer can make that" in found["pushed"].reason
    assert not any("restore" in str(call) for call in journal.calls("pushed"))


@pytest.mark.parametrize("call", ["pause", "release"])
async def test_one_that_cannot_be_released_keeps_no_other_from_it(call: str) -> None:
    fleet, journal = await fleet_of("stuck", "serves", "paused")
    await fleet["paused"].pause()
    fleet["stuck"].adapter.always(call, REJECTED)
    journal.clear()
    found = await fleet.recover(to="released", weights=V1)
    assert call in found["stuck"].reason
    assert [name for name, each in found.items() if each.state is State.RELEASED] == ["serves", "paused"]
    assert all(fleet[name].memory_is_free for name in ("serves", "paused"))
    assert [str(each) for each in journal.calls("serves") if "restore" in str(each) or "resume" in str(each)] == []


async def test_one_that_must_not_be_released_keeps_no_other_from_it() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.offload(weights=V1, engines=["b"])
    await fleet.onload(engines=["b"])
    found = await fleet.recover(to="released")
    assert "weights_recoverable" in found["a"].reason
    assert found["b"].state is State.RELEASED


async def test_one_that_serves_other_weights_keeps_no_other_from_serving() -> None:
    fleet, _ = await fleet_of("serves", "released")
    await fleet.offload(weights=V1, engines=["released"])
    found = await fleet.recover(to="serving", weights=V1)
    assert "it serves other weights" in found["serves"].reason
    assert found["released"].state is State.SERVING


async def test_what_fails_on_the_way_fails_for_it_alone() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.offload(weights=V1)
    fleet["a"].adapter.script("resume", REJECTED)
    found = await fleet.recover(to="serving")
    assert states(fleet)["b"] == "serving"
    assert found["a"].state is not State.SERVING
    assert "resume" in found["a"].reason
    assert "onload" in str(found["a"].advice)


async def test_where_one_is_busy_none_is_touched_and_all_say_so() -> None:
    fleet, journal = await fleet_of("a", "b")
    await fleet.pause()
    journal.clear()
    with fleet["a"].claimed_for("a move"):
        found = await fleet.recover(to="serving")
    assert {name: each.reason for name, each in found.items()} == dict.fromkeys(
        "ab", "a move is under way; wait for it or cancel it"
    )
    assert journal.calls("b") == []


async def test_a_place_that_is_none_is_refused() -> None:
    fleet, journal = await fleet_of("a")
    with pytest.raises(ConfigurationError, match="one of serving, released"):
        await fleet.recover(to="asleep")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="deadline_s"):
        await fleet.recover(to="serving", deadline_s=-1.0)
    assert journal.calls("a") == []


async def test_it_needs_no_engine_that_is_lost() -> None:
    engine = await serving()
    assert {name: each.state for name, each in (await Fleet([engine]).recover(to="serving")).items()} == {
        "e": State.SERVING
    }


def _capable(weights: Source) -> Capabilities:
    """An engine with a backup of its weights where that is what brings them back."""
    kept = "kept" if isinstance(weights, Kept) else "discarded"
    return capabilities(TagSpec("weights", "weights", kept, 4 * GIB), TagSpec("kv_cache", "kv", "discarded", 2 * GIB))


async def restarted(
    tmp_path: Path, *, also: bool, weights: Source = V1, label: str = "v0"
) -> tuple[Fleet, ScriptedAdapter]:
    """Two that served what a driver loaded, for another driver; the first was started again, and `also` the second."""
    adapters = [ScriptedAdapter(name, _capable(weights)) for name in "ab"]
    before = Fleet([await driver(each, tmp_path).connect() for each in adapters])
    await before.offload(weights=weights)
    await before.onload()
    await before.aclose()
    for each in adapters[: 2 if also else 1]:
        each.engine.restart()
        each.engine.label = label
    return Fleet([await driver(each, tmp_path).connect() for each in adapters]), adapters[0]


async def test_one_that_was_started_again_is_brought_to_the_version_of_its_fleet(tmp_path: Path) -> None:
    fleet, adapter = await restarted(tmp_path, also=False)
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert fleet["a"].desired.version is None, "nobody named what it was launched with"
    await fleet.recover(to="serving", engines=["a"])
    assert states(fleet) == {"a": "serving", "b": "serving"}
    assert fleet["a"].facts.contents["weights"].version == V1.version
    assert adapter.engine.violations == []


async def test_where_all_were_started_again_they_serve_what_they_were_launched_with(tmp_path: Path) -> None:
    fleet, adapter = await restarted(tmp_path, also=True)
    await fleet.recover(to="serving")
    assert fleet["a"].facts.contents["weights"].origin == "launched"
    assert adapter.engine.violations == []


async def test_one_that_was_started_again_and_cannot_be_closed_says_so_and_keeps_no_other_from_serving(
    tmp_path: Path,
) -> None:
    fleet, adapter = await restarted(tmp_path, also=False)
    await fleet["b"].pause()
    adapter.script("pause", REJECTED)
    found = await fleet.recover(to="serving")
    assert fleet["b"].state is State.SERVING
    assert "pause" in found["a"].reason


async def test_where_two_versions_were_named_none_is_chosen(tmp_path: Path) -> None:
    fleet, _ = await restarted(tmp_path, also=False)
    third = await driver(ScriptedAdapter("c"), tmp_path).connect()
    await Fleet([third]).offload(weights=FromDisk("/elsewhere", "v9"))
    await Fleet([third]).onload()
    await Fleet([*fleet, third]).recover(to="serving")
    assert fleet["a"].facts.contents["weights"].origin == "launched"


@pytest.mark.parametrize("weights", [FromDisk("/first", "v0"), Kept()], ids=str)
async def test_one_that_was_started_again_with_the_version_of_its_fleet_is_not_touched(
    tmp_path: Path, weights: Source
) -> None:
    fleet, adapter = await restarted(tmp_path, also=False, weights=weights)
    assert fleet["b"].desired.version == "v0"
    adapter.journal.clear()
    await fleet.recover(to="serving")
    assert adapter.journal.calls("a") == []
    assert fleet["a"].state is State.SERVING


async def test_what_other_engines_have_kept_is_no_source_for_one_that_was_started_again(tmp_path: Path) -> None:
    fleet, adapter = await restarted(tmp_path, also=False, weights=Kept(), label="v7")
    adapter.journal.clear()
    await fleet.recover(to="serving")
    assert adapter.journal.calls("a") == []
    assert fleet["a"].state is State.SERVING


async def test_one_that_was_started_again_is_not_closed_to_be_released(tmp_path: Path) -> None:
    fleet, adapter = await restarted(tmp_path, also=False)
    adapter.journal.clear()
    found = await fleet.recover(to="released", engines=["a"])
    assert adapter.journal.calls("a") == []
    assert "weights_recoverable" in found["a"].reason
