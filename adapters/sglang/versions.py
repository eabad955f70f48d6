"""What differs between the releases of SGLang, as far as its lifecycle endpoints are concerned.

Source: the released packages, of each range those that it names; 0.5.23 was also run. Files of 0.5.23:
entrypoints/http_server.py, entrypoints/v1_loads.py, managers/tokenizer_manager.py (pause_generation, is_ready),
managers/scheduler.py (pause_generation, flush_cache, is_fully_idle), managers/multi_tokenizer_mixin.py,
managers/scheduler_components/weight_updater.py; before 0.5.13 managers/scheduler_update_weights_mixin.py.

Of all of them: the pause modes abort, retract and in_place; the tags weights, kv_cache and cuda_graph, of which an
unknown one is no error; a release of a scheduler that is not idle, and a resume of a tag that is not released, end the
server; a request that comes while it is paused is held before it reaches the scheduler, and runs after the continue;
`/flush_cache?timeout=`; an invalid body is answered with 400.

slime and miles run a 0.5.15 with patches of their own, which no package has. It reports 0.5.15, and is driven as that:
whatever their patches add is not used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..versions import VersionRange, VersionTable


@dataclass(frozen=True, slots=True)
class Effects:
    """What a release of SGLang has and does. Each default is that of the oldest.

    - `broadcasts_pause`: a pause reaches every tokenizer worker; else the one that got it.
    - `checksums`: `/weights_checker` has the action `checksum`.
    - `stamps_loads`: `/v1/loads` says when each rank counted, since it repeats counts; else it asks the scheduler.
    - `info_is_of_launch`: `/server_info` has the model path and version of the launch; else those loaded last.
    - `tells_start`: `/server_info` has `startup_time`; else the random seed alone tells two starts apart.
    - `ready`: `/ready` exists, and is 503 while it is paused; else no read says whether requests are admitted.
    - `drains_retracted`: it is idle, and releases memory, with retracted requests in its queue; else it is never idle
      with them, and a release ends it.
    - `sessions`: tensors are taken between `/begin_weight_update` and `/end_weight_update` only; else there is neither.
    - `ping_is_health`: `/ping` is 503 after a `/health` that failed; else always 200, and says nothing beside `/ready`.
    - `abort_by_retract`: a retract and an abort of all requests were seen to do to every stream what its own abort
      does, which asks once a second whether all have ended. Of a call that is no stream it loses tokens (ADR 33).
    """

    broadcasts_pause: bool = False
    checksums: bool = False
    stamps_loads: bool = False
    info_is_of_launch: bool = False
    tells_start: bool = False
    ready: bool = False
    drains_retracted: bool = False
    sessions: bool = False
    ping_is_health: bool = False
    abort_by_retract: bool = False


_V11 = Effects()
_V12 = replace(_V11, broadcasts_pause=True, checksums=True)
_V13 = replace(_V12, stamps_loads=True)
_V16 = replace(_V13, info_is_of_launch=True)
_V17 = replace(_V16, tells_start=True)
_V20 = replace(_V17, ready=True)
_V21 = replace(_V20, drains_retracted=True, sessions=True)
_V23 = replace(_V21, ping_is_health=True, abort_by_retract=True)

VERSIONS = VersionTable(
    "SGLang",
    (
        VersionRange("0.5.11", "0.5.12", _V11, "read in 0.5.11"),
        VersionRange("0.5.12", "0.5.13", _V12, "read in 0.5.12, 0.5.12.post1"),
        VersionRange("0.5.13", "0.5.16", _V13, "read in 0.5.13, 0.5.13.post1, 0.5.14, 0.5.15, 0.5.15.post1"),
        VersionRange("0.5.16", "0.5.17", _V16, "read in 0.5.16"),
        VersionRange("0.5.17", "0.5.20", _V17, "read in 0.5.17, 0.5.18, 0.5.19"),
        VersionRange("0.5.20", "0.5.21", _V20, "read in 0.5.20"),
        VersionRange("0.5.21", "0.5.23", _V21, "read in 0.5.21, 0.5.22"),
        VersionRange("0.5.23", "0.5.24", _V23, "measured on 0.5.23"),
    ),
)
