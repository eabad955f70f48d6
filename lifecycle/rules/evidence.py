"""What guards and proofs are given: a command, the facts, and the evidence that was gathered for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ..core.capabilities import Capabilities
from ..core.commands import Command, Release, RestoreKV, RestoreWeights
from ..core.facts import Facts, Tag
from ..core.observation import Observation
from ..core.policy import Policy
from ..core.readings import Reading
from ..core.sources import Source
from ..core.verdicts import NotApplicable, Unmeasurable, Verdict


class Need(StrEnum):
    """A kind of fresh evidence, gathered only where some guard or proof of the row needs it."""

    ADMISSION = "admission"
    LABEL = "label"
    CHECKSUM = "checksum"
    IDLE = "idle"
    RESIDUAL = "residual"
    ANSWER = "answer"
    HOOK_MODE = "hook_mode"
    DEVICE_ROOM = "device_room"
    HOST_ROOM = "host_room"
    COTENANTS = "cotenants"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was gathered at one time. A part that no guard asked for keeps its default."""

    observation: Observation = field(default_factory=Observation)
    residual: Reading | Unmeasurable = field(default_factory=lambda: Unmeasurable(reason="not read"))
    idle: Verdict = field(default_factory=lambda: Unmeasurable(reason="not asked"))
    answer: Verdict = field(default_factory=lambda: Unmeasurable(reason="not asked"))
    hook_mode: Verdict = field(default_factory=lambda: NotApplicable(reason="no probe of the hook mode yet"))
    device_room: Verdict = field(default_factory=lambda: NotApplicable(reason="no probe of free device memory yet"))
    host_room: Verdict = field(default_factory=lambda: NotApplicable(reason="no probe of free host memory yet"))
    cotenants: Verdict = field(default_factory=lambda: NotApplicable(reason="no ledger of co-tenants yet"))


@dataclass(frozen=True, slots=True)
class Context:
    """Everything a guard or proof may look at; nothing in it can change.

    `targets` are the tags that the command acts on, as they stood before it. `wanted` is the weights version that the
    engine should serve (None: any valid one). `attached_boot` is the process whose launched weights are trusted.
    `learned` are the bytes per rank that a set of tags gave back when no figure was known beforehand. `full` is what
    was resident when every tag was last known to be mapped; `kept_checksums`, by owner, are of the weights that a
    release was to keep. `weighed` is what was resident after each call of a release, by the tags that it gave back.
    """

    command: Command
    facts: Facts
    capabilities: Capabilities
    policy: Policy
    targets: frozenset[Tag] = frozenset()
    evidence: Evidence = field(default_factory=Evidence)
    baseline: Evidence = field(default_factory=Evidence)
    wanted: str | None = None
    attached_boot: str | None = None
    has_router: bool = False
    source: Source | None = None
    learned: Mapping[frozenset[Tag], int] = field(default_factory=dict)
    full: Reading | None = None
    kept_checksums: Mapping[str, str] = field(default_factory=dict)
    weighed: tuple[tuple[frozenset[Tag], Reading | Unmeasurable], ...] = ()

    def expected_bytes(self, tags: frozenset[Tag]) -> int | None:
        """Bytes per rank that these tags hold together; None where no figure is known."""
        sizes = [self.capabilities.spec(tag).expected_bytes for tag in tags]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else self.learned.get(tags)

    def share_bytes(self, tags: frozenset[Tag], reading: Reading) -> int | None:
        """Bytes that these tags hold on each device: several ranks may share one (on a CPU, all share the host)."""
        per_rank = self.expected_bytes(tags)
        if per_rank is None:
            return None
        return per_rank * max(1, self.capabilities.ranks // max(1, len(reading.devices)))


def targets(command: Command, facts: Facts, capabilities: Capabilities) -> frozenset[Tag]:
    """The tags that a command acts on: those it names, less the ones that are already as it wants them."""
    match command:
        case Release(tags=tags):
            named = frozenset(facts.mapped) if tags is None else tags & frozenset(facts.mapped)
            return named - facts.unmapped()
        case RestoreWeights():
            return capabilities.stage("weights") & facts.unmapped()
        case RestoreKV():
            return capabilities.stage("kv") & facts.unmapped()
    return frozenset()
