"""What the shims hold loopback engines to."""

from lifecycle import Policy
from lifecycle.core.units import MIB

POLICY = Policy(
    residual_threshold_gib=0.12,
    visible_bytes=16 * MIB,  # the engines hold 32 MiB of weights
    settle_s=3.0,
    deadlines_s={"release": 10.0},  # until then one that was refuted is asked again
)
