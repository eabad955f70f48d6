"""Remote calls: what is planned, and what became of it."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .facts import Fact
from .frozen import EMPTY

#: How an argument is written: a push may carry the weights themselves, and no message or journal repeats those.
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 2000
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = 50


@dataclass(frozen=True, slots=True)
class Call:
    """One remote call, as planned. `effect` is what is known once it has been acknowledged.

    `repeatable`: sending it again when it may have run already does no harm. `refusal_is_untouched`: an error answer
    means that nothing changed; otherwise the facts in `effect` are unknown after one. `push` marks the calls between
    which an engine takes a push: it refuses another one until the first was ended.
    """

    name: str
    args: Mapping[str, Any] = EMPTY
    effect: Mapping[Fact, Any] = EMPTY
    repeatable: bool = False
    refusal_is_untouched: bool = False
    push: Literal["begins", "ends"] | None = None

    def __str__(self) -> str:
        args = ", ".join(f"{key}={_BRIEF.repr(value)}" for key, value in self.args.items())
        return f"{self.name}({args})"


#: In a plan, the place where the trainer's collective push happens. The engine is not called.
PUSH = Call("push")


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one call: `done`, `rejected` (it answered with an error), or `lost` (no answer: it may have run).

    `refused` marks a lost call that was never sent, since nobody listened.
    """

    outcome: Literal["done", "rejected", "lost"]
    status: int | None = None
    detail: str = ""
    value: Any = None
    refused: bool = False
    late: bool = False
