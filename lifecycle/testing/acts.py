"""What can be scripted of one call, and the journal in which everything that was asked of an engine stands in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .model import ScriptedEngine

Answer = Literal["done", "rejected", "lost", "hang"]
When = Literal["now", "never", "late"]


@dataclass(frozen=True, slots=True)
class Act:
    """What becomes of one call: whether and when it takes effect, what is answered, and what happens to the engine.

    `late` effects happen when the barrier is asked for, or before the `after_calls`-th call that follows. `hang`
    answers nothing until the deadline, and then that it was late. `then` is done to the engine before it answers.
    For what is no call (`observe`, `prove_idle`, `answers`, `barrier`), `lost` means that the engine did not answer.
    """

    answer: Answer = "done"
    effect: When = "now"
    after_calls: int | None = None
    then: Callable[[ScriptedEngine], object] | None = None
    status: int | None = None
    detail: str = ""


def die(engine: ScriptedEngine) -> None:
    """The engine's process has ended."""
    engine.die("it was killed")


def restart(engine: ScriptedEngine) -> None:
    """Another process answers in the engine's place."""
    engine.restart()


DONE = Act()
#: It answers that it is done, and nothing happened.
LIE = Act(effect="never")
REJECTED = Act("rejected", "never", status=400, detail="not now")
REJECTED_AFTER = Act("rejected", status=500, detail="it broke after it had begun")
LOST = Act("lost", "never", detail="the connection broke")
LOST_AFTER = Act("lost", detail="the connection broke")
#: No answer, and the effect comes when the barrier is asked for.
LATE = Act("lost", "late", detail="the connection broke")
HANG = Act("hang", "never")
HANG_AFTER = Act("hang")
HANG_LATE = Act("hang", "late")
DIE = Act("lost", "never", then=die, detail="disconnected")
#: It answers, takes effect, and its process ends right after.
DIE_AFTER = Act(then=die)
RESTART = Act("lost", "never", then=restart, detail="disconnected")
RESTART_AFTER = Act(then=restart)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal. `kind`: call, reply, observe, idle, answers, barrier, residual, router, effect, died...

    A call has two lines, `call` when it was sent and `reply` when it was answered; the others have one, written when
    their answer is known.
    """

    engine: str
    kind: str
    name: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)
    answer: str = ""

    def __str__(self) -> str:
        args = ",".join(_words(value) for value in self.args.values())
        what = f"{self.kind} {self.name}" if self.name else self.kind
        return f"{self.engine}: {what}{f'({args})' if args else ''}{f' -> {self.answer}' if self.answer else ''}"


def _words(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Journal(list[Entry]):
    """Everything that was asked of one or several engines, in the order in which it happened."""

    def calls(self, engine: str | None = None) -> list[str]:
        """The calls that were sent, `name(args)` or, for several engines, `engine: name(args)`."""
        found = [entry for entry in self if entry.kind == "call" and engine in (None, entry.engine)]
        return [str(entry).replace("call ", "") if engine is None else _bare(entry) for entry in found]

    def kinds(self, *kinds: str) -> list[str]:
        """The lines of these kinds, as words."""
        return [str(entry) for entry in self if entry.kind in kinds]


def _bare(entry: Entry) -> str:
    return str(entry).partition(": call ")[2]
