"""What the commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..core.advice import Recovery
from ..core.calls import Call
from ..core.commands import Command
from ..core.errors import ConfigurationError, EngineHeld
from ..core.readings import Reading
from ..core.requests import FATES, RequestFates
from ..core.states import State
from ..core.transition import Transition
from ..core.units import mib
from ..core.verdicts import Condition, Verdict
from ..engine.engine import Engine
from ..rules.quarantine import QUARANTINED
from .output import printable


async def status_record(engine: Engine) -> dict[str, Any]:
    """What is known of one engine, observed now, as JSON values. `error` says why it cannot be observed."""
    record: dict[str, Any] = {"engine": engine.name, "group": engine.group, "url": engine.adapter.url, "error": None}
    try:
        await engine.connect()
    except (ConfigurationError, EngineHeld) as error:
        return record | {"state": "unknown", "error": str(error), "conditions": _kept_conditions(engine)}
    reading = await engine.read_residual(deadline_s=10.0)
    facts = engine.facts
    return record | {
        "kind": f"{engine.capabilities.engine} {engine.capabilities.version}".strip(),
        "state": str(engine.state),
        "reason": engine.reason,
        "advice": str(engine.advice),
        "admission": facts.admission,
        "running": facts.running,
        "mapped": dict(facts.mapped),
        "contents": {tag: None if held is None else str(held) for tag, held in facts.contents.items()},
        "grades": {str(fact): grade.name.lower() for fact, grade in facts.grades.items()},
        "memory_saver": engine.capabilities.memory_saver,
        "resident_bytes": dict(reading.devices) if isinstance(reading, Reading) else None,
        "residual_probe": reading.probe if isinstance(reading, Reading) else reading.reason,
        "conditions": _words(engine.conditions),
        "notes": list(engine.capabilities.notes),
    }


def _kept_conditions(engine: Engine) -> dict[str, str]:
    with suppress(ConfigurationError):  # a store that cannot be read was named by the error of connect()
        return _words(engine.kept_conditions())
    return {}


def _words(conditions: Mapping[str, Condition]) -> dict[str, str]:
    return {name: str(condition.verdict) for name, condition in conditions.items()}


def status_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """A table with a line for each engine, then the notes on them."""
    rows: list[tuple[str, ...]] = [
        ("ENGINE", "GROUP", "STATE", "ADMISSION", "RUNNING", "MAPPED", "WEIGHTS", "RESIDENT")
    ]
    rows += [tuple(map(printable, _row(record))) for record in records]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines + [note for record in records for note in _notes(record)]


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    if record["error"]:
        return (record["engine"], record["group"], "unknown", "-", "-", "-", "-", "-")
    resident = record["resident_bytes"]
    return (
        record["engine"],
        record["group"],
        record["state"],
        str(record["admission"] or "unknown"),
        "unknown" if record["running"] is None else str(record["running"]),
        ",".join(tag for tag, mapped in record["mapped"].items() if mapped) or "none known",
        ",".join(sorted({str(held or "unknown") for held in record["contents"].values()})) or "-",
        "unmeasurable" if resident is None else mib(max(resident.values())),
    )


def _notes(record: dict[str, Any]) -> list[str]:
    quarantined = record["conditions"].get(QUARANTINED)
    kept_out = [f"{record['engine']}: in quarantine {quarantined.removeprefix('proved: ')}"] if quarantined else []
    if record["error"]:
        return [record["error"], *kept_out]
    notes = kept_out + [f"{record['engine']}: {note}" for note in record["notes"]]
    if record["state"] in (State.FAILED, State.GONE):
        notes.append(f"{record['engine']}: {record['state']}: {record['reason']}. {record['advice']}")
    return notes


def recovery_lines(found: Mapping[str, Recovery], wanted: State = State.SERVING) -> list[str]:
    """What was found of each engine: its state; of one that is elsewhere why, and what leads on, a line each."""
    return [line for name, each in found.items() for line in _recovery_lines(name, each, wanted)]


def _recovery_lines(name: str, found: Recovery, wanted: State) -> list[str]:
    if found.state is wanted:
        return [f"{name}  {found.state}"]
    choices = [f"  {choice}" for choice in found.advice.choices]
    return [f"{name}  {found.state}: {found.reason}", "  what leads on:", *choices]


def record_of(record: Transition) -> dict[str, Any]:
    """One transition, as JSON values."""
    return {
        "engine": record.engine,
        "command": record.command,
        "state": str(record.dest),
        "returned_bytes": record.returned_bytes,
        "returned_by_tag": dict(record.returned_by_tag),
        "expected_bytes": record.expected_bytes,
        "duration_s": round(record.duration_s, 3),
        "verdicts": {name: str(verdict) for name, verdict in record.verdicts.items()},
        "requests": None if record.requests is None else fates_record(record.requests),
    }


def fates_record(fates: RequestFates) -> dict[str, Any]:
    """What became of requests, as JSON values; None is what is not known."""
    return {**{name: getattr(fates, name) for name in FATES}, "source": fates.source}


def phase_line(record: Transition) -> str:
    """One state that an engine entered, with the proofs of it."""
    proofs = "; ".join(f"{name} {verdict}" for name, verdict in record.verdicts.items())
    requests = "" if record.requests is None else f"; requests: {record.requests}"
    return f"{record.engine}  {record.dest}  {record.duration_s * 1000:.0f} ms  {proofs or record.reason}{requests}"


def quarantine_lines(quarantined: Mapping[str, Verdict]) -> list[str]:
    """A line for each engine that a command went on without."""
    return [f"{name}: in quarantine {why.reason}" for name, why in quarantined.items()]


def cycle_lines(done: Sequence[Transition], there: Sequence[Engine] = ()) -> list[str]:
    """The result for each engine; of a release, the bytes returned. `there` are engines that had nothing to do."""
    lines = [f"{record.engine}: {_outcome(record)}" for record in done]
    lines += [f"{engine.name}: {engine.state} already; nothing was sent" for engine in there]
    return lines or ["no engine takes part; nothing was done"]


def _outcome(record: Transition) -> str:
    if record.dest is not State.RELEASED:
        return str(record.dest)
    returned, expected = record.returned_bytes, record.expected_bytes
    if returned is None:
        return "released; nothing was measured"
    of = "unknown" if expected is None else mib(expected)
    by_tag = ", ".join(f"{tag} {mib(size)}" for tag, size in record.returned_by_tag.items())
    return f"returned {mib(returned)} of {of} expected{f' ({by_tag})' if by_tag else ''}"


def dry_run_lines(engine: Engine, planned: Sequence[tuple[Command, Sequence[Call]]]) -> list[str]:
    """A line for each command, with the calls that it would send to this engine."""
    lines = []
    for command, calls in planned:
        sent = ", ".join(str(call) for call in calls) or "nothing is sent; only proofs are asked for"
        lines.append(f"{engine.name}  {command}: {sent}")
    return lines
