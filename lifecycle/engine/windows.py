"""Windows of trainers: between two of its steps no command has an engine, whose memory is the trainer's all the same.

The task that opened a window acts for the trainer, and so do those that began inside of it. What anybody else asks
for that waits for an engine (`until_free`) waits until the window was left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class TrainerWindow:
    """One window; it counts as itself alone."""

    __slots__ = ("is_open",)

    def __init__(self) -> None:
        self.is_open = True


#: The windows inside of which this task acts. A thread that blocks takes them over from its calls (`lifecycle.sync`).
INSIDE: ContextVar[frozenset[TrainerWindow]] = ContextVar("lifecycle_windows", default=frozenset())


class Used(Protocol):
    """An engine, as far as it is used in windows."""

    window: TrainerWindow | None

    def let_go(self) -> None:
        """Wakes whoever waits for the engine."""


@contextmanager
def of_trainer(engines: Sequence[Used]) -> Iterator[None]:
    """Inside, the memory of these engines is the trainer's, which this task acts for."""
    mine, before = TrainerWindow(), [each.window for each in engines]
    INSIDE.set(frozenset(each for each in INSIDE.get() if each.is_open) | {mine})
    for each in engines:
        each.window = mine
    try:
        yield
    finally:
        mine.is_open = False
        INSIDE.set(INSIDE.get() - {mine})
        for each, window in zip(engines, before, strict=True):
            each.window = window
            each.let_go()


def used_by_another(window: TrainerWindow | None) -> str | None:
    """What has an engine that is in this window, in words; None where it is in none, or this task is inside too."""
    return None if window is None or window in INSIDE.get() else "offloaded() of another task"
