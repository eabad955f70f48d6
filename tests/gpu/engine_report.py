"""Renders the figures of engine_cycles.py as a page, and lists the targets that they miss. Needs nothing but Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MIB = 1 << 20

#: The share of its tags' bytes that a release gives back, and the states of a ring, at each of which bytes are read.
RETURNED = 0.95
STATES = ("serving", "paused", "drained", "released", "weights_restored", "kv_restored")
CYCLES = 2


def missed(figures: Mapping[str, Any]) -> dict[str, list[str]]:
    """The targets that are missed, by subject; a list is empty where all targets of the subject are met."""
    return {
        "every state": list(_unreached(figures)),
        "residual": list(_not_returned(figures)),
        "in flight": list(_lost(figures)),
        "parity": [f"cycle {n}: other answers" for n, each in _numbered(figures) if not each.get("same_answers")],
    }


def _numbered(figures: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    return list(enumerate(figures["cycles"], 1))


def _unreached(figures: Mapping[str, Any]) -> Iterator[str]:
    if "error" in figures:
        yield f"it ended with {figures['error']}"
    if len(figures["cycles"]) < CYCLES:
        yield f"{len(figures['cycles'])} of {CYCLES} cycles were begun"
    for number, cycle in _numbered(figures):
        at = cycle.get("bytes_at", {})
        yield from (f"cycle {number}: {state} was not reached" for state in STATES if state not in at)
        yield from (f"cycle {number}, {state}: {why}" for state, why in at.items() if isinstance(why, str))


def _not_returned(figures: Mapping[str, Any]) -> Iterator[str]:
    tags = figures["weights_bytes"] + figures["kv_bytes"]
    for number, cycle in _numbered(figures):
        returned = returned_bytes(cycle)
        if returned is None or returned < RETURNED * tags:
            share = "unknown" if returned is None else f"{returned / tags:.1%} of its tags"
            yield f"cycle {number}: {share} came back, target {RETURNED:.0%}"
        if not cycle.get("memory_returned"):
            yield f"cycle {number}: memory_returned was not proved"


def returned_bytes(cycle: Mapping[str, Any]) -> int | None:
    """What the release of this cycle gave back; None where it was not measured."""
    at = cycle.get("bytes_at", {})
    before, after = at.get("drained"), at.get("released")
    return before - after if isinstance(before, int) and isinstance(after, int) else None


def _lost(figures: Mapping[str, Any]) -> Iterator[str]:
    """A pause by keep lets every request end whole; after one by abort each has ended, and says why."""
    for number, cycle in _numbered(figures):
        ends = cycle.get("in_flight", [])
        if not ends:
            yield f"cycle {number}: no request was in flight"
        wanted = ("abort", "length") if cycle["mode"] == "abort" else ("length",)
        yield from (
            f"cycle {number}: a request ended with {end['reason'] or 'no reason'} after {end['tokens']} tokens"
            for end in ends
            if end["reason"] not in wanted
        )
        if cycle["mode"] == "abort" and ends and all(end["reason"] == "length" for end in ends):
            yield f"cycle {number}: every request had ended before the pause"


def page(figures: Mapping[str, Any]) -> str:
    """The figures, and the targets that they miss."""
    asked, machine = figures["asked"], figures["machine"]
    columns = [f"cycle {number}, {cycle['mode']}, {cycle['weights']}" for number, cycle in _numbered(figures)]
    lines = [
        f"# {figures.get('engine', asked['engine'])}: {CYCLES} cycles with requests in flight",
        "",
        "Written by `tests/gpu/engine_cycles.py`; do not edit.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in machine.items()),
        f"| weights | {_mib(figures['weights_bytes'])} |",
        f"| keys and values | {_mib(figures['kv_bytes'])} |",
        f"| ready after | {figures.get('startup_s', 'never')} s |",
        "",
        "| resident | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    states = dict.fromkeys(state for _, cycle in _numbered(figures) for state in cycle.get("bytes_at", {}))
    for state in states:
        row = (_mib(cycle.get("bytes_at", {}).get(state)) for _, cycle in _numbered(figures))
        lines.append(f"| {state} | " + " | ".join(row) + " |")
    for number, cycle in _numbered(figures):
        took = ", ".join(f"{name} {s} s" for name, s in cycle.get("command_s", {}).items())
        ends = ", ".join(f"{end['tokens']} tokens ({end['reason']})" for end in cycle.get("in_flight", []))
        lines += ["", f"Cycle {number}: {took or 'no command ended'}. Requests in flight: {ends or 'none ended'}."]
    broken = [f"- {subject}: {why}" for subject, found in missed(figures).items() for why in found]
    return "\n".join([*lines, "", "Missed:" if broken else "No target is missed.", "", *broken]).rstrip() + "\n"


def _mib(value: Any) -> str:
    return f"{value / MIB:.0f} MiB" if isinstance(value, int) else str(value or "-")
