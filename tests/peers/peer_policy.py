"""What the shims hold loopback engines to."""

from lifecycle import Policy
from lifecycle.core.policy import DEADLINES_S
from lifecycle.core.units import MIB

#: Seconds for each command. What is refuted here is refuted after its deadline less `settle_s`.
DEADLINE_S = 8.0
POLICY = Policy(
    residual_threshold_gib=0.12,
    visible_bytes=16 * MIB,  # the engines hold 32 MiB of weights
    settle_s=3.0,
    deadlines_s=dict.fromkeys(DEADLINES_S, DEADLINE_S),
)
