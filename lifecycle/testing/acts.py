"""Acts: what a script makes of one call to a scripted engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .model import ScriptedEngine

Answer = Literal["done", "rejected", "lost", "hang"]
When = Literal["now", "never", "late"]


@dataclass(frozen=True, slots=True)
class Act:
    """How one call ends: whether and when it takes effect, its reply, and what happens to the engine.

    A `late` effect takes place at the next barrier, or before the `after_calls`-th call that follows. `hang` gives no
    reply before the deadline, and then a lost one that is late. `then` is applied to the engine before the reply.
    `value` is what a reply carries beside that, as an engine's parsed JSON.
    For `observe`, `prove_idle`, `answers` and `barrier`, which are no calls, `lost` means that the engine is silent.
    """

    answer: Answer = "done"
    effect: When = "now"
    after_calls: int | None = None
    then: Callable[[ScriptedEngine], object] | None = None
    status: int | None = None
    detail: str = ""
    value: Any = None


def die(engine: ScriptedEngine) -> None:
    """Ends the engine's process."""
    engine.die("it was killed")


def restart(engine: ScriptedEngine) -> None:
    """Replaces the engine's process by a new one."""
    engine.restart()


DONE = Act()
#: A false reply: done, and the call takes no effect.
LIE = Act(effect="never")
REJECTED = Act("rejected", "never", status=400, detail="not now")
REJECTED_AFTER = Act("rejected", status=500, detail="it broke after it had begun")
LOST = Act("lost", "never", detail="the connection broke")
LOST_AFTER = Act("lost", detail="the connection broke")
#: No reply; the effect takes place at the next barrier.
LATE = Act("lost", "late", detail="the connection broke")
HANG = Act("hang", "never")
HANG_AFTER = Act("hang")
HANG_LATE = Act("hang", "late")
DIE = Act("lost", "never", then=die, detail="disconnected")
#: The call takes effect and is answered; then the process ends.
DIE_AFTER = Act(then=die)
RESTART = Act("lost", "never", then=restart, detail="disconnected")
RESTART_AFTER = Act(then=restart)
