"""`python vllm_record.py URL FOLDER FIRST SECOND` leaves what a server that speaks vLLM's dialect answers in FOLDER.

The files are those of `record.py`, so that `likeness.py` can compare a real vLLM with the loopback engine. FIRST is the
checkpoint that the server has, SECOND another one.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import Recorder, play, with_busy
from vllm_questions import BUSY, COMPLETIONS, GENERATE, KILL, OBSERVE, PAUSE, SLEEP, WITHOUT_KEY, greedy, weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from questions import Row


def everything(recorder: Recorder, first: str, second: str, *, tokens: int = 400) -> None:
    """All that leaves the server serving was asked, with five requests of so many tokens in flight."""
    for rows in (OBSERVE, GENERATE, PAUSE, SLEEP, weights(first, second)):
        play(recorder, rows)
    for name, rows in BUSY.items():
        with_busy(recorder, name, _bodies(tokens), partial(_then_serve, recorder, name, rows), COMPLETIONS)


def unauthorized(recorder: Recorder) -> None:
    """A server with a key was asked without it."""
    play(recorder, WITHOUT_KEY)


def kill(recorder: Recorder) -> None:
    """The server was asked what ends it, and for its health until nobody answers any more.

    The last answer is kept: how often a front end says 503 before its end is a matter of milliseconds.
    """
    play(recorder, KILL)
    end = time.monotonic() + 60
    while not (refused := recorder.ask("health_dead", "GET", "/health").error or "").startswith("ConnectionRefused"):
        assert time.monotonic() < end, f"the front end has not ended: {refused}"
        time.sleep(0.1)


def _bodies(tokens: int) -> list[dict[str, Any]]:
    prompts = ["hello", "zebra", "what is", "one two", "lorem"]
    return [greedy(prompt, tokens, stream=index != 1) for index, prompt in enumerate(prompts)]


def _then_serve(recorder: Recorder, name: str, rows: Sequence[Row]) -> None:
    play(recorder, rows)
    recorder.ask(f"wake_up_after_{name}", "POST", "/wake_up")


if __name__ == "__main__":
    asked = Recorder(sys.argv[1], Path(sys.argv[2]))
    everything(asked, sys.argv[3], sys.argv[4])
