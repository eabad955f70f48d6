"""How the engines of a fleet differ from those that the journal knows. Pure.

What is kept of an engine is kept by its address. So a fleet that names an engine otherwise, or has it in another group,
loses nothing; one in whose file an address was changed or left out no longer reaches the engine that is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..core.journal import Attached, Entry
from ..core.lease import Lease
from ..core.states import State

#: Where an engine that no fleet has needs nobody: its requests are answered, or it has no devices.
_NEEDS_NOBODY = (State.SERVING, State.GONE, State.DETACHED)

_PROCESS = re.compile(r"pid \d+ on \S+")


@dataclass(frozen=True, slots=True)
class Member:
    """One engine of a fleet: `key` is its address, as journals and stores have it."""

    name: str
    key: str
    group: str


@dataclass(frozen=True, slots=True)
class Left:
    """Where an engine was left, and who has it, if anybody does."""

    state: State
    lease: Lease | None = None


def differences(members: Sequence[Member], attached: Iterable[Entry], left: Mapping[str, Left]) -> list[str]:
    """What of these engines is otherwise than when they were driven last, a sentence each.

    `attached` are the entries of that kind, oldest first; `left` has by address what is kept of engines. An engine that
    is not in the fleet is of it where one process drove both.
    """
    seen = [entry for entry in attached if isinstance(entry.event, Attached)]
    last, by_name = {entry.key: entry for entry in seen}, {entry.engine: entry for entry in seen}
    here = {member.key for member in members}
    said = [sentence for member in members for sentence in _of(member, last.get(member.key), by_name.get(member.name))]
    named = [by_name[member.name] for member in members if member.name in by_name]
    mine = {_process(entry) for entry in (*named, *(entry for entry in seen if entry.key in here))}
    for key, known in left.items():
        entry = last.get(key)
        if entry is None or key in here or known.state in _NEEDS_NOBODY:
            continue
        if any(_process(each) in mine for each in seen if each.key == key):
            said.append(_left_behind(entry, known))
    return said


def _of(member: Member, here: Entry | None, by_name: Entry | None) -> Iterable[str]:
    """`here`: who was driven last at its address. `by_name`: who had its name last."""
    if by_name is not None and by_name.key != member.key:
        yield (
            f"{member.name} was at {by_name.key}, and is at {member.key} now: what is kept of the engine there is not "
            "about this one"
        )
    if here is None:
        return
    assert isinstance(here.event, Attached)
    if here.engine != member.name and here.engine != here.event.url:
        same = "it is the same engine, and what is kept of it counts"
        yield f"{member.name} ({member.key}) was called {here.engine}; {same}"
    if here.event.group != member.group:
        yield f"{member.name} ({member.key}) was in group {here.event.group}, and is in {member.group} now"


def _left_behind(entry: Entry, known: Left) -> str:
    assert isinstance(entry.event, Attached)
    lease = known.lease
    has_it = f", and {lease}" if lease is not None and lease.held else ""
    return (
        f"{entry.engine} ({entry.key}) was driven with engines of this fleet and is not in it; it was left "
        f"{known.state}{has_it}. Put it back into the fleet, or bring it home alone: "
        f"`lifecycle recover {entry.event.url} --to serving`"
    )


def _process(entry: Entry) -> str:
    """The process of the driver that attached; its token where that is not said."""
    assert isinstance(entry.event, Attached)
    found = _PROCESS.match(entry.event.who)
    return entry.driver if found is None else found[0]
