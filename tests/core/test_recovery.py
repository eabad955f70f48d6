"""recover() says why, of one engine and of a fleet; onload(weights=...); what an engine can fall back to."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rig import V1, V2, engine_in, fleet_of, new_engine, put, sent, serving, states

from lifecycle import (
    Advice,
    Choice,
    Condition,
    Fact,
    Fleet,
    FleetError,
    FromDisk,
    GuardRefused,
    Kept,
    LifecycleError,
    Pushed,
    Recovery,
    Refuted,
    Rejected,
    State,
)
from lifecycle.core.observer import Observers
from lifecycle.fleet.connect import member
from lifecycle.rules.advice import after_recovery
from lifecycle.rules.desired import source_to_serve
from lifecycle.rules.identity import IDENTITY
from lifecycle.testing import KV_CACHE, LOST, QUICK, REJECTED_AFTER, WEIGHTS

LAUNCHED = FromDisk("/models/launched", "v0")


async def test_recover_says_why_it_failed_and_what_to_type() -> None:
    small = (replace(WEIGHTS, expected_bytes=20 << 20), replace(KV_CACHE, expected_bytes=20 << 20))
    engine = new_engine("e", *small)
    engine.adapter.engine.admission = "closed"
    await engine.connect()
    found = await engine.recover()
    assert found.state is State.FAILED
    assert found.reason.startswith("drained or released or weights_restored: whether kv_cache, weights is mapped")
    assert str(found).startswith(f"failed: {found.reason}. Next: ")
    assert (
        Choice(
            "engine.override_state(State.RELEASED, by=NAME, reason=WHY)",
            "lifecycle override released scripted://e --by NAME --reason WHY",
            "if you know that it is released",
        )
        in found.advice.choices
    )
    assert found.advice.choices[-1].first == "start it anew"


async def test_recover_names_what_leads_on_from_the_state_that_it_found() -> None:
    engine = await engine_in(State.RELEASED)
    assert await engine.recover() == Recovery(
        State.RELEASED,
        "its facts make this state",
        Advice((Choice("fleet.onload(engines=['e'])", "lifecycle onload scripted://e"),)),
    )


async def test_a_fleet_recovers_those_that_are_failed_or_gone_and_raises_for_none() -> None:
    fleet, _ = await fleet_of("a", "b", "c", "d")
    fleet["a"]._session.go("contradicted", reason="a test")
    fleet["b"].adapter.engine.die("killed")
    await fleet["b"].verify()
    fleet["c"]._session.go("contradicted", reason="a test")
    fleet["c"].adapter.engine.reachable = False
    found = await fleet.recover(deadline_s=0.5)
    assert {name: str(each.state) for name, each in found.items()} == {"a": "serving", "b": "gone", "c": "failed"}
    assert found["c"].reason == fleet["c"].reason == "it does not answer (no answer)"
    with pytest.raises(FleetError, match=r"it is failed: it does not answer \(no answer\)"):
        await fleet.offload(engines=["c"])
    assert found["b"].advice.choices[0].first == "start it anew"
    with fleet["c"].claimed_for("a move"):
        found = await fleet.recover()
    assert found["c"].reason == "a move is under way; wait for it or cancel it"
    assert list(await fleet.recover(engines=["d"])) == ["d"], "one that is named is observed, whatever its state"
    with pytest.raises(KeyError):
        await fleet.recover(engines=["x"])


async def test_an_adapter_that_breaks_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, _ = await fleet_of("a")
    fleet["a"]._session.go("contradicted", reason="a test")

    async def broken(**how: object) -> bool:
        raise KeyError("a mistake")

    monkeypatch.setattr(fleet["a"].adapter, "barrier", broken)
    assert (await fleet.recover())["a"].reason == "KeyError: 'a mistake'"


async def test_where_two_processes_answer_no_state_is_to_be_asserted() -> None:
    engine = await serving()
    engine._session.go("contradicted", reason="a test")
    put(engine, facts=engine.facts.doubt({Fact.MAPPED: {"weights": None}}))
    assert "override" in str(after_recovery(engine.where, [State.DRAINED]))
    put(engine, conditions={IDENTITY: Condition(Refuted(reason="two processes answer"))})
    assert [choice.first for choice in after_recovery(engine.where, [State.DRAINED]).choices] == [
        "give each engine an address of its own",
        "start it anew",
    ]


# onload(weights=...)


async def test_an_onload_serves_the_weights_that_are_named_then() -> None:
    fleet, _ = await fleet_of("a", "b")
    await fleet.offload(weights=V1)
    await fleet.onload(weights=V2)
    assert [engine.facts.contents["weights"].version for engine in fleet] == ["v2", "v2"]  # type: ignore[union-attr]
    assert [engine.desired.source for engine in fleet] == [V2, V2]


async def test_an_onload_without_a_source_is_refused_before_any_call_and_names_the_engine() -> None:
    fleet, journal = await fleet_of("a", "b")
    await fleet.offload(weights=V1)
    put(fleet["b"], desired=replace(fleet["b"].desired, source=None, version=None))
    journal.clear()
    with pytest.raises(FleetError, match=r"weights=, --weights on the command line") as refused:
        await fleet.onload()
    assert [(type(each), each.engine) for each in refused.value.exceptions] == [(GuardRefused, "b")]  # type: ignore[attr-defined]
    assert journal.calls() == []
    await fleet.onload(weights=V1)
    assert states(fleet) == {"a": "serving", "b": "serving"}


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (Kept(), "has not kept them"),
        (FromDisk("", "v3"), "has an empty path"),
        (Pushed(None, "v3"), "has no callback in this process"),
    ],
)
async def test_an_onload_from_what_cannot_be_loaded_is_refused_before_any_call(weights: object, says: str) -> None:
    engine = await engine_in(State.RELEASED)
    with pytest.raises(FleetError, match=says):
        await Fleet([engine], policy=QUICK).onload(weights=weights)  # type: ignore[arg-type]
    assert sent(engine) == []
    assert engine.desired.source == V1


async def test_an_onload_loads_nothing_into_one_that_serves() -> None:
    fleet, journal = await fleet_of("a", "b")
    await fleet["a"].pause()
    journal.clear()
    with pytest.raises(FleetError, match="b: onload refused in state serving: serving: it serves other weights"):
        await fleet.onload(weights=V2)
    assert journal.calls() == []
    await fleet.onload(weights=V2, engines=["a"])
    assert fleet["a"].facts.contents["weights"].version == "v2"  # type: ignore[union-attr]


async def test_a_checkpoint_that_is_refused_is_not_advised_again() -> None:
    engine = await engine_in(State.DRAINED)
    engine.adapter.script("load", REJECTED_AFTER)
    with pytest.raises(Rejected) as failed:
        await engine.update_weights(V2)
    assert failed.value.advice is not None
    assert [choice.call for choice in failed.value.advice.choices] == [
        "fleet.onload(weights=FromDisk(PATH, VERSION), engines=['e'])"
    ]


# what can be fallen back to


@pytest.mark.parametrize(
    ("desired", "falls_back_to"),
    [
        ({}, LAUNCHED),
        ({"version": "v0"}, LAUNCHED),
        ({"version": "v1"}, None),
        ({"source": Kept(), "version": "v0"}, LAUNCHED),
        ({"source": Kept(), "version": "v1"}, Kept()),
        ({"rollback_source": V1}, V1),
        ({"rollback_source": V1, "version": "v0"}, LAUNCHED),
        ({"source": V2, "rollback_source": V1}, V2),
    ],
)
async def test_what_an_engine_falls_back_to(desired: dict[str, object], falls_back_to: object) -> None:
    engine = await serving("e", caps={"launch_source": LAUNCHED})
    record = replace(engine.record, desired=replace(engine.desired, **desired))  # type: ignore[arg-type]
    assert source_to_serve(record, engine.capabilities) == falls_back_to


async def test_one_that_was_started_anew_comes_home_with_what_it_was_launched_with() -> None:
    engine = await engine_in(State.DRAINED, caps={"launch_source": LAUNCHED})
    engine.adapter.engine.restart()
    with pytest.raises(LifecycleError):
        await engine.resume()
    await Fleet([engine], policy=QUICK).onload()
    assert engine.state is State.SERVING
    assert engine.desired.source == LAUNCHED


async def test_a_window_that_never_began_falls_back_to_the_launch_not_to_what_it_named() -> None:
    fleet, _ = await fleet_of("a", "b", caps={name: {"launch_source": LAUNCHED} for name in "ab"})
    fleet["b"].adapter.script("release", REJECTED_AFTER)
    with pytest.raises(FleetError):
        await fleet.offload(weights=V1)
    assert fleet["a"].state is State.SERVING
    assert fleet["a"].desired.source == LAUNCHED


# messages


async def test_a_fleets_message_names_what_leads_on_once_for_engines_with_the_same_reason() -> None:
    fleet, _ = await fleet_of("a", "b", "c")
    with pytest.raises(FleetError) as failed:
        await fleet.offload()
    assert failed.value.message.count("Next: ") == 1, "all refuse for the same reason"
    await fleet["a"].pause()
    with pytest.raises(FleetError) as failed:
        await fleet.release(weights=V1)
    assert re.search(r"\na: Next: `engine\.drain\(\)`.*\nb: Next: `engine\.pause\('abort'\)`", failed.value.message)


async def test_no_secret_of_an_address_is_repeated() -> None:
    url = "loopback://127.0.0.1:1?api_key=s3cret&admin_api_key=s3cret&pid=7&name=a&group=g"
    engine = member(url, {}, False, None, Observers(()), None, None, None)
    assert engine.address == "loopback://127.0.0.1:1?pid=7"
    silent = await serving("silent")
    silent.adapter.script("pause", LOST)
    with pytest.raises(LifecycleError, match=r"`lifecycle \w+ scripted://silent"):
        await silent.pause(deadline_s=0.5)
