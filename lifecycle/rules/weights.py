"""Whether the weights of an engine are worth serving: a function of its Record."""

from __future__ import annotations

from ..core.capabilities import Capabilities
from ..core.facts import Contents
from ..core.record import Record
from .identity import same_process


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
