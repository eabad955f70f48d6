"""What the commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..engine import Engine
from ..events import Transition
from ..observing import residual
from ..residual import Reading

MIB = 1 << 20


async def status_record(engine: Engine) -> dict[str, Any]:
    """What is known of one engine, ready for JSON."""
    reading = await residual(engine, deadline_s=10.0)
    facts = engine.facts
    return {
        "engine": engine.name,
        "group": engine.group,
        "url": engine.adapter.url,
        "kind": f"{engine.capabilities.engine} {engine.capabilities.version}",
        "state": str(engine.state),
        "admission": facts.admission,
        "running": facts.running,
        "mapped": dict(facts.mapped),
        "contents": {tag: None if held is None else str(held) for tag, held in facts.contents.items()},
        "grades": {str(fact): grade.name.lower() for fact, grade in facts.grades.items()},
        "memory_saver": engine.capabilities.memory_saver,
        "resident_bytes": dict(reading.devices) if isinstance(reading, Reading) else None,
        "residual_probe": reading.probe if isinstance(reading, Reading) else reading.reason,
        "conditions": {name: str(condition.verdict) for name, condition in engine.conditions.items()},
        "notes": list(engine.capabilities.notes),
    }


def status_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each engine, in columns."""
    rows = [("ENGINE", "GROUP", "STATE", "ADMISSION", "RUNNING", "WEIGHTS", "RESIDENT")]
    for each in records:
        resident = each["resident_bytes"]
        rows.append(
            (
                each["engine"],
                each["group"],
                each["state"],
                str(each["admission"] or "unknown"),
                "unknown" if each["running"] is None else str(each["running"]),
                ",".join(sorted({str(held or "unknown") for held in each["contents"].values()})) or "-",
                "unmeasurable" if resident is None else f"{max(resident.values()) // MIB} MiB",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"{each['engine']}: {note}" for each in records for note in each["notes"]]
    return lines + notes


def phase_line(record: Transition) -> str:
    """One state that an engine entered, and why it may claim it."""
    proofs = "; ".join(f"{name} {verdict}" for name, verdict in record.verdicts.items())
    return f"{record.engine}  {record.dest}  {record.duration_s * 1000:.0f} ms  {proofs or record.reason}"


def cycle_lines(released: Sequence[Transition]) -> list[str]:
    """What each release gave back."""
    return [f"{record.engine}: {_returned(record)}" for record in released]


def _returned(record: Transition) -> str:
    returned, expected = record.returned_bytes, record.expected_bytes
    if returned is None:
        return "nothing was measured"
    told = "unknown" if expected is None else f"{expected // MIB} MiB"
    return f"returned {returned // MIB} MiB of {told} expected"
