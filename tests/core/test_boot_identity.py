"""Boot identities: how two of them compare, and what is known where an address answers with more than one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig import engine_in, facts, new_engine, sent, states

from lifecycle import CommandRefused, ConfigurationError, Fact, Fleet, Grade, Proved, Refuted, State
from lifecycle.core.observation import Observation
from lifecycle.core.readings import Process
from lifecycle.core.record import Record, Uncertain
from lifecycle.rules import identity, knowledge
from lifecycle.rules.decision import Stay, decide
from lifecycle.testing import capabilities

ONE, TWO = Process("node-1", 100, 1000.0), Process("node-1", 200, 2000.0)
ELSEWHERE = Process("node-2", 100, 1000.0)
A, X = identity.boot_identity("aaa", [ONE]), identity.boot_identity("xxx", [TWO])


@pytest.mark.parametrize(
    ("one", "other", "likeness"),
    [
        (A, A, "same"),
        (A, "aaa", "same"),
        ("aaa", "aaa", "same"),
        (A, identity.boot_identity("aaa", [replace(ONE, start_time=1000.4)]), "same"),
        (A, identity.boot_identity("aaa", [ELSEWHERE]), "same"),
        (A, identity.boot_identity("aaa", [ONE, TWO]), "same"),
        (A, identity.boot_identity("aaa", [TWO]), "moved"),
        (A, identity.boot_identity("aaa", [replace(ONE, start_time=1010.0)]), "moved"),
        (A, identity.boot_identity("xxx", [ONE]), "disputed"),
        (A, X, "other"),
        (A, "xxx", "other"),
        ("aaa", "xxx", "other"),
        ("e0@boot:1", "e0@boot:2", "other"),
    ],
)
def test_how_two_boots_compare(one: str, other: str, likeness: str) -> None:
    assert identity.compare(one, other) == identity.compare(other, one) == likeness
    assert identity.same_process(one, other) is (likeness == "same")


def test_what_is_not_known_is_the_same_as_nothing() -> None:
    assert not identity.same_process(None, None)
    assert not identity.same_process(A, None)


@given(st.text(), st.lists(st.tuples(st.sampled_from(["n1", "n-2.x"]), st.integers(1, 1 << 22), st.floats(0, 1e10))))
def test_a_boot_says_what_it_was_made_of(own: str, parts: list[tuple[str, int, float]]) -> None:
    processes = [Process(*part) for part in parts]
    boot = identity.boot_identity(own, processes)
    found = identity.processes_of(boot)
    if processes:
        assert identity.own_identity(boot) == own
        assert sorted((each.node, each.pid) for each in found) == sorted((each.node, each.pid) for each in processes)
        assert identity.same_process(boot, own) or identity.processes_of(own)
    assert identity.compare(boot, boot) == "same"


def seen(boot: str, admission: str = "open", **parts: object) -> Observation:
    return Observation(boot=boot, alive=True, admission=admission, **parts)  # type: ignore[arg-type]


def known(boot: str = A, **changes: object) -> Record:
    record = identity.sighted(Record(state=State.RELEASED, facts=facts(boot=boot, **changes)), boot)
    return record.with_condition("memory_returned", Proved(grade=Grade.MEASURED))


def reason(record: Record) -> str:
    assert isinstance(record.conditions["identity"].verdict, Refuted)
    assert decide(record, capabilities(), tried=frozenset(), may_close=True) == Stay(
        record.conditions["identity"].verdict.reason
    )
    assert not record.memory_is_free
    return record.conditions["identity"].verdict.reason


def test_another_identity_in_the_same_process_is_no_fresh_process() -> None:
    record = known(mapped={"weights": False, "kv_cache": False})
    after = knowledge.after_observation(record, seen(identity.boot_identity("xxx", [ONE])), capabilities())
    assert "two processes answer at this address: aaa@" in reason(after)
    assert after.facts == record.facts, "what is known of the process that still runs stays"


def test_a_boot_that_comes_back_is_no_fresh_process() -> None:
    record = knowledge.after_observation(known(), seen("xxx"), capabilities())
    assert record.facts.boot == "xxx", "that one has ended, as far as is known"
    after = knowledge.after_observation(record, seen(A), capabilities())
    assert "two processes answer at this address: xxx and aaa@" in reason(after)
    assert after.facts == record.facts


def test_two_boots_in_one_look_are_no_fresh_process() -> None:
    after = knowledge.after_observation(known(), seen("yyy", others=("zzz",)), capabilities())
    assert "zzz and yyy" in reason(after)


def test_a_flip_within_a_command_makes_unknown_what_its_calls_moved() -> None:
    moved = replace(known(mapped={"weights": False, "kv_cache": False}), uncertain=Uncertain(acked_unrepeatable=True))
    flipped = knowledge.another_answered(moved, seen("xxx"))
    after = knowledge.after_observation(flipped, seen(A, "closed"), capabilities())
    assert reason(after)
    assert after.facts.mapped == {"weights": None, "kv_cache": None}


def test_it_is_over_once_one_process_alone_answers() -> None:
    record = known()
    contested = knowledge.after_observation(record, seen(identity.boot_identity("xxx", [ONE])), capabilities())
    assert identity.needs_confirming(contested, seen(A))
    assert not identity.needs_confirming(record, seen(A))
    again = knowledge.after_observation(contested, seen(A, "closed"), capabilities())
    assert (again.facts, again.conditions) == (record.facts, {})
    other = knowledge.after_observation(contested, seen("xxx", "open"), capabilities())
    assert other.conditions == {}
    assert set(other.facts.mapped.values()) == {None}, "nothing is taken for launched"


def test_one_identity_in_another_process_is_not_taken_for_launched() -> None:
    after = knowledge.after_observation(known(), seen(identity.boot_identity("aaa", [TWO])), capabilities())
    assert set(after.facts.mapped.values()) == {None}
    fresh = knowledge.after_observation(known(), seen(X), capabilities())
    assert set(fresh.facts.mapped.values()) == {True}, "another process with another identity is a fresh one"


def test_who_attaches_knows_who_answered_before() -> None:
    kept = known(mapped={"weights": False, "kv_cache": False})
    again = knowledge.attached(Record(), kept, seen("aaa", "closed"), capabilities())
    assert (again.facts.boot, again.state) == (A, State.DETACHED)
    assert again.facts.unmapped() == {"weights", "kv_cache"}
    foreign = knowledge.attached(Record(), kept, seen(identity.boot_identity("xxx", [ONE])), capabilities())
    assert reason(foreign)
    assert foreign.facts.unmapped() == {"weights", "kv_cache"}
    fresh = knowledge.attached(Record(), kept, seen(X), capabilities())
    assert set(fresh.facts.mapped.values()) == {True}
    back = knowledge.attached(Record(), fresh, seen(A), capabilities())
    assert reason(back)
    moved = knowledge.attached(Record(), kept, seen(identity.boot_identity("aaa", [TWO])), capabilities())
    assert set(moved.facts.mapped.values()) == {None}


def test_boots_that_are_kept_are_few() -> None:
    record = Record()
    for number in range(20):
        record = identity.sighted(record, f"boot-{number}")
    assert record.calibration.boots == tuple(f"boot-{number}" for number in range(12, 20))
    assert identity.sighted(record, "boot-19") is record
    assert identity.sighted(record, None) is record


async def test_an_engine_that_shares_its_address_is_sent_nothing() -> None:
    engine = await engine_in(State.RELEASED)
    look, looks = engine.adapter.observe, iter(range(1000))

    async def flips(want: frozenset[Fact], *, deadline_s: float) -> Observation:
        seen = await look(want, deadline_s=deadline_s)
        return replace(seen, boot="another", admission="open") if next(looks) % 2 else seen

    engine.adapter.observe = flips
    before = sent(engine)
    assert await engine.verify(deadline_s=1) is State.RELEASED, "the first look sees the engine"
    assert await engine.verify(deadline_s=1) is State.FAILED
    for _ in range(3):
        assert (await engine.recover(deadline_s=1)).state is State.FAILED
        assert "two processes answer at this address" in str(engine.conditions["identity"].verdict)
        with pytest.raises(CommandRefused):
            await engine.restore_weights()
    assert sent(engine) == before
    engine.adapter.observe = look
    assert (await engine.recover(deadline_s=1)).state is State.RELEASED
    assert "identity" not in engine.conditions


async def test_who_overrides_the_state_says_that_it_is_over() -> None:
    engine = await engine_in(State.RELEASED)
    look = engine.adapter.observe

    async def other(want: frozenset[Fact], *, deadline_s: float) -> Observation:
        return replace(await look(want, deadline_s=deadline_s), others=("another",))

    engine.adapter.observe = other
    assert (await engine.recover(deadline_s=1)).state is State.FAILED
    engine.override_state(State.RELEASED, by="me", reason="the proxy was mended")
    assert "identity" not in engine.conditions


async def test_two_servers_that_report_one_identity_are_two_engines_where_their_processes_are_two() -> None:
    engines = [new_engine(name) for name in ("a", "b")]
    for engine, process in zip(engines, (ONE, TWO), strict=True):
        engine.adapter.engine.boot = identity.boot_identity("aaa", [process])
    async with Fleet(engines) as fleet:
        assert states(fleet) == {"a": "serving", "b": "serving"}
    engines[1].adapter.engine.boot = engines[0].adapter.engine.boot
    with pytest.raises(ConfigurationError, match="are one engine"):
        async with Fleet(engines):
            pass
