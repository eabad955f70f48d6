"""Which process an engine is: its boot identity, and how two of them compare. Pure.

A boot identity is one string. It begins with the engine's own identity, which the engine reports. Where the processes
of the engine are known, `@NODE:PID:START` follows, several separated by commas. A driver on another host may know the
engine's own identity alone. So two strings can name one process, and no two boots are compared but here.

An address belongs to one process at a time. One that ended never answers again. So a boot that was replaced and then
answers again, or two boots in one look, mean that two processes answer at the address (a proxy with an answer of
another engine, a load balancer over replicas). Which of them took a call is unknown then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from ..core.frozen import replace
from ..core.observation import Observation
from ..core.readings import Process
from ..core.record import Calibration, Record
from ..core.verdicts import Refuted

#: The condition of an engine at whose address two processes answer.
IDENTITY = "identity"

#: Boots that are kept of one address.
MOST_BOOTS = 8

#: Two readings of one start time differ by less: the kernel's clock may be set in between.
SAME_START_S = 2.0

#: `same`, `other`, or what fits neither: one own identity in two processes (`moved`), or two in one (`disputed`).
Likeness = Literal["same", "other", "moved", "disputed"]

_BOOT = re.compile(r"(?P<own>.*)@(?P<processes>[^@,:]+:\d+:\d+\.\d\d(?:,[^@,:]+:\d+:\d+\.\d\d)*)", re.DOTALL)


def boot_identity(own: str, processes: Iterable[Process]) -> str:
    """The boot identity of an engine with this own identity that runs as these processes."""
    parts = sorted(f"{each.node}:{each.pid}:{each.start_time:.2f}" for each in processes)
    return f"{own}@{','.join(parts)}" if parts else own


def own_identity(boot: str) -> str:
    """The part of a boot identity that the engine reports itself."""
    return _split(boot)[0]


def processes_of(boot: str) -> tuple[Process, ...]:
    """The processes that a boot identity names; none where it names the engine's own identity alone."""
    return _split(boot)[1]


def compare(one: str, other: str) -> Likeness:
    """How two boot identities compare. A part that only one of them has decides nothing."""
    if one == other:
        return "same"
    (own, mine), (others_own, others) = _split(one), _split(other)
    shared = any(is_same(each, that) for each in mine for that in others)
    on_one_node = any(each.node == that.node for each in mine for that in others)
    if own == others_own:
        return "same" if shared or not on_one_node else "moved"
    return "disputed" if shared else "other"


def same_process(one: str | None, other: str | None) -> bool:
    """Whether both boot identities are known, and are of one process."""
    return one is not None and other is not None and compare(one, other) == "same"


def is_same(one: Process, other: Process) -> bool:
    """Whether both are one process: its pid, on its node, with its start time."""
    began = abs(one.start_time - other.start_time) < SAME_START_S
    return (one.node, one.pid) == (other.node, other.pid) and began


def sighted(record: Record, boot: str | None) -> Record:
    """The record with this boot as the last one that answered at the engine's address."""
    boots = record.calibration.boots
    if boot is None or (boots and same_process(boots[-1], boot)):
        return record
    others = tuple(each for each in boots if not same_process(each, boot))
    return replace(record, calibration=replace(record.calibration, boots=(*others, boot)[-MOST_BOOTS:]))


def is_contested(record: Record) -> bool:
    """Whether two processes were found to answer at the engine's address, and nothing has settled it since."""
    condition = record.conditions.get(IDENTITY)
    return condition is not None and isinstance(condition.verdict, Refuted)


def needs_confirming(record: Record, seen: Observation) -> bool:
    """Whether one look is too little to say which process answers at the address: it is not the one that did last."""
    known = record.facts.boot
    if seen.boot is None or known is None:
        return False
    return is_contested(record) or not same_process(known, seen.boot) or _replaced(record.calibration, seen.boot)


def dispute(record: Record, seen: Observation) -> str | None:
    """Why two processes answer at the address, in words; None where one does, as far as is known.

    Where they were found to, it is over once every look of a confirmed observation saw one process.
    """
    if seen.boot is None:
        return None
    if seen.others:
        return two_answer((*seen.others, seen.boot))
    if is_contested(record):
        return None
    known = record.facts.boot
    if known is not None and compare(known, seen.boot) == "disputed":
        return f"{two_answer((known, seen.boot))}: the process of the first still runs"
    if _replaced(record.calibration, seen.boot):
        return f"{two_answer((record.calibration.boots[-1], seen.boot))}: the second was replaced by the first before"
    return None


def two_answer(boots: Sequence[str]) -> str:
    """These boots answer at one address, in words."""
    return f"two processes answer at this address: {' and '.join(dict.fromkeys(boots))}"


def _replaced(calibration: Calibration, boot: str) -> bool:
    """Whether another boot was the last to answer after this one."""
    return any(same_process(each, boot) for each in calibration.boots[:-1])


def _split(boot: str) -> tuple[str, tuple[Process, ...]]:
    found = _BOOT.fullmatch(boot)
    if found is None:
        return boot, ()
    parts = (part.rsplit(":", 2) for part in found["processes"].split(","))
    return found["own"], tuple(Process(node, int(pid), float(start)) for node, pid, start in parts)
