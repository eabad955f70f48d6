"""What an agent and its clients exchange, as JSON. Both directions are here, so that they cannot drift apart.

A request is a POST to /v1/QUESTION with a JSON object; a reply is a JSON object with `protocol`, `version`, `node` and
the answer. An answer that could not be measured is `{"unmeasurable": REASON}`. Decoders raise KeyError, TypeError or
ValueError for values of another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, Literal, TypeVar

from ..core.facts import Grade
from ..core.readings import Holder, Process, Reading
from ..core.verdicts import NotApplicable, Pending, Proved, Refuted, Unmeasurable, Verdict
from .port import FreeMemory, ProcessEnv

#: Raised when a question is renamed or an answer no longer means what it meant. Both ends must have the same.
PROTOCOL = 3

#: The largest pid that Linux gives.
MOST_PID = 1 << 22

#: The questions: the last part of the path.
Question = Literal["about", "find", "alive", "residual", "hook_mode", "process_env", "free_memory"]

T = TypeVar("T")

_VERDICTS: tuple[type[Verdict], ...] = (Pending, Refuted, Unmeasurable, NotApplicable)


def encode_processes(processes: Sequence[Process]) -> list[dict[str, Any]]:
    """Returns processes without their node, which the agent knows."""
    return [{"pid": process.pid, "start_time": process.start_time} for process in processes]


def decode_processes(value: Any, *, node: str, agent: str | None = None) -> tuple[Process, ...]:
    """Returns the processes, which run on `node`; raises ValueError that says what is wrong with them."""
    if not isinstance(value, list):
        raise ValueError(f"processes must be a list, got {value!r:.80}")
    try:
        found = tuple(Process(node, int(each["pid"]), float(each["start_time"]), agent=agent) for each in value)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        found = None
    if found is None or not all(0 < each.pid <= MOST_PID and isfinite(each.start_time) for each in found):
        raise ValueError(f"a process is {{pid, start_time}}, got {value!r:.80}")
    return found


def decode_alive(answer: Mapping[str, Any]) -> bool:
    """Returns whether any of the processes exists; ValueError for anything but true or false."""
    if not isinstance(answer["alive"], bool):
        raise ValueError(f"alive must be true or false, got {answer['alive']!r:.80}")
    return answer["alive"]


def encode_reading(reading: Reading | Unmeasurable) -> dict[str, Any]:
    """Returns the reply that carries this reading."""
    return _unless_unmeasurable(
        reading,
        lambda found: {
            "devices": dict(found.devices),
            "holders": _encode_holders(found.holders),
            "probe": found.probe,
            "whole": dict(found.whole),
        },
    )


def decode_reading(answer: Mapping[str, Any]) -> Reading | Unmeasurable:
    """Returns the reading of this answer."""
    return _reason(answer) or Reading(
        _decode_sizes(answer["devices"]),
        _decode_holders(answer["holders"]),
        str(answer["probe"]),
        _decode_sizes(answer["whole"]),
    )


def encode_process_env(found: Sequence[ProcessEnv] | Unmeasurable) -> dict[str, Any]:
    """Returns the reply that carries the variables of these processes."""
    return _unless_unmeasurable(
        found,
        lambda envs: {
            "processes": [{"pid": each.pid, "environ": dict(each.environ), "cuda": each.cuda} for each in envs]
        },
    )


def decode_process_env(answer: Mapping[str, Any]) -> tuple[ProcessEnv, ...] | Unmeasurable:
    """Returns the variables of the processes of this answer."""
    return _reason(answer) or tuple(
        ProcessEnv(int(each["pid"]), {str(name): str(value) for name, value in each["environ"].items()}, each["cuda"])
        for each in answer["processes"]
    )


def encode_free_memory(found: Mapping[str, FreeMemory] | Unmeasurable) -> dict[str, Any]:
    """Returns the reply that carries what is free of each device."""
    return _unless_unmeasurable(
        found,
        lambda devices: {
            "devices": {
                device: {
                    "free_bytes": each.free_bytes,
                    "holders": _encode_holders(each.holders),
                    "total_bytes": each.total_bytes,
                }
                for device, each in devices.items()
            }
        },
    )


def decode_free_memory(answer: Mapping[str, Any]) -> Mapping[str, FreeMemory] | Unmeasurable:
    """Returns what is free of each device of this answer."""
    return _reason(answer) or {
        str(device): FreeMemory(
            int(each["free_bytes"]), _decode_holders(each["holders"]), _int_or_none(each.get("total_bytes"))
        )
        for device, each in answer["devices"].items()
    }


def encode_verdict(verdict: Verdict) -> dict[str, Any]:
    """Returns a verdict with its reason and grade; its figures stay behind."""
    grade = verdict.grade.name.lower() if isinstance(verdict, Proved) else None
    return {"verdict": verdict.word, "reason": verdict.reason, "grade": grade}


def decode_verdict(answer: Mapping[str, Any]) -> Verdict:
    """Returns the verdict of this answer."""
    if answer["verdict"] == Proved.word:
        return Proved(grade=Grade.named(str(answer["grade"])), reason=str(answer["reason"]))
    kind = {each.word: each for each in _VERDICTS}[answer["verdict"]]
    return kind(reason=str(answer["reason"]))


def _unless_unmeasurable(found: T | Unmeasurable, encode: Callable[[T], dict[str, Any]]) -> dict[str, Any]:
    return {"unmeasurable": found.reason} if isinstance(found, Unmeasurable) else encode(found)


def _reason(answer: Mapping[str, Any]) -> Unmeasurable | None:
    return Unmeasurable(reason=str(answer["unmeasurable"])) if "unmeasurable" in answer else None


def _int_or_none(value: Any) -> int | None:
    return None if value is None else int(value)


def _encode_holders(holders: Sequence[Holder]) -> list[list[Any]]:
    return [[holder.pid, holder.device, holder.resident_bytes, holder.command] for holder in holders]


def _decode_holders(rows: Any) -> tuple[Holder, ...]:
    return tuple(Holder(int(pid), str(device), int(size), str(command)) for pid, device, size, command in rows)


def _decode_sizes(sizes: Mapping[str, Any]) -> dict[str, int]:
    return {str(device): int(size) for device, size in sizes.items()}
