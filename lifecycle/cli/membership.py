"""What `status` and `recover` say where a fleet is not the one that was driven before."""

from __future__ import annotations

from ..core.lease import LeasedEngine
from ..fleet.fleet import Fleet
from ..nodes.same_address import address_of
from ..rules.membership import Left, Member, differences
from ..store.journal import has_journal, read_kind
from ..store.leases import Leases
from ..store.reading import UnreadableJournal
from ..store.sqlite import Store
from .output import complain


def say_differences(fleet: Fleet, kept: tuple[Store, Leases] | None = None) -> None:
    """Each difference between this fleet, which a file describes, and what is known here is one line on stderr.

    `kept` is what is known, where it was opened; it stays open.
    """
    store, leases = kept or (Store(), Leases())
    try:
        if not has_journal(store.path):
            return
        members = [
            Member(each.name, address_of(each.adapter.url) or str(each.adapter.url), each.group) for each in fleet
        ]
        here = {member.key for member in members}
        left = {
            key: Left(record.state, leases.seen(LeasedEngine(key)))
            for key, record in store.known().items()
            if key not in here
        }
        found = differences(members, read_kind(store.path, "Attached"), left)
    except UnreadableJournal:  # `history` says what is wrong with it
        return
    finally:
        if kept is None:
            store.close()
    for line in found:
        complain(line)
