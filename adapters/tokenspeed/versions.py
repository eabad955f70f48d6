"""What differs between the releases of tokenspeed, as far as its control routes are concerned.

Source: the released packages, read; of 0.1.1 the routes, controllers and scheduler were also run. Files:
runtime/entrypoints/sglang_compat_http.py, runtime/engine/pause.py, runtime/engine/memory_occupation.py.

Of all of them: the pause mode wait, which closes the front end; the tags weights and kv_cache, of which the weights are
kept on the host; nothing that is read says whether it is paused or released.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..versions import VersionRange, VersionTable


@dataclass(frozen=True, slots=True)
class Effects:
    """What a release of tokenspeed does. Each default is that of the oldest.

    - `says_refusals`: a release or restore takes tags, and is answered with what the engine said; else tags are
      ignored, and the answer is a success whatever the engine said.
    - `pauses_scheduler`: a pause is answered once the scheduler has drained; else it closes the front end alone.
    - `waits_for_writers`: a release is refused while experts are rebalanced, and waits for what writes weights.
    """

    says_refusals: bool = False
    pauses_scheduler: bool = False
    waits_for_writers: bool = False

    @property
    def undrivable(self) -> str | None:
        """Why no release of this range can be driven; None where it can."""
        if self.says_refusals and self.pauses_scheduler:
            return None
        return "it answers a release that its engine refused as done, and a pause before anything has drained"


VERSIONS = VersionTable(
    "tokenspeed",
    (
        VersionRange("0.1.0", "0.1.1", Effects(), "read in 0.1.0"),
        VersionRange(
            "0.1.1",
            "0.1.2",
            Effects(says_refusals=True, pauses_scheduler=True, waits_for_writers=True),
            "read in 0.1.1; its controllers and scheduler were run",
        ),
    ),
)
