"""Reads an SGLang server's capabilities and identity from its `/server_info`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from lifecycle.core.capabilities import Capabilities, PauseTraits
from lifecycle.core.errors import ConfigurationError
from lifecycle.core.facts import Grade, PauseMode, SizeGrade, TagSpec
from lifecycle.core.sources import FromDisk
from lifecycle.core.units import GIB
from lifecycle.nodes.address import Address

from ..http import Answer
from .answers import number, server_info, version_of, whole
from .versions import VERSIONS, Effects

#: The version that a server reports which was launched without one. Source: sglang 0.5.23.
LAUNCH_VERSION = "default"


def boot_of(info: Mapping[str, Any]) -> str:
    """The identity of the server process, a hash of its start-up durations and its random seed.

    Both differ at every start. Source: sglang 0.5.23, `startup_time` is a tree of durations measured in nanoseconds.
    """
    try:
        parts = json.dumps([info.get("startup_time"), info.get("random_seed")], sort_keys=True)
    except RecursionError:
        parts = "nested too deep"
    return hashlib.sha256(parts.encode()).hexdigest()[:12]


class Boots:
    """Reads the boot from answers of `/server_info`. One that has the same bytes as the one before tells the same.

    So answers the server that changed nothing in between. Parsing its 20 KB takes six times as long as their hash.
    """

    __slots__ = ("_boot", "_hash")

    def __init__(self) -> None:
        self._hash = b""
        self._boot: str | None = None

    def read(self, answer: Answer, info: Mapping[str, Any] | None = None) -> str | None:
        """The boot; None where this is no answer of an SGLang server. `info` is the answer parsed, where it was."""
        if not answer.ok:
            return None
        found = hashlib.sha256(answer.body).digest()
        if found != self._hash:
            info = info or server_info(answer)
            self._hash, self._boot = found, None if info is None else boot_of(info)
        return self._boot


def capabilities_of(
    info: Mapping[str, Any],
    tags: tuple[str, ...] = ("weights", "kv_cache"),
    sizes: Mapping[str, int] | None = None,
    *,
    model: Mapping[str, Any] = MappingProxyType({}),
    notes: tuple[str, ...] = (),
    own_abort: bool = False,
) -> Capabilities:
    """What this server can do. The bytes of each tag come from `sizes`, else from the server's `memory_usage`.

    `model` is what `/model_info` says: which weights it holds now. `own_abort`: a pause by abort is SGLang's own.

    `memory_usage` is per rank, in GiB with three decimals. Its `kvcache` is the bytes of the pool's tensors. Its
    `weight` is how far the device's free memory fell while the weights were loaded, so that other processes'
    allocations distort it: no more than a hint. What the caller gives in `sizes` are bytes of tensors.
    Source: sglang 0.5.23, measured: 0.118 to 0.299 where the tensors have 0.268, on a busy CPU.
    """
    backup = info.get("enable_weights_cpu_backup") is True
    effects = VERSIONS.nearest(version_of(info)).effects
    return Capabilities(
        engine="SGLang",
        version=version_of(info),
        tags=tuple(_tag(tag, _memory_usage(info), backup, (sizes or {}).get(tag)) for tag in tags),
        pause=_pause_modes(info, effects, own_abort=own_abort or not aborts_by_retract(info, effects)),
        memory_saver=info.get("enable_memory_saver") is True,
        saver="torch_memory_saver",
        saver_option="--enable-memory-saver",
        update=frozenset({"disk", "push", "live"}),
        device=_device(info),
        ranks=(whole(info.get("tp_size")) or 1) * (whole(info.get("pp_size")) or 1),
        evidence={"idle": Grade.REPORTED, "weights_match": Grade.MEASURED, "answers": Grade.MEASURED},
        launch_source=_launch_source(info, model),
        notes=(*_notes(info, effects), *notes),
    )


def _launch_source(info: Mapping[str, Any], model: Mapping[str, Any]) -> FromDisk | None:
    """The checkpoint of the launch; None where something may have been loaded since, or nothing says what it holds.

    A load changes the `model_path` and `weight_version` of `/model_info`, a push only the latter, so that the two
    belong together only while the version is the one that SGLang gives at a launch. `/server_info` goes on to show
    what it was launched with. Source: sglang 0.5.23, measured; before 0.5.16 it shows what `/model_info` shows.
    """
    path, version = model.get("model_path"), model.get("weight_version")
    launched = path == info.get("model_path") and version == LAUNCH_VERSION
    return FromDisk(path, LAUNCH_VERSION) if launched and isinstance(path, str) and path else None


def _device(info: Mapping[str, Any]) -> Literal["cuda", "cpu"] | None:
    device = info.get("device")
    return "cpu" if device == "cpu" else "cuda" if device == "cuda" else None


def _memory_usage(info: Mapping[str, Any]) -> Mapping[str, Any]:
    states = info.get("internal_states")
    first = states[0] if isinstance(states, list) and states else None
    usage = first.get("memory_usage") if isinstance(first, dict) else None
    return usage if isinstance(usage, dict) else {}


def tags_of(address: Address) -> tuple[str, ...]:
    """The option `tags`: those to release. Raises ConfigurationError where it names none."""
    tags = tuple(tag.strip() for tag in address.options.get("tags", "weights,kv_cache").split(",") if tag.strip())
    if not tags:
        raise ConfigurationError(f"{address}: tags names none; leave it out to mean weights,kv_cache")
    return tags


def _tag(name: str, usage: Mapping[str, Any], backup: bool, given: int | None) -> TagSpec:
    stage: Literal["weights", "kv"] = "weights" if name == "weights" else "kv"
    size_gib = number(usage.get({"weights": "weight", "kv_cache": "kvcache"}.get(name, name)))
    expected = round(size_gib * GIB) if size_gib else None
    on_release: Literal["kept", "discarded"] = "kept" if stage == "weights" and backup else "discarded"
    by_tensors = given is not None or name == "kv_cache"
    return TagSpec(name, stage, on_release, given or expected, SizeGrade.TENSORS if by_tensors else SizeGrade.REPORTED)


def _pause_modes(info: Mapping[str, Any], effects: Effects, *, own_abort: bool) -> dict[PauseMode, PauseTraits]:
    """The pause modes of this server, and from which modes each must not be entered. Those that keep requests first.

    Its own abort of a server that is paused in_place never returns, and every later pause and continue waits for it.
    `keep` drains neither a prefill or decode engine nor one with several data-parallel ranks, nor any before 0.5.21.
    The former stops serving the queues that count as not idle. Of several ranks only the first answers `/flush_cache`,
    and the load counts of the others stand still. Before 0.5.21 a retracted request in the queue counts as not idle,
    and a release with one ends the server. Source: sglang 0.5.23; the abort was measured, the rest was read.
    """
    modes: dict[PauseMode, PauseTraits] = {}
    if effects.drains_retracted and _one_scheduler(info):
        modes["keep"] = PauseTraits(drains=True, keeps_requests=True)
    hangs: frozenset[PauseMode] = frozenset({"freeze"})
    modes["abort"] = PauseTraits(drains=True, unsafe_from=hangs if own_abort else frozenset())
    modes["wait"] = PauseTraits(drains=True, needs_router=True, unsafe_from=hangs)
    if not disaggregated(info):
        modes["freeze"] = PauseTraits(drains=False, keeps_requests=True, keeps_kv=True, live_update=True)
    return modes


def disaggregated(info: Mapping[str, Any]) -> bool:
    """Whether this is a prefill or decode engine, which cannot answer a request alone."""
    return info.get("disaggregation_mode") not in (None, "null")


def aborts_by_retract(info: Mapping[str, Any], effects: Effects) -> bool:
    """Whether a retract and an abort of all requests do to every client what SGLang's own abort does, only sooner.

    Where that was not seen, or where idleness cannot be proved after a retract, its own abort is asked for.
    """
    one_tokenizer = (whole(info.get("tokenizer_worker_num")) or 1) == 1
    return effects.abort_by_retract and _one_scheduler(info) and one_tokenizer


def _one_scheduler(info: Mapping[str, Any]) -> bool:
    return not disaggregated(info) and (whole(info.get("dp_size")) or 1) == 1


def counts_requests_alone(info: Mapping[str, Any]) -> bool:
    """Whether a server that refuses a flush says thereby that requests came in since the flush before.

    A prefill or decode engine is not idle either while it transfers KV, nor one with a hierarchical cache while it
    writes that. With several tokenizer workers a request that one of them admitted before the pause may reach the
    scheduler after the flush. Source: sglang 0.5.23; the first and the last were read, the second is a precaution.
    """
    tokenizers = whole(info.get("tokenizer_worker_num")) or 1
    return not disaggregated(info) and not info.get("enable_hierarchical_cache") and tokenizers == 1


def _notes(info: Mapping[str, Any], effects: Effects) -> tuple[str, ...]:
    notes = []
    if info.get("enable_memory_saver") is not True:
        notes.append("started without --enable-memory-saver: a release would answer 200 and free nothing")
    tokenizers = whole(info.get("tokenizer_worker_num")) or 1
    if tokenizers > 1 and not effects.broadcasts_pause:
        notes.append("several tokenizer workers: a pause reaches one of them only, and the others let requests in")
    elif tokenizers > 1:
        notes.append("several tokenizer workers: an abort waits for the requests of one of them only")
    if not aborts_by_retract(info, effects):
        notes.append("a pause by abort is its own: it takes a second where requests run")
    if not effects.tells_start:
        notes.append("its random seed identifies it: two starts with one --random-seed cannot be told apart by it")
    if not effects.ready:
        notes.append("this version does not say whether it admits requests: it is asked for a token")
    return tuple(notes)
