"""What differs between SGLang's releases, as far as the lifecycle is concerned: a row for each, with its source."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Traits:
    """The behaviour of one release. Paths are those below `sglang/srt` of the installed package.

    Source: the wheels sglang 0.5.11, 0.5.12, 0.5.15, 0.5.16, 0.5.18, 0.5.20, 0.5.22 and 0.5.23:
    entrypoints/{http_server,v1_loads}.py, managers/{scheduler,tokenizer_manager}.py, before 0.5.13
    managers/scheduler_update_weights_mixin.py, since then managers/scheduler_components/weight_updater.py.
    """

    release: str
    #: /weights_checker has the action checksum; else that is refused as an unsupported one. utils/weight_checker.py
    checksums: bool = True
    #: /v1/loads repeats what the scheduler published, with the time of it; else the scheduler is asked. v1_loads.py
    publishes_loads: bool = True
    #: /server_info has the model path and version of the launch; else those loaded last. http_server.py
    info_is_of_launch: bool = True
    #: /server_info has startup_time. http_server.py
    tells_start: bool = True
    #: Queued requests of a paused scheduler do not count: flush and release succeed; else they never do. scheduler.py
    ignores_queue: bool = True
    #: Tensors are taken within a session only; else there are no sessions. weight_updater.py
    sessions: bool = True
    #: /ping is 503 after a /health that failed; else it is always 200. http_server.py
    ping_is_health: bool = True
    #: Paths that this release does not have: 404.
    absent: frozenset[str] = field(default_factory=frozenset)


_SESSIONS = frozenset({"/begin_weight_update", "/end_weight_update"})

_V23 = Traits("0.5.23")
_V22 = replace(_V23, release="0.5.22", ping_is_health=False)
_V20 = replace(_V22, release="0.5.20", ignores_queue=False, sessions=False, absent=_SESSIONS)
_V18 = replace(_V20, release="0.5.18", absent=_SESSIONS | {"/ready"})
_V16 = replace(_V18, release="0.5.16", tells_start=False)
_V15 = replace(_V16, release="0.5.15", info_is_of_launch=False)
_V12 = replace(_V15, release="0.5.12", publishes_loads=False)
_V11 = replace(_V12, release="0.5.11", checksums=False)

TRAITS = {each.release: each for each in (_V11, _V12, _V15, _V16, _V18, _V20, _V22, _V23)}
