"""Asks a server the questions of `tokenspeed_questions.py`, and leaves what it answers in a folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from record import Recorder, play, with_busy
from tokenspeed_questions import (
    ABORT_ALL,
    ABORTED,
    BEHIND_A_PAUSE,
    BEHIND_A_RELEASE,
    GATE,
    MEMORY,
    OBSERVE,
    PAUSE,
    RELEASE,
    RELEASED,
    WAIT,
    WEIGHTS,
    WITHOUT_KEY,
    greedy,
)

if TYPE_CHECKING:
    from questions import Row

PROMPTS = ("hello", "zebra", "what is")
TOKENS = 400  # 2 s: they must run on when the question comes, some 0.7 s after the first


def everything(recorder: Recorder) -> None:
    """All was asked, and the server serves."""
    for rows in (OBSERVE, GATE, MEMORY, WEIGHTS):
        play(recorder, rows)
    for name, rows in (("wait", WAIT), ("abort", ABORTED), ("release", RELEASED), ("abort_all", ABORT_ALL)):
        with_busy(recorder, name, _bodies(name), lambda rows=rows: play(recorder, rows))
    for name, first, rows in (
        ("pause_cut_off", ("POST", PAUSE, {"mode": "wait"}), BEHIND_A_PAUSE),
        ("release_cut_off", ("POST", RELEASE, {"tags": ["kv_cache"]}), BEHIND_A_RELEASE),
    ):
        with_busy(
            recorder,
            name,
            _bodies(name),
            lambda name=name, first=first, rows=rows: _behind(recorder, name, first, rows),
        )
    play(recorder, [("generate_last", "POST", "/generate", greedy("g-last", "hello"))])


def without_key(recorder: Recorder) -> None:
    """What is answered to nobody in particular, and to a wrong key."""
    play(recorder, WITHOUT_KEY)
    recorder.headers = {"Authorization": "Bearer wrong"}
    play(recorder, [(name.replace("no_key", "wrong_key"), *row) for name, *row in WITHOUT_KEY])


def _behind(recorder: Recorder, name: str, first: tuple[str, str, object], rows: Sequence[Row]) -> None:
    waiting = threading.Thread(target=recorder.ask, args=(name, *first))
    waiting.start()
    time.sleep(0.1)  # so that it waits for the requests when the others come
    play(recorder, rows)
    waiting.join()


def _bodies(name: str) -> list[dict[str, object]]:
    return [greedy(f"{name}-{index}", prompt, TOKENS) for index, prompt in enumerate(PROMPTS)]
