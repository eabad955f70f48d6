"""What guards and proofs are given: a command, the Record, and the evidence that was gathered for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ..core.capabilities import Capabilities
from ..core.commands import Command, Release, RestoreKV, RestoreWeights
from ..core.facts import Fact, Facts, Grade, Tag
from ..core.frozen import EMPTY
from ..core.observation import Observation
from ..core.policy import Policy
from ..core.readings import Reading
from ..core.record import Calibration, Desired, Record
from ..core.verdicts import NotApplicable, Unmeasurable, Verdict
from .sizes import Size, size_on_device, size_per_rank


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

_NOTHING_SEEN = Observation()
_NOT_READ = Unmeasurable(reason="not read")
_NOT_ASKED = Unmeasurable(reason="not asked")
_NO_QUESTION = NotApplicable(reason="nothing asked for it")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was gathered at one time. A part that no guard or proof needs keeps its default."""

    observed: Observation = _NOTHING_SEEN
    residual: Reading | Unmeasurable = _NOT_READ
    idle: Verdict = _NOT_ASKED
    answer: Verdict = _NOT_ASKED
    hook_mode: Verdict = _NO_QUESTION
    device_room: Verdict = _NO_QUESTION
    host_room: Verdict = _NO_QUESTION
    cotenants: Verdict = _NO_QUESTION
    #: The verdicts of kinds that a proof needs by a name of its own, which is no EvidenceKind.
    named: Mapping[str, Verdict] = EMPTY


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
        size = size_per_rank(tags, self.capabilities, self.calibration.bytes_by_tags)
        return None if size is None else size.total_bytes

    def size(self, tags: frozenset[Tag], reading: Reading) -> Size | None:
        """What these tags hold on each device, and how well that is known; None where no figure is known."""
        return size_on_device(tags, reading, self.capabilities, self.calibration.bytes_by_tags)

    def share_bytes(self, tags: frozenset[Tag], reading: Reading) -> int | None:
        """Bytes that these tags hold on each device of the reading; None where no figure is known."""
        return share_bytes(tags, reading, self.capabilities, self.calibration.bytes_by_tags)


def share_bytes(
    tags: frozenset[Tag], reading: Reading, capabilities: Capabilities, learned: Mapping[frozenset[Tag], int]
) -> int | None:
    """Bytes that these tags hold on each device of the reading; None where no figure is known."""
    size = size_on_device(tags, reading, capabilities, learned)
    return None if size is None else size.total_bytes


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


def goes_on_with_kv(context: Context) -> bool:
    """Whether requests wait in the engine that go on with the KV that they have.

    That belongs to the present weights, as far as is known; or to those before, as a live update has it.
    """
    paused_by, facts = context.facts.paused_by, context.facts
    traits = context.capabilities.pause.get(paused_by) if paused_by else None
    return traits is not None and traits.keeps_kv and (traits.live_update or facts.cache_fresh is True)


def believed_only(record: Record) -> bool:
    """Whether the mapping is only remembered or asserted, so that what is resident must bear it out."""
    basis = record.facts.basis.get(Fact.MAPPED)
    return basis is not None and basis.grade is Grade.ASSERTED and None not in record.facts.mapped.values()


def taken_as_launched(record: Record) -> bool:
    """Whether the mapping is what is taken of a process that was met while it admitted requests."""
    basis = record.facts.basis.get(Fact.MAPPED)
    return basis is not None and basis.cause == LAUNCHED
