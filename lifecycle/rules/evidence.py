"""What guards and proofs are given: a command, the Record, and the evidence that was gathered for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ..core.capabilities import Capabilities
from ..core.commands import Command, Release, RestoreKV, RestoreWeights
from ..core.facts import Fact, Facts, Grade, Tag
from ..core.frozen import FrozenMap
from ..core.observation import Observation
from ..core.policy import Policy
from ..core.readings import Reading
from ..core.record import Calibration, Desired, Record
from ..core.verdicts import NotApplicable, Unmeasurable, Verdict


class EvidenceKind(StrEnum):
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


#: The kinds that one observation of the engine tells; every other kind is a part of `Evidence` by its own name.
OBSERVED = frozenset({EvidenceKind.ADMISSION, EvidenceKind.LABEL, EvidenceKind.CHECKSUM})

#: The cause of what is taken of a process that is met while it admits requests.
LAUNCHED = "launch"

_NOT_READ = Unmeasurable(reason="not read")
_NOT_ASKED = Unmeasurable(reason="not asked")
_NO_QUESTION = NotApplicable(reason="nothing asked for it")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was gathered at one time. A part that no guard or proof needs keeps its default."""

    observed: Observation = field(default_factory=Observation)
    residual: Reading | Unmeasurable = _NOT_READ
    idle: Verdict = _NOT_ASKED
    answer: Verdict = _NOT_ASKED
    hook_mode: Verdict = _NO_QUESTION
    device_room: Verdict = _NO_QUESTION
    host_room: Verdict = _NO_QUESTION
    cotenants: Verdict = _NO_QUESTION
    #: The verdicts of kinds that a proof needs by a name of its own, which is no EvidenceKind.
    named: Mapping[str, Verdict] = field(default_factory=FrozenMap)


_NOTHING = Evidence()


@dataclass(frozen=True, slots=True)
class Context:
    """Everything a guard or proof may look at; nothing in it can change.

    `targets` are the tags that the command acts on, as they stood before it. `baseline` is the evidence from before
    the command's first call. `readings_per_call` is what was resident after each call of a release, with the tags that
    the call gave back.
    """

    command: Command
    record: Record
    capabilities: Capabilities
    policy: Policy
    targets: frozenset[Tag] = frozenset()
    evidence: Evidence = _NOTHING
    baseline: Evidence = _NOTHING
    has_router: bool = False
    readings_per_call: tuple[tuple[frozenset[Tag], Reading | Unmeasurable], ...] = ()

    @property
    def facts(self) -> Facts:
        """What is known of the engine."""
        return self.record.facts

    @property
    def desired(self) -> Desired:
        """What the engine should serve."""
        return self.record.desired

    @property
    def calibration(self) -> Calibration:
        """What was learned about it in earlier commands."""
        return self.record.calibration

    def expected_bytes(self, tags: frozenset[Tag]) -> int | None:
        """Bytes per rank that these tags hold together; None where no figure is known."""
        return expected_bytes(tags, self.capabilities, self.calibration.bytes_by_tags)

    def share_bytes(self, tags: frozenset[Tag], reading: Reading) -> int | None:
        """Bytes that these tags hold on each device: several ranks may share one (on a CPU, all share the host)."""
        return share_bytes(tags, reading, self.capabilities, self.calibration.bytes_by_tags)


def expected_bytes(
    tags: frozenset[Tag], capabilities: Capabilities, learned: Mapping[frozenset[Tag], int]
) -> int | None:
    """Bytes per rank that these tags hold together; None where no figure is known."""
    sizes = [capabilities.spec(tag).expected_bytes for tag in tags]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else learned.get(tags)


def share_bytes(
    tags: frozenset[Tag], reading: Reading, capabilities: Capabilities, learned: Mapping[frozenset[Tag], int]
) -> int | None:
    """Bytes that these tags hold on each device of the reading; None where no figure is known."""
    per_rank = expected_bytes(tags, capabilities, learned)
    if per_rank is None:
        return None
    return per_rank * max(1, capabilities.ranks // max(1, len(reading.devices)))


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


def believed_only(record: Record) -> bool:
    """Whether the mapping is only remembered or asserted, so that what is resident must bear it out."""
    basis = record.facts.basis.get(Fact.MAPPED)
    return basis is not None and basis.grade is Grade.ASSERTED and None not in record.facts.mapped.values()


def taken_as_launched(record: Record) -> bool:
    """Whether the mapping is what is taken of a process that was met while it admitted requests."""
    basis = record.facts.basis.get(Fact.MAPPED)
    return basis is not None and basis.cause == LAUNCHED
