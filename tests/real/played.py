"""What the tests of likeness share: the questions were played to a loopback engine, and both sets of answers agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from build_env import CACHE
from lifecycle.adapters.loopback import LoopbackProcess, make_weights
from likeness import ALLOWED

ANSWERS = CACHE / "answers"

#: Asks everything of the server at a URL and leaves its answers in a folder; last, the two checkpoints.
Play = Callable[[str, Path, tuple[Path, Path]], None]


def to_loopback(play: Play, name: str, scratch: Path, options: dict[str, Any]) -> Path:
    """The folder with what a loopback engine of these options answered."""
    first, second = (make_weights(scratch / f"{seed}.safetensors", seed=seed, weights_mib=64) for seed in (1, 0))
    with LoopbackProcess.start(weights=first, **options) as process:
        play(process.url, ANSWERS / name, (first, second))
    return ANSWERS / name


def agree(verdict: tuple[Sequence[str], bool], record_property: Callable[[str, object], None]) -> None:
    """The verdict on both is reported; AssertionError where they differ in more than what is listed."""
    lines, alike = verdict
    print("\n".join(lines))
    record_property("likeness", lines[-1])
    assert alike, "\n".join(lines)
    assert lines[-1].endswith("listed differences)")
    assert int(lines[-1].split()[4]) >= 40
    assert int(lines[-1].split("(")[1].split()[0]) <= ALLOWED
