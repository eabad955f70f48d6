"""What goes between the agent and those who ask it, as JSON. Both ends are here, so that they cannot drift apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.facts import Grade
from ..core.readings import Holder, Process, Reading
from ..core.verdicts import NotApplicable, Pending, Proved, Refuted, Unmeasurable, Verdict
from .process_env import Launched

#: Changes when an answer no longer means what it meant. Both ends must have the same.
PROTOCOL = 1

_VERDICTS: tuple[type[Verdict], ...] = (Pending, Refuted, Unmeasurable, NotApplicable)


def processes_out(processes: Sequence[Process]) -> list[dict[str, Any]]:
    """Processes, without where they run: the other end knows."""
    return [{"pid": process.pid, "start_time": process.start_time} for process in processes]


def processes_in(told: Any, *, node: str, agent: str | None = None) -> tuple[Process, ...]:
    """The processes that were named; ValueError says what is wrong with them."""
    if not isinstance(told, list):
        raise ValueError(f"processes must be a list, got {told!r:.80}")
    try:
        return tuple(Process(node, int(each["pid"]), float(each["start_time"]), agent=agent) for each in told)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"a process is {{pid, start_time}}, got {told!r:.80}") from None


def holders_out(holders: Sequence[Holder]) -> list[list[Any]]:
    """Holders, as rows."""
    return [[holder.pid, holder.device, holder.resident_bytes, holder.command] for holder in holders]


def holders_in(told: Any) -> tuple[Holder, ...]:
    """Holders from their rows."""
    return tuple(Holder(int(pid), str(device), int(size), str(command)) for pid, device, size, command in told)


def reading_out(reading: Reading | Unmeasurable) -> dict[str, Any]:
    """A reading, or why there is none."""
    if isinstance(reading, Unmeasurable):
        return {"unmeasurable": reading.reason}
    return {
        "devices": dict(reading.devices),
        "holders": holders_out(reading.holders),
        "probe": reading.probe,
        "whole": dict(reading.whole),
    }


def reading_in(told: Mapping[str, Any]) -> Reading | Unmeasurable:
    """The reading that was told."""
    if "unmeasurable" in told:
        return Unmeasurable(reason=str(told["unmeasurable"]))
    return Reading(_sizes(told["devices"]), holders_in(told["holders"]), str(told["probe"]), _sizes(told["whole"]))


def launched_out(found: Sequence[Launched] | Unmeasurable) -> dict[str, Any]:
    """How processes were started, or why that cannot be read."""
    if isinstance(found, Unmeasurable):
        return {"unmeasurable": found.reason}
    return {"launched": [{"pid": each.pid, "environ": dict(each.environ), "cuda": each.cuda} for each in found]}


def launched_in(told: Mapping[str, Any]) -> tuple[Launched, ...] | Unmeasurable:
    """How the processes were started, as told."""
    if "unmeasurable" in told:
        return Unmeasurable(reason=str(told["unmeasurable"]))
    return tuple(
        Launched(int(each["pid"]), {str(name): str(value) for name, value in each["environ"].items()}, each["cuda"])
        for each in told["launched"]
    )


def verdict_out(verdict: Verdict) -> dict[str, Any]:
    """A verdict with its reason and grade."""
    grade = verdict.grade.name.lower() if isinstance(verdict, Proved) else None
    return {"verdict": verdict.word, "reason": verdict.reason, "grade": grade}


def verdict_in(told: Mapping[str, Any]) -> Verdict:
    """The verdict that was told."""
    if told["verdict"] == Proved.word:
        return Proved(grade=Grade.named(str(told["grade"])), reason=str(told["reason"]))
    kind = {each.word: each for each in _VERDICTS}[told["verdict"]]
    return kind(reason=str(told["reason"]))


def _sizes(told: Mapping[str, Any]) -> dict[str, int]:
    return {str(device): int(size) for device, size in told.items()}
