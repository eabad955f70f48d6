"""What leads on where a guard refused, by the name of the guard. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...core.advice import Choice
from ...core.commands import Pause, Release, UpdateWeights
from ...core.frozen import replace
from ...core.policy import PAUSE_MODE
from ...core.sources import Kept, Source, version_of
from ...core.states import State
from ..desired import source_to_serve
from ..planner import Goal, safe_mode
from .serving import ANEW, drained, home, onload_from, paused, recover, sources, taken_back
from .typed import Asked, Where, asking


def after_guard(where: Where, asked: Asked | None, guard: str) -> list[Choice]:
    """What leads on where this guard refused."""
    answer = _BY_GUARD.get(guard)
    if answer is not None:
        return answer(where, asked)
    changed = f"change what {guard} names"
    again = [Choice(first=changed)] if asked is None else [asking(where, asked, changed)]
    return [*again, *(choice for choice in home(where) if choice.call != again[0].call)]


def _other_mode(where: Where, asked: Asked | None) -> list[Choice]:
    mode = safe_mode(where.view, PAUSE_MODE)
    if isinstance(asked, Goal) and mode is not None:
        return [asking(where, replace(asked, mode=mode))]
    return paused(where)


def _other_tags(where: Where, asked: Asked | None) -> list[Choice]:
    can = where.capabilities.releasable
    tags = None if can == "any" else next((each for each in sorted(can, key=sorted)), None)
    return [asking(where, replace(asked, tags=tags))] if isinstance(asked, Release | Goal) else home(where)


def _named_source(where: Where, asked: Asked | None) -> list[Choice]:
    if not isinstance(asked, Release | Goal):
        return home(where)
    named = [asking(where, replace(asked, weights=source), first) for source, first in sources(where)]
    return [*named, *home(where)]


def _once_all_are_ready(where: Where, asked: Asked | None) -> list[Choice]:
    """Another engine kept it from being released with it."""
    again = [] if asked is None else [asking(where, asked, "see to the engine that it names")]
    return [*again, *home(where)]


def _with_saver(where: Where, asked: Asked | None) -> list[Choice]:
    return [recover(where, f"{ANEW} with its memory saver"), *home(where)]


def _other_source(where: Where, asked: Asked | None) -> list[Choice]:
    """The version is there already, or the source cannot be loaded."""
    if isinstance(asked, UpdateWeights) and not where.invalid and version_of(asked.source) is not None:
        return [*home(where), asking(where, replace(asked, force=True))]
    if isinstance(asked, Goal):
        return onload_from(where)
    return [asking(where, UpdateWeights(source), first) for source, first in sources(where) if not _kept(source)]


def _updated(where: Where, asked: Asked | None) -> list[Choice]:
    """The weights are not valid by what is known, or (where they were to be kept) by a checksum read now."""
    if where.state is State.PAUSED:
        return drained(where)
    if where.state is State.KV_RESTORED:
        return [recover(where)]
    if where.state is State.RELEASED:
        return onload_from(where)
    wanted = source_to_serve(where.record, where.capabilities)
    if where.invalid and wanted is not None and not _kept(wanted):
        return [asking(where, UpdateWeights(wanted))]
    force = not where.invalid
    return [asking(where, UpdateWeights(source, force), first) for source, first in sources(where)]


def _kept(source: Source) -> bool:
    return isinstance(source, Kept)


def _closed_router(where: Where, asked: Asked | None) -> list[Choice]:
    mode = asked.mode if isinstance(asked, Pause) else PAUSE_MODE
    return [where.choice(f"fleet.pause({mode!r}, {where.alone})", f"pause --mode {mode}")]


def _found_out(where: Where, asked: Asked | None) -> list[Choice]:
    return [recover(where)]


def _borne_out(where: Where, asked: Asked | None) -> list[Choice]:
    """What is resident decides, or cannot be read."""
    changed = "change what mapping_borne_out names"
    return [recover(where), Choice(first=changed) if asked is None else asking(where, asked, changed)]


def _stored(where: Where, asked: Asked | None) -> list[Choice]:
    first = "make its store writable"
    return [Choice(first=first) if asked is None else asking(where, asked, first)]


#: What leads on where a guard refused; where none stands here, what its reason names has to change.
_BY_GUARD: Mapping[str, Callable[[Where, Asked | None], list[Choice]]] = {
    "mode_supported": _other_mode,
    "mode_change_safe": _other_mode,
    "mode_drains": _other_mode,
    "derouted": _closed_router,
    "still_idle": _found_out,
    "all_ready": _once_all_are_ready,
    "mapping_borne_out": _borne_out,
    "memory_saver_enabled": _with_saver,
    "tags_releasable": _other_tags,
    "weights_recoverable": _named_source,
    "source_ready": _other_source,
    "live_update_supported": lambda where, asked: drained(where),
    "all_mapped": _found_out,
    "weights_valid": _updated,
    "cache_fresh": lambda where, asked: drained(where),
    "memory_returned": lambda where, asked: home(where),
    "serving": lambda where, asked: paused(where),
    "source": lambda where, asked: onload_from(where),
    "store": _stored,
    "quarantined": lambda where, asked: [taken_back(where)],
}
