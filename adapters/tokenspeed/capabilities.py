"""Reads a tokenspeed server's capabilities and identity from its `/get_server_info`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lifecycle.core.capabilities import Capabilities, PauseTraits
from lifecycle.core.facts import Fact, Grade, PauseMode, SizeGrade, Tag, TagSpec

from .answers import count

TAGS: tuple[Tag, ...] = ("weights", "kv_cache")

#: The route takes `abort` and `keep` too. They are not offered: docs/adr/0028-tokenspeed-over-http.md says why.
PAUSE_MODES: Mapping[PauseMode, PauseTraits] = {"wait": PauseTraits(drains=True)}

#: What is asked for. No read tells whether it is paused (`is_paused` is always false) or what is released. An answer
#: may have said that it admits requests; and to ask again finds a process that ended after it had answered a pause.
OBSERVABLE = frozenset({Fact.BOOT, Fact.ADMISSION, Fact.RUNNING, Fact.CONTENTS})


def capabilities_of(
    info: Mapping[str, Any],
    version: str,
    *,
    sizes: Mapping[str, int] | None = None,
    notes: tuple[str, ...] = (),
) -> Capabilities:
    """What this server can do.

    Its weights have a backup on the host, so that a release keeps them. It tells nothing of how many bytes its tags
    hold: `sizes` gives them, else the first proved release does. Source:
    runtime/execution/weight_loader.py, runtime/layers/attention/kv_cache/arena.py (`enable_cpu_backup`).
    """
    saves = info.get("enable_memory_saver")
    return Capabilities(
        engine="tokenspeed",
        version=version[:80],
        tags=(
            TagSpec("weights", "weights", "kept", (sizes or {}).get("weights"), SizeGrade.TENSORS),
            TagSpec("kv_cache", "kv", "discarded", (sizes or {}).get("kv_cache"), SizeGrade.TENSORS),
        ),
        pause=PAUSE_MODES,
        memory_saver=saves if isinstance(saves, bool) else None,
        saver="torch_memory_saver",
        saver_option="--enable-memory-saver",
        update=frozenset({"push"}),
        observable=OBSERVABLE,
        device=_device(info),
        ranks=_ranks(info),
        evidence={
            "admission_closed": Grade.ACKNOWLEDGED,
            "idle": Grade.REPORTED,
            "weights_match": Grade.REPORTED,
            "answers": Grade.MEASURED,
        },
        notes=(*notes, *_notes(saves)),
    )


def boot_of(info: Mapping[str, Any]) -> str:
    """The identity of the server process: when it started, to the second.

    Two starts within one second are told apart by pid and start time, where the driver is on the engine's host.
    """
    return str(info["start_time"])[:80]


def one_reply_of(info: Mapping[str, Any]) -> str | None:
    """Why a server of several data-parallel ranks is not driven; None where it has one.

    A pause, a release and a restore go to every rank, and the answer is the reply of the rank that was first: that
    another refused nobody is told. Source: runtime/engine/data_parallel_controller.py, `send_control_message`;
    scheduler_control_client.py, where each of them ends in `[0]`.
    """
    world, tensor = count(info.get("world_size")), count(info.get("attn_tp_size"))
    given, stages = count(info.get("data_parallel_size")), count(info.get("pipeline_parallel_size")) or 1
    ranks = given or (world // stages // tensor if world and tensor else 1)
    if ranks <= 1:
        return None
    return (
        f"it has {ranks} data-parallel ranks, and answers a pause or a release with the reply of one of them, whatever "
        "the others said; start a server for each rank, and give the fleet all of them"
    )


def _device(info: Mapping[str, Any]) -> Literal["cuda", "cpu"] | None:
    device = str(info.get("device")).partition(":")[0]
    return "cpu" if device == "cpu" else "cuda" if device == "cuda" else None


def _ranks(info: Mapping[str, Any]) -> int:
    """The processes of the model. Sizes that were not given are null. Source: runtime/utils/server_args.py."""
    world = count(info.get("world_size"))
    if world:
        return world
    ranks = 1
    for name in ("attn_tp_size", "data_parallel_size", "pipeline_parallel_size"):
        ranks *= count(info.get(name)) or 1
    return ranks


def _notes(saves: Any) -> tuple[str, ...]:
    notes = []
    if saves is False:
        notes.append("started without --enable-memory-saver: a release is refused")
    notes.append("it reports neither that it is paused nor what is released: both are known by acknowledged calls")
    notes.append("it loads no weights from disk: they come by a push, from a trainer's group or a Mooncake store")
    return tuple(notes)
