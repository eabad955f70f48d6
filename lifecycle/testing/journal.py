"""The journal: everything that scripted engines, probes and routers were asked, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal.

    `kind` is one of call, reply, effect, connect, observe, idle, answers, barrier, residual, router, died, aclose.

    A call has two lines: `call` when it is sent and `reply` when it is answered. Everything else has one line, which is
    written once the answer is known.
    """

    engine: str
    kind: str
    name: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    answer: str = ""

    def __str__(self) -> str:
        args = ",".join(_formatted(value) for value in self.args.values())
        what = f"{self.kind} {self.name}" if self.name else self.kind
        return f"{self.engine}: {what}{f'({args})' if args else ''}{f' -> {self.answer}' if self.answer else ''}"


def _formatted(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Journal(list[Entry]):
    """The entries of one or several engines, in the order in which they happened."""

    def calls(self, engine: str | None = None) -> list[str]:
        """Returns the calls that were sent: `name(args)` of one engine, `engine: name(args)` of all."""
        found = [entry for entry in self if entry.kind == "call" and engine in (None, entry.engine)]
        return [str(entry).replace("call ", "") if engine is None else _without_engine(entry) for entry in found]

    def kinds(self, *kinds: str) -> list[str]:
        """Returns the entries of these kinds, formatted."""
        return [str(entry) for entry in self if entry.kind in kinds]


def _without_engine(entry: Entry) -> str:
    return str(entry).partition(": call ")[2]
