"""Guards: what must hold before an engine is touched. Each returns None, or the reason in words to act on.

A static guard looks only at the command, the engine's capabilities and how it was paused, so a fleet asks it for the
whole route before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..core.commands import Pause, Release, Resume, UpdateWeights
from ..core.facts import Grade, Stage, Tag
from ..core.frozen import replace
from ..core.policy import ACCEPT
from ..core.readings import Reading
from ..core.sources import FromDisk, Kept, Pushed, version_of
from ..core.units import mib
from ..core.verdicts import NotApplicable, Proved, Unmeasurable, Verdict
from .checksums import by_model_role, changed
from .evidence import Context, EvidenceKind, believed_only, goes_on_with_kv, taken_as_launched, targets
from .mapping import as_when_met, denied_by_bytes
from .memory import visible_bytes
from .weights import invalid_weights, is_kept

Check = Callable[[Context], str | None]


@dataclass(frozen=True, slots=True)
class Guard:
    """A named check, the evidence it needs, and its docstring for the documentation."""

    name: str
    check: Check
    needs: frozenset[EvidenceKind]
    static: bool
    doc: str

    def __call__(self, context: Context) -> str | None:
        return self.check(context)


def guard(*needs: EvidenceKind, static: bool = False, least: Grade | None = None) -> Callable[[Check], Guard]:
    """Makes a guard of a function; its name and docstring are the guard's.

    `least` is the grade at which a guard that rests on a claim takes it, unless `Policy.accept` says otherwise.
    """

    def make(check: Check) -> Guard:
        if least is not None:
            ACCEPT[check.__name__] = least
        return Guard(check.__name__, check, frozenset(needs), static, check.__doc__ or "")

    return make


@guard(static=True)
def mode_supported(context: Context) -> str | None:
    """The engine has this pause mode, and what the mode needs is there."""
    command = context.command
    assert isinstance(command, Pause)
    modes = context.capabilities.pause
    traits = modes.get(command.mode)
    if traits is None:
        return f"{context.capabilities.engine} has no pause mode {command.mode!r}; it has {', '.join(modes) or 'none'}"
    if traits.needs_router and not context.has_router:
        return f"mode {command.mode!r} needs a router that stops sending first; give the fleet one, or use 'abort'"
    return None


@guard()
def derouted(context: Context) -> str | None:
    """Where there is a router, it has confirmed that it sends nothing more to this engine."""
    if context.has_router and context.facts.routed is not False:
        return "the router has not confirmed that it stopped sending; close it first (a fleet's move does)"
    return None


@guard()
def mode_change_safe(context: Context) -> str | None:
    """The engine can go from the pause it is in to this one without hanging."""
    command = context.command
    assert isinstance(command, Pause)
    refused = mode_supported(context)
    if refused:
        return refused
    current, traits = context.facts.paused_by, context.capabilities.pause[command.mode]
    if current is None and traits.unsafe_from:
        return f"how it was paused is not known, and {command.mode!r} after {sorted(traits.unsafe_from)} hangs it"
    if current in traits.unsafe_from:
        return f"{command.mode!r} after {current!r} hangs {context.capabilities.engine} for ever"
    return None


@guard(static=True)
def mode_drains(context: Context) -> str | None:
    """The pause that the engine is in lets it become idle."""
    mode = context.facts.paused_by
    if mode is None:
        return "how it was paused is not known; pause it again with a mode that drains"
    traits = context.capabilities.pause.get(mode)
    if traits is None or not traits.drains:
        draining = [name for name, each in context.capabilities.pause.items() if each.drains]
        return f"a pause by {mode!r} never drains; pause it again by {' or '.join(draining) or 'another mode'}"
    return None


@guard(EvidenceKind.IDLE)
def still_idle(context: Context) -> str | None:
    """No request can run a step or hold device memory, asked again just before the memory goes."""
    return _unless_proved(context.evidence.idle, "a release under running requests kills the engine")


@guard(static=True)
def memory_saver_enabled(context: Context) -> str | None:
    """The engine was started so that a release frees memory; without it the release answers and frees nothing."""
    if context.capabilities.memory_saver is False:
        option = context.capabilities.saver_option or "its memory saver"
        return f"it was started without its memory saver, so a release would free nothing; start it with {option}"
    return None


@guard(EvidenceKind.HOOK_MODE, least=Grade.REPORTED)
def hook_mode_safe(context: Context) -> str | None:
    """torch_memory_saver's hook mode does not crash on this GPU architecture."""
    return _unless_accepted(context, "hook_mode_safe", context.evidence.hook_mode)


@guard(static=True)
def tags_releasable(context: Context) -> str | None:
    """The tags are the engine's own, at least one is named, and it can release just these together."""
    command, capabilities = context.command, context.capabilities
    assert isinstance(command, Release)
    known = frozenset(spec.name for spec in capabilities.tags)
    named = known if command.tags is None else command.tags
    if command.tags is not None and not command.tags:
        return "no tag is named; leave tags out to release all of them"
    if named - known:
        return f"unknown tag {', '.join(sorted(named - known))}; it has {', '.join(sorted(known))}"
    if capabilities.releasable != "any" and named not in capabilities.releasable:
        can = "; ".join(", ".join(sorted(tags)) for tags in capabilities.releasable)
        return f"it cannot release {', '.join(sorted(named))} together; it can release: {can}"
    return None


@guard(static=True)
def weights_recoverable(context: Context) -> str | None:
    """A release that discards weights names where they will come from, and what it names can be loaded.

    Weights that are kept come back as they were: where another source is named, it is loaded over them afterwards, and
    an engine that could not would stay without what it is to serve. Those that are not worth serving, and that a push
    is to replace anyway, are no loss: it need not be at hand yet.
    """
    command, capabilities = context.command, context.capabilities
    assert isinstance(command, Release)
    named = frozenset(spec.name for spec in capabilities.tags) if command.tags is None else command.tags
    lost = [
        spec.name
        for spec in capabilities.tags
        if spec.name in named and spec.stage == "weights" and not is_kept(spec, command.weights)
    ]
    match command.weights:
        case FromDisk() | Pushed() as source:
            awaited = isinstance(source, Pushed) and source == context.record.desired.source
            if awaited and invalid_weights(context.record, capabilities) is not None:
                return None
            return None if not lost and _holds(context, source.version) else unloadable(context, source)
        case None if lost:
            return f"{', '.join(lost)} would be lost; name a source: weights=FromDisk(...), Pushed(...) or Kept()"
        case Kept() if lost:
            return (
                f"weights=Kept(), but the engine keeps no backup of {', '.join(lost)}; "
                "start it with its weights backup, or name FromDisk(...) or Pushed(...)"
            )
    return None


#: The device of an engine of which nothing was read yet: all its ranks are taken to share one.
_ONE_DEVICE = Reading({"": 0}, (), "none")


@guard(static=True)
def bytes_visible(context: Context) -> str | None:
    """What is released is enough to be seen to go and to come back, where its proofs rest on that.

    A release whose restore could not be proved would leave an engine that no command brings home.
    """
    assert isinstance(context.command, Release)
    acted_on = context.targets or targets(context.command, context.facts, context.capabilities)
    now, before = context.evidence.residual, context.calibration.reading_all_mapped
    reading = now if isinstance(now, Reading) else before
    size = context.size(acted_on, reading or _ONE_DEVICE)
    unseen = _resting_on_bytes(context, acted_on)
    if not acted_on or size is None or not unseen:
        return None
    least = context.policy.visible_bytes if reading is None else visible_bytes(context.policy, reading)
    if size.at_most_bytes >= least:
        return None
    beside = "" if reading is None else f" beside {mib(reading.resident_bytes)} resident"
    accept = ", ".join(f"{claim!r}: Grade.ACKNOWLEDGED" for claim in unseen)
    return (
        f"{', '.join(sorted(acted_on))} hold {mib(size.total_bytes)}, too little to see: less than {mib(least)} move "
        f"unseen{beside}, "
        "so that neither their release nor their restore could be proved; release more tags with them, or accept it "
        f"unseen: Policy(accept={{{accept}}})"
    )


def _resting_on_bytes(context: Context, acted_on: frozenset[Tag]) -> list[str]:
    """The claims about these tags that only bytes can prove as well as the policy asks for."""
    says = context.capabilities.reports_released or context.evidence.observed.released_tags is not None
    stages: dict[str, Stage] = {"weights_mapped": "weights", "kv_mapped": "kv"}
    restores = [claim for claim, stage in stages.items() if acted_on & context.capabilities.stage(stage)]
    claims = ["memory_returned", "tags_unmapped", *restores]
    best = {"memory_returned": Grade.ACKNOWLEDGED}
    known = Grade.REPORTED if says else Grade.ACKNOWLEDGED
    return [claim for claim in claims if context.policy.least_grade(claim) > best.get(claim, known)]


@guard(EvidenceKind.HOST_ROOM, least=Grade.ACKNOWLEDGED)
def host_has_room(context: Context) -> str | None:
    """The host has memory for the backup that this release makes."""
    return _unless_accepted(context, "host_has_room", context.evidence.host_room)


@guard(EvidenceKind.DEVICE_ROOM, least=Grade.ACKNOWLEDGED)
def device_has_room(context: Context) -> str | None:
    """Every device of the engine has free memory for the tags that come back."""
    return _unless_accepted(context, "device_has_room", context.evidence.device_room)


@guard(EvidenceKind.COTENANTS)
def cotenants_within_budget(context: Context) -> str | None:
    """The tenants of each device may hold no more than its budget together, with what comes back."""
    return _unless_proved(context.evidence.cotenants)


@guard(static=True)
def source_ready(context: Context) -> str | None:
    """The source names a version that is not the valid one already, and the engine can load from it."""
    command = context.command
    assert isinstance(command, UpdateWeights)
    version = version_of(command.source)
    if version is None:
        return "Kept() brings nothing new; update from FromDisk(...) or Pushed(...)"
    if not command.force and _serves_all(context, version):
        return f"version {version!r} is loaded and valid already; force=True loads it again"
    return unloadable(context, command.source)


@guard(static=True)
def live_update_supported(context: Context) -> str | None:
    """The engine can take weights while requests are parked in it."""
    mode = context.facts.paused_by
    traits = context.capabilities.pause.get(mode) if mode else None
    if "live" not in context.capabilities.update or traits is None or not traits.live_update:
        return f"an update while paused by {mode!r} would mix weights inside requests"
    return None


@guard(EvidenceKind.RESIDUAL, least=Grade.REPORTED)
def mapping_borne_out(context: Context) -> str | None:
    """What is only remembered or asserted of the mapping is borne out by what is resident now.

    Accepted as asserted (Policy.accept), it is taken on trust even where bytes deny it. What a process is taken to have
    launched with passes where nothing can be measured. A mapping that was measured passes unless less is resident, as
    far as that is read, than its mapped tags hold.
    """
    record, reading = context.record, context.evidence.residual
    if context.policy.least_grade("mapping_borne_out") is Grade.ASSERTED:
        return None
    if isinstance(reading, Unmeasurable):
        trusted = not believed_only(record) or taken_as_launched(record)
        return None if trusted else _unless_accepted(context, "mapping_borne_out", reading)
    if isinstance(context.command, Resume) and as_when_met(record, reading, context.capabilities, context.policy):
        return None
    denied = denied_by_bytes(record, reading, context.capabilities, context.policy)
    return None if denied is None else f"{denied}; recover() finds out which tags are mapped, where the sizes are right"


@guard()
def all_mapped(context: Context) -> str | None:
    """Every tag is mapped: a request would otherwise run on memory that is not there."""
    missing = [tag for tag, mapped in context.facts.mapped.items() if mapped is not True]
    return f"{', '.join(missing)} not known to be mapped" if missing else None


@guard(EvidenceKind.CHECKSUM)
def weights_valid(context: Context) -> str | None:
    """Every weights tag holds the wanted version, what was kept, or what this very process launched with."""
    now = by_model_role(context.evidence.observed)
    differing = changed(context.calibration.kept_checksums, now) if now else ""
    if differing:
        return f"the weights were to be kept, and {differing}"
    return invalid_weights(context.record, context.capabilities)


@guard()
def cache_fresh(context: Context) -> str | None:
    """The prefix cache was built with these weights in this mapping; a live update keeps older KV on purpose."""
    if context.facts.cache_fresh is not True and not goes_on_with_kv(context):
        return "the prefix cache may belong to other weights or to memory that was given back"
    return None


def _unless_proved(verdict: Verdict, why: str = "") -> str | None:
    if isinstance(verdict, Proved | NotApplicable):
        return None
    return f"{verdict}; {why}" if why else str(verdict)


def _unless_accepted(context: Context, claim: str, verdict: Verdict) -> str | None:
    """As `_unless_proved`, but what cannot be measured passes where the policy accepts this claim unseen."""
    if not isinstance(verdict, Unmeasurable):
        return _unless_proved(verdict)
    if context.policy.least_grade(claim) <= Grade.ACKNOWLEDGED:
        return None
    return f"{verdict}; fix this, or accept it unseen: Policy(accept={{{claim!r}: Grade.ACKNOWLEDGED}})"


def _serves_all(context: Context, version: str) -> bool:
    """Whether every weights tag is mapped and holds this version, as weights that are worth serving."""
    tags = context.capabilities.stage("weights")
    return bool(tags) and all(context.facts.mapped.get(tag) for tag in tags) and _holds(context, version)


def _holds(context: Context, version: str) -> bool:
    """Whether every weights tag, mapped or kept, holds this version, as weights that are worth serving."""
    wanting = replace(context.record, desired=replace(context.desired, version=version))
    return invalid_weights(wanting, context.capabilities) is None


def unloadable(context: Context, source: FromDisk | Pushed | Kept) -> str | None:
    """Why the engine cannot load from this source; None where it can, as far as that is known without trying."""
    version = version_of(source)
    if version is not None and not version.strip():
        return "the source has an empty version; name one, it is how weights are told apart"
    if isinstance(source, FromDisk) and not source.path:
        return f"the source of {version} has an empty path"
    if isinstance(source, Pushed) and source.push is None:
        return f"the push of {version} has no callback in this process; give it one: source.bind(callback)"
    way = "push" if isinstance(source, Pushed) else "disk"
    if way in context.capabilities.update:
        return None
    return f"{context.capabilities.engine} cannot load weights from {source}; it can: {_ways(context)}"


def _ways(context: Context) -> str:
    return ", ".join(sorted(context.capabilities.update)) or "nothing"
