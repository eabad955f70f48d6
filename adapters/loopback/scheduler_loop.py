"""The thread of a scheduler and its inbox: messages are handled in the order in which they came, between two steps."""

from __future__ import annotations

import queue
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from .sequence import GenerateRequest

Reply = TypeVar("Reply")

IDLE_WAIT_S = 0.1


class SchedulerLoop(ABC):
    """Runs until `stop`. When it fails, it calls `crashed` once, from its thread."""

    def __init__(self, crashed: Callable[[str], None]) -> None:
        self._crashed = crashed
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Starts the loop."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the loop; waits at most a second for it."""
        self._inbox.put(self._stop)
        if self._thread.is_alive():
            self._thread.join(1.0)

    # Messages from the front end, sent on any thread. The inbox is one FIFO, so that their order is kept.

    def ask(self, act: Callable[[], Reply]) -> Future[Reply]:
        """Runs `act` on the scheduler's thread after every earlier message. An exception in it is never answered."""
        reply: Future[Reply] = Future()
        self._inbox.put(lambda: answer(reply, act()))
        return reply

    @abstractmethod
    def submit(self, request: GenerateRequest) -> None:
        """Puts the request into the waiting queue."""

    # Everything below runs on the scheduler's thread.

    @abstractmethod
    def _pass(self) -> None:
        """One pass of the loop: messages, then a step unless paused."""

    @abstractmethod
    def _inbox_timeout_s(self) -> float:
        """How long a pass waits for a message."""

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._pass()
        except BaseException as error:
            traceback.print_exc(file=sys.stderr)
            self._crashed(f"Scheduler hit an exception: {type(error).__name__}: {error}")

    def _ingest(self) -> None:
        try:
            self._inbox.get(timeout=self._inbox_timeout_s())()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            return

    def _stop(self) -> None:
        self._stopping = True


def answer(reply: Future[Reply], value: Reply) -> None:
    """Answers the caller, who may have been cancelled; its message has had its effect all the same."""
    if reply.set_running_or_notify_cancel():
        reply.set_result(value)
