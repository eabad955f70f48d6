"""Advice: the calls that lead on from where an engine is, as every message names them."""

from __future__ import annotations

from dataclasses import dataclass

from .states import State


@dataclass(frozen=True, slots=True)
class Choice:
    """One way on: `call` in Python and `command` on the command line.

    `first` is what a person has to do or to decide before; empty where nobody has to. Words in capitals in `call` and
    `command` are for a person to fill in. Both are empty where `first` is all that there is to do, and `command` alone
    where the command line cannot do it: it knows no trainer that pushes.
    """

    call: str = ""
    command: str = ""
    first: str = ""

    def __str__(self) -> str:
        calls = f"`{self.call}`" + (f" (`{self.command}`)" if self.command else "") if self.call else ""
        return ", then ".join(part for part in (self.first, calls) if part)


@dataclass(frozen=True, slots=True)
class Advice:
    """The ways on from where an engine is, the nearest first."""

    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        return f"Next: {'; or '.join(str(choice) for choice in self.choices)}"


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `recover()` found: the state, why it is that one, and what leads on from there to serving."""

    state: State
    reason: str
    advice: Advice

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}. {self.advice}"
