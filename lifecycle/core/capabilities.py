"""What an engine is and can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .facts import Fact, Grade, PauseMode, Stage, Tag, TagSpec
from .frozen import EMPTY
from .sources import FromDisk


@dataclass(frozen=True, slots=True)
class PauseTraits:
    """What a pause mode does on this engine.

    `unsafe_from` are the modes from which this one must not be entered directly.
    """

    drains: bool
    keeps_requests: bool = False
    keeps_kv: bool = False
    needs_router: bool = False
    live_update: bool = False
    unsafe_from: frozenset[PauseMode] = frozenset()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine is and can do, read once at connect.

    `ranks` is the number of processes among which the tags are spread. `cancellable` is False where a call that was
    begun must be waited for (in process, a cancelled one shifts later replies to the wrong caller). `evidence` is the
    best grade this engine can give for a claim, where that is less than any claim could need. `memory_saver` is None
    where nothing tells; `saver` names what releases its GPU memory, where that is known, and `saver_option` the option
    of its command line that turns it on. `hook_mode` is torch_memory_saver's, of an engine in this process that has
    chosen it; of others it is read from their processes.
    `reports_released`: an observation of it says which tags are released. `observable` are the facts that its adapter
    has a read for: others are not asked for.
    `launch_source` is the checkpoint that it holds since its launch, where it tells that; nothing else was loaded then.
    """

    engine: str
    version: str
    tags: tuple[TagSpec, ...]
    pause: Mapping[PauseMode, PauseTraits]
    releasable: Literal["any"] | frozenset[frozenset[Tag]] = "any"
    memory_saver: bool | None = None
    saver: Literal["torch_memory_saver", "cumem"] | None = None
    saver_option: str | None = None
    hook_mode: Literal["torch", "preload"] | None = None
    update: frozenset[Literal["disk", "push", "live"]] = frozenset()
    idle_covers_device: bool = True
    has_admission: bool = True
    cancellable: bool = True
    reports_released: bool = False
    observable: frozenset[Fact] = frozenset(Fact)
    device: Literal["cuda", "cpu"] | None = None
    ranks: int = 1
    evidence: Mapping[str, Grade] = EMPTY
    launch_source: FromDisk | None = None
    notes: tuple[str, ...] = ()
    _stages: Mapping[Stage, frozenset[Tag]] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        stages: tuple[Stage, ...] = ("weights", "kv")
        by_stage = {stage: frozenset(spec.name for spec in self.tags if spec.stage == stage) for stage in stages}
        object.__setattr__(self, "_stages", by_stage)

    def stage(self, stage: Stage) -> frozenset[Tag]:
        """The tags of this stage."""
        return self._stages[stage]

    def spec(self, tag: Tag) -> TagSpec:
        """The specification of one tag; KeyError if the engine has none of that name."""
        return {spec.name: spec for spec in self.tags}[tag]


#: Of an engine that was gone before it could be asked: it has weights, as every engine, and nothing is known of them.
NOTHING_KNOWN = Capabilities("unknown", "", (TagSpec("weights", "weights", "discarded"),), {})
