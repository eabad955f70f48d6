"""`lifecycle history`, `logs` and `verify-journal`: what was done to engines, read from the journal."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import ConfigurationError
from ..core.journal import (
    EVENTS,
    Attached,
    BarrierReturned,
    CallEnded,
    CallSent,
    CommandBegan,
    CommandEnded,
    Entry,
    HandedOver,
    MovePhase,
    Quarantined,
    Refused,
    StateEntered,
)
from ..nodes.same_address import address_of
from ..render.redacted import Redaction
from ..render.trace import trace
from ..rules.violations import RULES, Checker
from ..store.journal import follow_file, has_journal, read_file, to_line
from ..store.reading import UnreadableJournal
from ..store.sqlite import default_path
from . import FAILED, INTERRUPTED, signals
from .options import one_of
from .output import complain, is_lost, say

#: How many entries of another format are named.
NAMED = 3

_FILE = Annotated[Path | None, typer.Option("--file", help="A journal other than this user's.")]
_ENGINES = Annotated[str | None, typer.Option(help="Only the engines of these names or addresses, by commas.")]
_KIND = Annotated[
    str | None, typer.Option(help="Only entries of these kinds, by commas.", autocompletion=one_of(*EVENTS))
]
_SINCE = Annotated[
    str | None, typer.Option(help="Only entries since then: 90s, 15m, 2h, 3d, or a time as 2026-01-31T12:00.")
]


def history(
    file: _FILE = None,
    engines: _ENGINES = None,
    kind: _KIND = None,
    since: _SINCE = None,
    last: Annotated[int | None, typer.Option(min=1, help="Only the last entries, this many.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each entry.")] = False,
    redacted: Annotated[
        bool, typer.Option("--redacted", help="Number hosts, processes, engines, paths and labels; leave out secrets.")
    ] = False,
    trace_to: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Write a trace that Perfetto opens instead.")
    ] = None,
) -> int:
    """Show what was done to engines, and what came of it: commands, calls, edges, proofs and moves."""
    wanted = _filter(engines, kind, since)
    others: list[str] = []
    read = list(_read(file, others))
    entries = [entry for entry in read if wanted(entry)]
    entries = entries if last is None else entries[-last:]
    if redacted:  # what a name is, entries that are not asked for may say
        redaction = Redaction(read)
        entries = [redaction.of(entry) for entry in entries]
    if trace_to is not None:
        _write(trace_to, json.dumps(trace(entries)))
        say([f"{trace_to}: {len(entries)} entries; open it at https://ui.perfetto.dev"])
    elif as_json:
        for entry in entries:
            print(to_line(entry))
    elif entries:
        say(_lines(entries))
    if others:  # after all that can be read
        more = f"\n{len(others) - NAMED} more entries of another format" if len(others) > NAMED else ""
        raise UnreadableJournal("\n".join(others[:NAMED]) + more)
    return 0


def logs(
    file: _FILE = None,
    engines: _ENGINES = None,
    kind: _KIND = None,
    since: _SINCE = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until interrupted.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each entry.")] = False,
) -> int:
    """Print the journal a line an entry; with --follow also what is written from now on, by any process."""
    wanted = _filter(engines, kind, since)
    with signals.until_interrupted() as is_interrupted:
        for entry in _followed(file, lambda: is_interrupted() or is_lost()) if follow else _read(file):
            if wanted(entry):
                if as_json:
                    print(to_line(entry), flush=True)
                else:
                    say(_lines([entry]))
    return INTERRUPTED if is_interrupted() else 0


def verify_journal(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Journals: SQLite files, or lines of `history --json`.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Check journals offline against the table: each entry that breaks a rule is named. Exit 1 if any does."""
    found: dict[str, list[dict[str, str]]] = {}
    unreadable: list[str] = []
    for path in files:
        try:
            found[str(path)] = _violations(path)
        except UnreadableJournal as error:
            unreadable.append(str(error))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for name, broken in found.items():
            for each in broken:
                of = f" of {each['engine']}" if each["engine"] else ""
                say([f"{name}, entry {each['entry']}{of}: {each['rule']}: {each['why']} ({RULES[each['rule']]})"])
        count = sum(map(len, found.values()))
        if found:
            say([f"{len(found)} journals, {count} violations"])
    if unreadable:
        raise UnreadableJournal("\n".join(unreadable))
    return FAILED if any(found.values()) else 0


def _violations(path: Path) -> list[dict[str, str]]:
    """The violations of one journal, with the number of the entry, or of the line where it has none."""
    checker = Checker()
    return [
        {"entry": str(entry.number or line), "engine": entry.engine, "rule": each.rule, "why": each.why}
        for line, entry in enumerate(read_file(path), 1)
        for each in checker.broken_by(entry)
    ]


def _read(file: Path | None, others: list[str] | None = None) -> Iterator[Entry]:
    """The entries of this file; of this user's journal none where there is none yet, and that is said.

    `others` is as in `read_file`.
    """
    path = file or default_path()
    if file is None and not has_journal(path):
        complain(_none_yet(path))
        return iter(())
    return read_file(path, others=others)


def _followed(file: Path | None, ends: Callable[[], bool]) -> Iterator[Entry]:
    """The same, and what is written from now on. This user's journal is waited for where there is none yet."""
    path = file or default_path()
    if not has_journal(path):
        if file is not None:
            return read_file(path)  # which says what is wrong with it
        complain(f"{_none_yet(path)}; it is waited for")
    return follow_file(path, ends=ends)


def _none_yet(path: Path) -> str:
    return f"{path}: there is no journal yet: no driver has written there (LIFECYCLE_STATE_DIR names another folder)"


def register(app: typer.Typer) -> None:
    """The three are commands of `app`."""
    app.command()(history)
    app.command()(logs)
    app.command("verify-journal")(verify_journal)


def _filter(engines: str | None, kinds: str | None, since: str | None) -> Callable[[Entry], bool]:
    """Whether an entry is asked for. Entries of moves are of all engines."""
    names = None if engines is None else {each.strip() for each in engines.split(",")}
    keys = {address_of(name if "//" in name else f"engine://{name}") for name in names or ()} | (names or set())
    wanted = None if kinds is None else {each.strip() for each in kinds.split(",")}
    unknown = sorted(wanted - set(EVENTS)) if wanted else []
    if unknown:
        raise ConfigurationError(f"--kind {unknown[0]!r}: one of {', '.join(EVENTS)}")
    after_s = 0.0 if since is None else _seconds(since)

    def is_wanted(entry: Entry) -> bool:
        of_engine = names is None or not entry.key or entry.engine in names or entry.key in keys
        return of_engine and (wanted is None or entry.kind in wanted) and entry.at_s >= after_s

    return is_wanted


def _seconds(since: str) -> float:
    """The time that --since names, in seconds since 1970."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    try:
        if since[-1:] in units:
            return time.time() - timedelta(seconds=float(since[:-1]) * units[since[-1]]).total_seconds()
        return datetime.fromisoformat(since).timestamp()
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"--since {since!r}: 90s, 15m, 2h, 3d, or a time as 2026-01-31T12:00") from error


def _lines(entries: Iterable[Entry]) -> list[str]:
    """A line for each entry: when, which engine, what."""
    return [f"{_clock(entry.at_s)}  {entry.engine or 'move ' + entry.driver}  {_words(entry)}" for entry in entries]


def _clock(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).isoformat(timespec="milliseconds")


def _words(entry: Entry) -> str:
    event = entry.event
    match event:
        case Attached():
            return f"attached to boot {event.boot} by {event.who}"
        case CommandBegan():
            return f"{event.command} begins, in {event.state}"
        case Refused():
            return f"{event.command} was refused: {event.reason}"
        case CallSent():
            once = "" if event.repeatable else ", which cannot be repeated"
            return f"sends {event.call}{once}"
        case CallEnded():
            said = [
                event.outcome,
                *([str(event.status)] if event.status else []),
                *([event.detail] if event.detail else []),
            ]
            return f"{event.call}: {' '.join(said)} ({event.duration_s:.3f} s)"
        case BarrierReturned():
            return "its barrier has returned"
        case StateEntered():
            return f"{event.source} -> {event.dest} by {event.trigger}{_because(event)}"
        case CommandEnded():
            end = f"failed: {event.reason}" if event.error else "succeeded"
            return f"{event.command} {end}, in {event.state} ({event.duration_s:.3f} s)"
        case MovePhase():
            what = event.phase or event.move
            end = "begins" if event.duration_s is None else f"has ended ({event.duration_s:.3f} s)"
            failed = f", failed: {', '.join(event.failed)}" if event.failed else ""
            return f"{what} {end}{failed}"
        case Quarantined():
            return f"the move goes on without {event.name}: {event.reason}"
        case HandedOver():
            return f"devices handed over: {len(event.returned)} proved, {len(event.gone)} gone"


def _because(event: StateEntered) -> str:
    proofs = "; ".join(f"{name} {verdict}" for name, verdict in event.verdicts.items())
    requests = "" if event.requests is None else f"requests: {event.requests}"
    said = "; ".join(part for part in (event.reason or proofs, requests) if part)
    return f" ({said})" if said else ""


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise ConfigurationError(f"--trace {path}: {error.strerror or error}") from error
