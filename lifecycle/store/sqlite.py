"""What is known of engines, kept across processes: one SQLite file, one row an engine.

Of a process that cannot tell what was released (no SGLang endpoint does) only whoever released it knows. Facts are
about one boot and are believed for that boot only. A row is written before an engine is touched and after every edge;
a command that was under way when its process ended leaves its targets unknown.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..core.errors import ConfigurationError
from ..core.facts import Contents, Fact, Facts, Grade
from ..core.readings import Reading
from ..core.sources import FromDisk, Kept, Source
from ..core.states import State
from ..core.verdicts import Condition
from ..nodes.agent_protocol import decode_verdict, encode_verdict

if TYPE_CHECKING:
    from ..engine.engine import Engine

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS engines "
    "(url TEXT PRIMARY KEY, boot TEXT, known TEXT NOT NULL, generation INTEGER NOT NULL, at REAL NOT NULL)"
)
_UPDATE = "UPDATE engines SET boot = ?, known = ?, generation = generation + 1, at = ? WHERE url = ? AND generation = ?"
_INSERT = "INSERT OR IGNORE INTO engines (boot, known, generation, at, url) VALUES (?, ?, 1, ?, ?)"


class Overtaken(Exception):
    """Another process wrote the row of this engine since it was read here: what is known here is old."""


class Memory(Protocol):
    """Keeps what is known of engines."""

    def save(self, engine: Engine) -> None:
        """What is known of this engine survives the process."""

    def recall(self, engine: Engine) -> bool:
        """Whether the engine was given what is known of the boot that it observed."""


def default_path() -> Path:
    """The file of this user: `$LIFECYCLE_STATE_DIR`, else the XDG state folder."""
    folder = os.environ.get("LIFECYCLE_STATE_DIR") or os.environ.get("XDG_STATE_HOME", "~/.local/state") + "/lifecycle"
    return Path(folder).expanduser() / "engines.sqlite3"


class Store:
    """The SQLite file. Several processes may have it open; one that was overtaken by another cannot write."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self._generations: dict[str, int] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=5.0, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")  # what cannot be repeated must be known after a crash
            self._db.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise _unusable(self.path, error) from error

    def save(self, engine: Engine) -> None:
        """The row of this engine says what is known now; an engine never observed has none. Raises Overtaken."""
        if engine.facts.boot is None and engine.state is not State.GONE:
            return
        url, known = engine.adapter.url, json.dumps(_known(engine))
        generation = self._generations.get(url, 0)
        row = (engine.facts.boot, known, time.time(), url)
        written = self._db.execute(_UPDATE, (*row, generation)) if generation else self._db.execute(_INSERT, row)
        if written.rowcount != 1:
            raise Overtaken(f"another process moved {url} since it was observed here")
        self._generations[url] = generation + 1

    def recall(self, engine: Engine) -> bool:
        """Gives the engine what is known of its boot; False, and nothing changed, where no row is about that boot."""
        url = engine.adapter.url
        query = "SELECT known, boot, generation FROM engines WHERE url = ?"
        try:
            found = self._db.execute(query, (url,)).fetchone()
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from error
        self._generations[url] = found[2] if found else 0
        if found is None or found[1] != engine.facts.boot:
            return False
        try:
            return _give(engine, json.loads(found[0]))
        except (ValueError, TypeError, LookupError) as error:  # damaged, or written by another version
            logging.getLogger("lifecycle").warning("%s: what was kept of it cannot be read (%r)", engine.name, error)
            return False

    def close(self) -> None:
        """The file is closed."""
        self._db.close()


def _unusable(path: Path, error: Exception) -> ConfigurationError:
    why = f"{path}: what is known of engines cannot be kept there: {error}"
    return ConfigurationError(f"{why}; LIFECYCLE_STATE_DIR names another folder")


def _give(engine: Engine, known: dict[str, Any]) -> bool:
    """The engine was given what was kept of it; False, and nothing changed, where that is about other tags."""
    facts, state = _facts(known["facts"]), State(known["state"])
    source, last_good, full = _source(known["source"]), _source(known["last_good"]), _reading(known["full"])
    unsettled = known["unsettled"] or not state.stable
    wanted, attached_boot = known["wanted"], known["attached_boot"]
    returned = known["memory_returned"] if state is State.RELEASED else None
    condition = Condition(decode_verdict(returned)) if returned else None
    learned = {frozenset(tags): int(size) for tags, size in known["learned"]}
    checksums = dict(known["kept_checksums"])
    answers = {version: tuple(ids) for version, ids in known["canary"].items()}
    if set(facts.mapped) != {spec.name for spec in engine.capabilities.tags}:
        return False
    engine.facts = facts if state.stable else _interrupted(facts)
    engine.unsettled, engine.wanted, engine.attached_boot = unsettled, wanted, attached_boot
    engine.source, engine.full = source, full
    engine.learned, engine.kept_checksums, engine.canary.answers = learned, checksums, answers
    engine.last_good = last_good if isinstance(last_good, FromDisk) else None
    if condition is not None:
        engine.conditions["memory_returned"] = condition
    return True


def _known(engine: Engine) -> dict[str, Any]:
    facts, source, full = engine.facts, engine.source, engine.full
    returned = engine.conditions.get("memory_returned")
    return {
        "state": str(engine.state),
        "unsettled": engine.unsettled,
        "facts": {
            "boot": facts.boot,
            "admission": facts.admission,
            "paused_by": facts.paused_by,
            "running": facts.running,
            "parked": facts.parked,
            "mapped": dict(facts.mapped),
            "contents": {tag: held and [held.origin, held.version] for tag, held in facts.contents.items()},
            "cache_fresh": facts.cache_fresh,
            "routed": facts.routed,
            "grades": {str(fact): int(grade) for fact, grade in facts.grades.items()},
        },
        "wanted": engine.wanted,
        "attached_boot": engine.attached_boot,
        "source": _source_record(source),
        "last_good": _source_record(engine.last_good),
        "learned": [[sorted(tags), size] for tags, size in engine.learned.items()],
        "kept_checksums": dict(engine.kept_checksums),
        "canary": engine.canary.answers,
        "full": None if full is None else [dict(full.devices), full.probe],
        "memory_returned": encode_verdict(returned.verdict) if returned else None,
    }


def _source_record(source: Source | None) -> Any:
    match source:
        case FromDisk():
            return ["disk", source.path, source.version, source.checksum, dict(source.options)]
        case Kept():
            return ["kept"]
    return None  # a push cannot be made again by another process


def _source(record: Any) -> Source | None:
    match record:
        case ["disk", path, version, checksum, options]:
            return FromDisk(path, version, checksum, options)
        case ["kept"]:
            return Kept()
    return None


def _reading(record: Any) -> Reading | None:
    return None if record is None else Reading(record[0], (), record[1])


def _facts(record: dict[str, Any]) -> Facts:
    contents = {tag: held and Contents(*held) for tag, held in record["contents"].items()}
    grades = {Fact(fact): Grade(grade) for fact, grade in record["grades"].items()}
    plain = {name: value for name, value in record.items() if name not in ("contents", "grades", "boot")}
    learned = Facts(boot=record["boot"]).learn(
        {**{Fact(name): value for name, value in plain.items()}, Fact.CONTENTS: contents}, Grade.DECLARED
    )
    return Facts(
        **{**{name: getattr(learned, name) for name in plain}, "boot": learned.boot},
        grades=grades,
        contents=learned.contents,
    )


def _interrupted(facts: Facts) -> Facts:
    """What is left of the facts of an engine whose command was under way: which of its calls ran, nobody knows."""
    return facts.doubt(
        {
            Fact.ADMISSION: None,
            Fact.PAUSED_BY: None,
            Fact.RUNNING: None,
            Fact.MAPPED: dict(facts.mapped),
            Fact.CONTENTS: dict(facts.contents),
            Fact.CACHE_FRESH: None,
        }
    )
