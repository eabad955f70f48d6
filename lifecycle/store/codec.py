"""How a Record is written into a row, and how rows of earlier versions are read.

A row is one JSON text: the format's number and the record. A row of another format is refused by name: what is known of
the engine is then found out anew, as if nothing had been kept.
"""

from __future__ import annotations

import json

from ..core.encoding import decode
from ..core.facts import Facts
from ..core.json_text import JsonWriter, Texts
from ..core.readings import Reading
from ..core.record import Calibration, Desired, Record, Uncertain
from ..core.verdicts import Condition

#: Changes when a row no longer means what it meant. Format 1 had no number: it was written by 0.1.0.dev0 before the
#: Record, under the key "unsettled". Format 2 had no intents: of a command that was under way it does not say which
#: call was sent, so that such a row is refused, and every other is read.
FORMAT = 3


class UnreadableRow(ValueError):
    """A row that this version cannot read; the message says why."""


#: What a record is made of and most commits leave as it is. The facts are in an intent, too.
_SELDOM_CHANGED = (Facts, Condition, Desired, Uncertain, Calibration, Reading)


class Rows:
    """The rows of engines. What is in a record and was the same value in the row before is not encoded again."""

    def __init__(self) -> None:
        self._writer = JsonWriter(_SELDOM_CHANGED)
        self._last: dict[str, Texts] = {}

    def to_text(self, engine: str, record: Record) -> str:
        """The row of this record, which is the next one of this engine."""
        text, self._last[engine] = self._writer.text_after(self._last.get(engine, {}), record)
        return f'{{"format":{FORMAT},"record":{text}}}'


def to_text(record: Record) -> str:
    """The row of this record."""
    return Rows().to_text("", record)


def from_text(text: str) -> Record:
    """The record of a row; UnreadableRow says what is wrong with it."""
    try:
        row = json.loads(text)
        found = row.get("format", 1)
        if found not in (2, FORMAT):
            raise UnreadableRow(f"it has format {found}, and this version reads {FORMAT}")
        record = decode(Record, row["record"])
        if found != FORMAT and not record.state.stable:
            raise UnreadableRow(f"it has format {found}, which does not say what was sent of a command under way")
        return record
    except UnreadableRow:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UnreadableRow(f"it is damaged ({error})") from error
