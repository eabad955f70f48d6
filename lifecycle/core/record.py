"""The Record: all that is known of one engine and outlives a process, as one frozen value.

What touches the world (connections, clocks, a probe) is not in it: `lifecycle.engine.session.Session` holds that, and
is the only writer of a Record. `lifecycle.rules.knowledge` makes the next Record from the last one. A Record is
hashable, and survives pickle, deepcopy and JSON (`lifecycle.core.encoding`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .facts import Fact, Facts, Tag
from .frozen import EMPTY, FrozenMap, freeze_fields, replace
from .readings import Process, Reading
from .sources import FromDisk, Source
from .states import State
from .verdicts import Condition, Proved, Verdict


@dataclass(frozen=True, slots=True)
class Desired:
    """What the engine should serve: where its weights come from, and their version (None: any that are valid).

    `rollback_source` is the last source from disk that was loaded and proved: it brings the weights back without the
    trainer.
    """

    source: Source | None = None
    version: str | None = None
    rollback_source: FromDisk | None = None


@dataclass(frozen=True, slots=True)
class UncertainCall:
    """A call that may have taken its `effect` or not.

    `before` are the facts when it was sent, `at_start` those when its command began. `targets` are the tags that the
    command acts on, and `baseline` what was resident before its first call, where that was measured.
    """

    effect: Mapping[Fact, Any]
    before: Facts
    at_start: Facts
    targets: frozenset[Tag] = frozenset()
    baseline: Reading | None = None

    def __post_init__(self) -> None:
        freeze_fields(self, "effect")


@dataclass(frozen=True, slots=True)
class Intent:
    """A call that changes memory or cannot be repeated, written down before it was sent.

    `doubt` is what it makes unknown where its driver ends before the answer is written down. It was sent at `since_s`
    and may run until `until_s` (wall-clock seconds, by a clock that stood as `clock` says: `nodes.clock`). `by` says in
    words who sent it, and `token` is that driver's.
    """

    call: str
    doubt: UncertainCall
    since_s: float
    until_s: float
    by: str = ""
    token: str = ""
    clock: str = ""


@dataclass(frozen=True, slots=True)
class Uncertain:
    """What may be so or not.

    `needs_barrier`: an effect may still be running on the engine, so nothing is sent before a barrier has returned.
    `call` is the last call of which it is unknown whether it took effect. `acked_unrepeatable`: a call of the present
    command that moves memory was acknowledged, perhaps by a process that has taken the place of the one that is known.
    `intent` is the call that was about to be sent, and is None once it was answered.
    `push_open`: a push was begun and its end was not acknowledged, so the engine may refuse the next one.
    """

    needs_barrier: bool = False
    call: UncertainCall | None = None
    acked_unrepeatable: bool = False
    intent: Intent | None = None
    push_open: bool = False


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was learned about the engine in earlier commands, to measure the next ones by.

    `attached_boot` is the process whose launched weights are trusted. `bytes_by_tags` are the bytes per rank that a
    set of tags gave back where no size was known for sure. `reading_all_mapped` is what was resident when every tag
    was last known to be mapped, `reading_all_released` after the last proved release of all of them. The three are of
    one process, and are not used for the next; so are the `processes` of which the engine consists. `kept_checksums`,
    by model role, are of weights that a release was to keep. `canary_answers` are the greedy tokens by version of the
    weights.
    `residual_series` are the figures of the last proved releases of the same tags, oldest first, by the name of the
    figure and the tags. `boots` are those that answered at the engine's address, the last one at the end
    (`lifecycle.rules.identity`).
    """

    attached_boot: str | None = None
    bytes_by_tags: Mapping[frozenset[Tag], int] = EMPTY
    reading_all_mapped: Reading | None = None
    kept_checksums: Mapping[str, str] = EMPTY
    canary_answers: Mapping[str, tuple[int, ...]] = EMPTY
    residual_series: Mapping[tuple[str, frozenset[Tag]], tuple[int, ...]] = EMPTY
    boots: tuple[str, ...] = ()
    reading_all_released: Reading | None = None
    processes: tuple[Process, ...] = ()

    def __post_init__(self) -> None:
        freeze_fields(self, "bytes_by_tags", "kept_checksums", "canary_answers", "residual_series")

    def of_another_process(self) -> Calibration:
        """What is left of it once another process has taken the place of the one that was measured."""
        return replace(self, bytes_by_tags=EMPTY, reading_all_mapped=None, reading_all_released=None, processes=())


#: The values that records share which know nothing.
_UNKNOWN, _ANY, _CERTAIN, _NOT_CALIBRATED = Facts(), Desired(), Uncertain(), Calibration()


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one engine. `conditions` are verdicts that hang on it beside its state, by name."""

    state: State = State.DETACHED
    facts: Facts = _UNKNOWN
    conditions: Mapping[str, Condition] = EMPTY
    desired: Desired = _ANY
    uncertain: Uncertain = _CERTAIN
    calibration: Calibration = _NOT_CALIBRATED

    def __post_init__(self) -> None:
        if not isinstance(self.conditions, FrozenMap):
            freeze_fields(self, "conditions")

    @property
    def memory_is_free(self) -> bool:
        """Whether its devices may be handed to the next tenant: memory proved returned, or process gone."""
        condition = self.conditions.get("memory_returned")
        returned = condition is not None and isinstance(condition.verdict, Proved)
        return self.state is State.GONE or (self.state is State.RELEASED and returned)

    def with_condition(self, name: str, verdict: Verdict | None) -> Record:
        """This record with a verdict hanging on it under this name; None takes it away."""
        others = {each: condition for each, condition in self.conditions.items() if each != name}
        mine = {} if verdict is None else {name: Condition(verdict)}
        return replace(self, conditions=FrozenMap({**others, **mine}))


#: Of an engine that nobody has looked at yet.
NOTHING_YET = Record()
