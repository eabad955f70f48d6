"""What differs between a fleet and the engines that the journal knows: the rules, without engines."""

from __future__ import annotations

import pytest

from lifecycle import State
from lifecycle.core.journal import Attached, Entry
from lifecycle.core.lease import Lease
from lifecycle.rules.membership import Left, Member, differences

A, B = Member("a", "h:1", "default"), Member("b", "h:2", "default")


def attached(member: Member, pid: int | None, group: str = "default", url: str = "") -> Entry:
    """A driver of this process attached to the engine; None: a driver that does not say its process."""
    who = "an actor" if pid is None else f"pid {pid} on h (x.py, engine {member.name})"
    event = Attached(who, url or f"loopback://{member.key}", group, "boot", "0", 0)
    return Entry(event, 1.0, f"{member.name}{pid}", member.name, member.key)


TOGETHER = [attached(A, 1), attached(B, 1)]


def left_behind(members: list[Member], entries: list[Entry], state: State = State.RELEASED) -> bool:
    return any("is not in it" in each for each in differences(members, entries, {B.key: Left(state)}))


def test_one_that_is_not_in_the_fleet_is_of_it_where_one_process_drove_both() -> None:
    assert left_behind([A], TOGETHER)
    assert not left_behind([A], [attached(A, 1), attached(B, 2)])
    assert not left_behind([A], [attached(A, None), attached(B, None)]), "actors that do not say which process they are"
    assert left_behind([A], [*TOGETHER, attached(A, 3)]), "also where others drove one of them since"
    assert left_behind([A], [*TOGETHER, attached(B, 3)])


def test_it_is_of_the_fleet_too_where_the_one_that_is_left_has_another_name_or_address() -> None:
    assert left_behind([Member("first", A.key, "default")], TOGETHER)
    assert left_behind([Member("a", "h:9", "default")], TOGETHER)
    assert not left_behind([Member("first", "h:9", "default")], TOGETHER)


@pytest.mark.parametrize("state", State)
def test_one_that_serves_or_is_gone_needs_nobody(state: State) -> None:
    assert left_behind([A], TOGETHER, state) == (state not in (State.SERVING, State.GONE, State.DETACHED))


def test_who_has_it_is_said_where_that_driver_lives() -> None:
    for held, said in ((True, "it was left released, and pid 7 has it for a"), (False, "it was left released. Put")):
        lease = Lease("t", "pid 7", "a window", held, 1.0)
        (sentence,) = differences([A], TOGETHER, {B.key: Left(State.RELEASED, lease)})
        assert said in sentence


def test_names_addresses_and_groups() -> None:
    assert differences([A, B], TOGETHER, {}) == []
    assert differences([A], [], {}) == []
    (renamed,) = differences([Member("first", A.key, "default")], TOGETHER, {})
    assert renamed.startswith("first (h:1) was called a; ")
    (grouped,) = differences([Member("a", A.key, "decode")], TOGETHER, {})
    assert grouped == "a (h:1) was in group default, and is in decode now"
    (moved,) = differences([Member("a", "h:9", "default")], TOGETHER, {})
    assert moved.startswith("a was at h:1, and is at h:9 now: ")
    assert differences([Member("a", "h:9", "default")], [*TOGETHER, attached(Member("a", "h:9", ""), 1)], {}) == []


def test_an_engine_that_had_no_name_was_not_called_by_its_url() -> None:
    unnamed = attached(Member("loopback://h:1", A.key, "default"), 1, url="loopback://h:1")
    assert differences([A], [unnamed], {}) == []
