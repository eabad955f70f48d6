"""Whether the residual threshold could find anything: one above all that an engine ever holds cannot. Pure."""

from __future__ import annotations

from ..core.facts import Grade
from ..core.policy import SET_THRESHOLD, Policy
from ..core.readings import Reading
from ..core.units import mib
from ..core.verdicts import Proved, Refuted, Verdict

#: The condition that hangs on an engine from its first release on.
RESIDUAL_THRESHOLD = "residual_threshold"


def can_be_exceeded(all_mapped: Reading, policy: Policy) -> Verdict:
    """Whether the threshold is less than what the engine held with every tag mapped.

    One that is not passes every release, one that freed nothing included: then the bytes that came back are the only
    proof.
    """
    held, threshold = mib(all_mapped.resident_bytes), mib(policy.threshold_bytes)
    if policy.threshold_bytes < all_mapped.resident_bytes:
        return Proved(grade=Grade.MEASURED, reason=f"{held} with every tag mapped, threshold {threshold}")
    return Refuted(
        reason=f"the residual threshold of {threshold} is not below the {held} that the engine holds with every tag "
        f"mapped, so that nothing it keeps would ever exceed it; set it by {SET_THRESHOLD}"
    )
