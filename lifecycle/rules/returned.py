"""Memory that a proved release returned, asked again later: whether it is free, or somebody took it back. Pure.

- `returned_still`: the level that a release was held to, asked again.
- `come_back`: so much is resident again that somebody else must have restored a tag.
- `moving`: what is kept of a proved release while its tags are restored.
"""

from __future__ import annotations

from ..core.capabilities import Capabilities
from ..core.facts import Grade, Tag
from ..core.frozen import replace
from ..core.policy import Policy
from ..core.readings import Reading
from ..core.record import Record
from ..core.units import mib
from ..core.verdicts import Pending, Proved, Refuted, Unmeasurable, Verdict
from .evidence import share_bytes
from .memory import SLACK, biggest, visible_bytes

#: Figures of `memory_returned`: what was resident when the release was proved, and which tags were unmapped then. Only
#: a proved one is judged again.
AT_RELEASE = "resident_at_release_bytes"
UNMAPPED_AT_RELEASE = "unmapped_at_release"

_MOVED = Pending(reason="memory was released or restored since")


def returned_still(
    record: Record, reading: Reading | Unmeasurable, capabilities: Capabilities, policy: Policy
) -> Verdict | None:
    """Whether the memory that a release was proved to return is free now: no more than that release was allowed.

    A verdict that was not reached by a proved release stands, and so does none at all. What the release returned stays
    among the figures.
    """
    condition = record.conditions.get("memory_returned")
    was = None if condition is None else condition.verdict
    at_release = _at_release(record)
    if was is None or at_release is None:
        return was
    figures = {**was.figures, AT_RELEASE: at_release}
    if isinstance(reading, Unmeasurable):
        why = f"it was proved at the release, and what is resident cannot be read now: {reading.reason}"
        return Unmeasurable(reason=why, figures=figures)
    staying = frozenset(tag for tag, mapped in record.facts.mapped.items() if mapped is not False)
    share = share_bytes(staying, reading, capabilities, record.calibration.bytes_by_tags)
    allowed = policy.threshold_bytes + (share or 0)
    pids = [holder.pid for holder in reading.holders]
    figures |= {"resident_bytes": reading.resident_bytes, "allowed_bytes": allowed, "pids": pids}
    now = f"{mib(reading.resident_bytes)} resident"
    if reading.resident_bytes > allowed:
        reason = f"{now} now exceeds {mib(allowed)} allowed, and was {mib(at_release)} after the release"
        return Refuted(reason=f"{reason}; {biggest(reading)}", figures=figures)
    returned = mib(was.figures.get("returned_bytes", 0))
    return Proved(grade=Grade.MEASURED, reason=f"{returned} returned, and {now} now", figures=figures)


def come_back(record: Record, reading: Reading, capabilities: Capabilities, policy: Policy) -> str | None:
    """How much more is resident than after a proved release, where that is what a released tag held; else None.

    Once some of the tags were restored, an engine also grows by what it loads them with: then only what is no more than
    an unmapped tag holds counts.
    """
    at_release = _at_release(record)
    if at_release is None:
        return None
    back = _restored_since(record)
    share = share_bytes(back, reading, capabilities, record.calibration.bytes_by_tags) if back else 0
    if share is None:
        return None
    grown, visible = reading.resident_bytes - at_release - share, visible_bytes(policy, reading)
    for tag in sorted(record.facts.unmapped()):
        held = share_bytes(frozenset({tag}), reading, capabilities, record.calibration.bytes_by_tags)
        if held is None or held < visible or grown < (1 - SLACK) * held:
            continue
        if not back or grown <= (1 + SLACK) * held:
            more = f"{mib(grown)} more are resident than after its release, and {tag} holds {mib(held)}"
            return f"{more}: externally modified"
    return None


def _restored_since(record: Record) -> frozenset[Tag]:
    """The tags that the last proved release gave back and that are mapped again."""
    condition = record.conditions.get("memory_returned")
    released = () if condition is None else condition.verdict.figures.get(UNMAPPED_AT_RELEASE, ())
    return frozenset(released) - record.facts.unmapped()


def moving(record: Record, *, restores: bool) -> Verdict:
    """What is said of returned memory while a call may move some.

    Where it `restores` tags, what was resident after a proved release is kept.
    """
    condition, at_release = record.conditions.get("memory_returned"), _at_release(record)
    if not restores or condition is None or at_release is None:
        return _MOVED
    unmapped = condition.verdict.figures.get(UNMAPPED_AT_RELEASE, sorted(record.facts.unmapped()))
    return replace(_MOVED, figures={AT_RELEASE: at_release, UNMAPPED_AT_RELEASE: unmapped})


def _at_release(record: Record) -> int | None:
    """What was resident when the present release was proved; None where it was not."""
    condition = record.conditions.get("memory_returned")
    if condition is None:
        return None
    verdict = condition.verdict
    known = verdict.figures.get(AT_RELEASE, verdict.figures.get("resident_bytes"))
    proved = isinstance(verdict, Proved) or AT_RELEASE in verdict.figures
    return int(known) if proved and known is not None else None
