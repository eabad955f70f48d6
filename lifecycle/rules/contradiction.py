"""What an observation denies of what is known: in words, and without changing what is known. Pure."""

from __future__ import annotations

from ..core.capabilities import Capabilities
from ..core.facts import Facts, Tag
from ..core.observation import Observation
from ..core.record import Record
from ..core.states import State
from ..core.verdicts import REQUESTS_RUN, Proved, Verdict
from .identity import same_process


def other_process(facts: Facts, seen: Observation) -> str | None:
    """Why the process that the facts are about is not the one that answers; None where it is."""
    if seen.alive is False:
        return f"its process is gone{_because(seen)}"
    if seen.boot is None:
        return f"it stopped answering{_because(seen)}"
    if facts.boot is None or same_process(facts.boot, seen.boot):
        return None
    return f"it is another process now (boot {facts.boot} became {seen.boot})"


def contradiction(record: Record, seen: Observation) -> str | None:
    """What an observation denies of the facts, in words; None where it denies nothing.

    Serving and paused claim nothing of requests: those that run there come and go.
    """
    facts, other = record.facts, other_process(record.facts, seen)
    if other is not None:
        return other
    if seen.disagreement and facts.admission is not None:
        return f"{seen.disagreement}, and it was left {facts.admission}"
    if seen.admission is not None and facts.admission is not None and seen.admission != facts.admission:
        return f"admission is {seen.admission}, and was left {facts.admission}: externally modified"
    if seen.running and facts.running == 0 and record.state not in (State.SERVING, State.PAUSED):
        return f"{seen.running} requests run, and it was left idle: externally modified"
    if seen.released_tags is not None and seen.released_tags != facts.unmapped():
        released, left = _named(seen.released_tags), _named(facts.unmapped())
        return f"released are {released}, and were left {left}: externally modified"
    left_as = _other_version(facts, seen)
    if left_as is not None:
        return f"its weights have the label {seen.weights_label!r}, and were left as {left_as!r}: externally modified"
    return None


def requests_let_in(facts: Facts, capabilities: Capabilities, idle: Verdict) -> str | None:
    """Why somebody else must have opened an engine that was left closed and idle; None where nothing says so.

    No request reaches a closed engine. So one that runs in it came while it was open, and no call of ours opened it. An
    engine that was silent, or is busy with something else than requests, says nothing of it. Neither does one that has
    no admission of its own: requests reach it though nobody opened it.
    """
    if not capabilities.has_admission or facts.admission != "closed" or facts.running != 0:
        return None
    if isinstance(idle, Proved) or not idle.figures.get(REQUESTS_RUN):
        return None
    return f"requests run, and it was left idle and closed: externally modified ({idle.reason})"


def _other_version(facts: Facts, seen: Observation) -> str | None:
    """The version that its weights are known to have, where the engine reports another one; a label is of all tags.

    That both are the same proves little. That they differ says that somebody else loaded weights, or named them.
    """
    if not seen.weights_label:
        return None
    versions = (held.version for _, held in sorted(facts.contents.items()) if held is not None)
    return next((each for each in versions if each not in (None, seen.weights_label)), None)


def _because(seen: Observation) -> str:
    return f" ({seen.detail})" if seen.detail else ""


def _named(tags: frozenset[Tag]) -> str:
    return ", ".join(sorted(tags)) or "none"
