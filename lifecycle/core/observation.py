"""What reads alone told of an engine, and the question that it answers with real tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .facts import Admission, Tag
from .frozen import EMPTY


@dataclass(frozen=True, slots=True)
class Observation:
    """What reads alone told; None is unknown. `alive` is False only where the process is known not to exist.

    `checksum` is of all weights together; `checksums` are of each owner (target, draft) where the engine tells them
    apart. `weights_label` is one for all of them: no engine known here has a label for each. `others` are boots other
    than `boot` that answered at the same address in the same look, or at connect and not since.
    `disagreement` is not empty where its ranks do not say the same of its admission, which is unknown then: some may
    admit requests and some not.
    """

    boot: str | None = None
    alive: bool | None = None
    admission: Admission | None = None
    running: int | None = None
    released_tags: frozenset[Tag] | None = None
    weights_label: str | None = None
    checksum: str | None = None
    checksums: Mapping[str, str] = EMPTY
    others: tuple[str, ...] = ()
    disagreement: str = ""
    detail: str = ""
    sampled_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Probe:
    """A question whose answer is real tokens: greedy, `tokens` of them."""

    text: str = "The capital of France is"
    tokens: int = 1
