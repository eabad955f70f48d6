"""Knowledge: the only functions that make anything known or unknown about an engine. Pure: a Record in, a Record out.

What is known of an engine changes for five reasons, and each has its functions here.

1. **A call was answered, or was not** (`after_reply`, `after_cancelled`). Before it is sent, a call that changes memory
   is written down (`intended`): a driver that ends before the answer leaves unknown what that call could change, and
   nothing else (`interrupted`). An acknowledged call has its declared effect,
   graded *acknowledged*. A call that was refused before it was sent, or rejected where that changes nothing, leaves the
   facts. Everything else leaves what the call could have changed unknown, and remembers the call, so that bytes can
   decide later. A call without an answer may still be running: nothing is sent before a barrier has returned.
2. **Proofs were asked** (`after_proofs`, `unproved`). One that holds makes known what it shows, at its grade. One that
   does not, or was not asked any more, makes unknown what it was about.
3. **The engine was observed** (`after_observation`). What it reports replaces what was known. Another boot voids all.
   Somebody else's act voids what it could have changed: who opens an engine may have restored its memory too, and who
   closes it may have released it. So may who let requests into an engine that was closed and idle. What denies the
   facts is taken in at once (`denied`, `let_in_by_others`): the next look may not show it again. What an earlier
   process knew of the mapping is only remembered.
4. **Bytes were measured** (`decided_by_bytes`, `read_at_rest`). After a barrier, and only where one answer fits, they
   decide. What they deny of a mapping that is only remembered or asserted is unknown.
5. **A person asserts something** (`asserted`), graded lowest, so that the next proof measures it.

A fact that several states of the world explain is unknown: it is never decided for the comfortable one.
"""

from __future__ import annotations

from .asserted import asserted, asserted_version, weights_supposed
from .calls import (
    after_cancelled,
    after_push,
    after_reply,
    command_began,
    command_ended,
    expected_after,
    intended,
    intent_over,
    needs_intent,
    not_closed,
)
from .kept import attached, ended, interrupted, seen_again, used_by_others
from .measured import after_release, decided_by_bytes, memory_is_unknown, moved_unseen, read_at_rest
from .observed import (
    after_observation,
    another_answered,
    barrier_returned,
    confirmed,
    denied,
    first_seen,
    launched,
    let_in_by_others,
    moved_by_others,
    routed,
    unknown,
)
from .proved import after_proofs, after_refuted, found_idle, unproved

__all__ = [
    "after_cancelled",
    "after_observation",
    "after_proofs",
    "after_push",
    "after_refuted",
    "after_release",
    "after_reply",
    "another_answered",
    "asserted",
    "asserted_version",
    "attached",
    "barrier_returned",
    "command_began",
    "command_ended",
    "confirmed",
    "decided_by_bytes",
    "denied",
    "ended",
    "expected_after",
    "first_seen",
    "found_idle",
    "intended",
    "intent_over",
    "interrupted",
    "launched",
    "let_in_by_others",
    "memory_is_unknown",
    "moved_by_others",
    "moved_unseen",
    "needs_intent",
    "not_closed",
    "read_at_rest",
    "routed",
    "seen_again",
    "unknown",
    "unproved",
    "used_by_others",
    "weights_supposed",
]
