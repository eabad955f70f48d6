"""Whether the weights of an engine are worth serving, and whether a release keeps them. Pure."""

from __future__ import annotations

from ..core.capabilities import Capabilities
from ..core.facts import Contents, TagSpec
from ..core.record import Record
from ..core.sources import FromDisk, Pushed, Source
from .identity import same_process


def is_kept(spec: TagSpec, source: Source | None) -> bool:
    """Whether a release that names this source brings back what the tag holds.

    An engine that keeps weights as it is wanted discards those that the source replaces. Where none is named it keeps
    them, since nothing else would bring them back.
    """
    if spec.on_release == "as_wanted":
        return spec.stage == "weights" and not isinstance(source, FromDisk | Pushed)
    return spec.on_release == "kept"


def invalid_weights(record: Record, capabilities: Capabilities) -> str | None:
    """Why the weights are not worth serving; None where every weights tag holds what is wanted."""
    for tag in sorted(capabilities.stage("weights")):
        reason = _invalid(record, record.facts.contents.get(tag))
        if reason:
            return f"{tag} holds {reason}"
    return None


def _invalid(record: Record, contents: Contents | None) -> str | None:
    if contents is None:
        return "contents unknown"
    if contents.origin == "garbage":
        return "whatever was in that memory (it came back unwritten)"
    if contents.origin == "launched" and not same_process(record.calibration.attached_boot, record.facts.boot):
        return "what a restarted process launched with"
    wanted = record.desired.version
    if wanted is not None and contents.version != wanted:
        return f"{contents}, and {wanted} is wanted"
    return None
