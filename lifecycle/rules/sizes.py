"""What tags hold, and how well that is known: reported by the engine, known by their tensors, or measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..core.capabilities import Capabilities
from ..core.facts import SizeGrade, Tag
from ..core.readings import Reading

#: The share of a reported size that must be seen to move: half, and what measuring may err by.
HINTED = 0.525


@dataclass(frozen=True, slots=True)
class Size:
    """The bytes that some tags hold together. They are known no better than the worst known of them."""

    total_bytes: int
    grade: SizeGrade
    #: Bytes by which those that are only reported may be more: more than half of the truth is reported.
    unsure_bytes: float = field(default=0.0, compare=False)

    @property
    def is_hint(self) -> bool:
        """Whether it is no more than what the engine reports."""
        return self.grade is SizeGrade.REPORTED

    @property
    def at_most_bytes(self) -> float:
        """As much as they may hold."""
        return self.total_bytes + self.unsure_bytes


def size_per_rank(
    tags: frozenset[Tag], capabilities: Capabilities, measured: Mapping[frozenset[Tag], int]
) -> Size | None:
    """What these tags hold on each rank; None where no figure is known. What was `measured` goes before all else."""
    if tags in measured:
        return Size(measured[tags], SizeGrade.MEASURED)
    sizes = [_size_of_one(tag, capabilities, measured) for tag in tags]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    worst = min((size.grade for size in known), default=SizeGrade.MEASURED)
    return Size(sum(size.total_bytes for size in known), worst, sum(size.unsure_bytes for size in known))


def size_on_device(
    tags: frozenset[Tag], reading: Reading, capabilities: Capabilities, measured: Mapping[frozenset[Tag], int]
) -> Size | None:
    """What these tags hold on each device of the reading: several ranks may share one (on a CPU, all of them do)."""
    size = size_per_rank(tags, capabilities, measured)
    if size is None:
        return None
    sharing = max(1, capabilities.ranks // max(1, len(reading.devices)))
    return Size(size.total_bytes * sharing, size.grade, size.unsure_bytes * sharing)


def _size_of_one(tag: Tag, capabilities: Capabilities, measured: Mapping[frozenset[Tag], int]) -> Size | None:
    alone = measured.get(frozenset({tag}))
    if alone is not None:
        return Size(alone, SizeGrade.MEASURED)
    spec = capabilities.spec(tag)
    if spec.expected_bytes is None:
        return None
    unsure = (1 / HINTED - 1) * spec.expected_bytes if spec.size_grade is SizeGrade.REPORTED else 0.0
    return Size(spec.expected_bytes, spec.size_grade, unsure)
