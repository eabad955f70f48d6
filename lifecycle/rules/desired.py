"""What an engine should serve: how it is set, undone, and remembered. Pure."""

from __future__ import annotations

from ..core.capabilities import Capabilities
from ..core.frozen import replace
from ..core.record import Desired, Record
from ..core.sources import FromDisk, Kept, Pushed, Source, checked, version_of
from ..core.states import State
from .identity import same_process
from .weights import invalid_weights


def set_desired(record: Record, source: Source, capabilities: Capabilities) -> Record:
    """From here on the engine should serve what `source` brings; `Kept` brings the version that is there now."""
    version = version_of(checked(source, needed=True))
    if version is None and isinstance(source, Kept):
        held = [record.facts.contents.get(tag) for tag in capabilities.stage("weights")]
        version = next((contents.version for contents in held if contents is not None), None)
    return replace(record, desired=replace(record.desired, source=source, version=version))


def was_loaded(record: Record, source: Source) -> Record:
    """`source` was loaded and proved. A push cannot be made again, so nothing can be rolled back to after it."""
    rollback = source if isinstance(source, FromDisk) else None
    return replace(record, desired=replace(record.desired, rollback_source=rollback))


def untouched(record: Record, before: Record) -> bool:
    """Whether neither memory nor weights of the engine were changed since `before`, as far as is known."""
    now, then = record.facts, before.facts
    same = now.boot == then.boot or same_process(now.boot, then.boot)
    return same and (now.mapped, now.contents) == (then.mapped, then.contents)


def desired_unless_touched(record: Record, before: Record) -> Record:
    """The record with what was desired before a command, where that command changed neither memory nor weights."""
    if not untouched(record, before):
        return record
    undone = replace(before.desired, rollback_source=record.desired.rollback_source)
    return replace(record, desired=undone)


def source_after_release(record: Record, named: Source | None) -> Source | None:
    """What an engine that is to be released will come back with: what is named, else what is known to bring it back."""
    if named is not None:
        return named
    return record.desired.source if record.state is State.RELEASED else record.desired.rollback_source


def source_to_serve(record: Record, capabilities: Capabilities) -> Source | None:
    """What brings the weights on the way to serving: what is wanted, else what can be fallen back to.

    That is the last source that was proved, then what the engine says that it was launched with. Each only where it
    brings the wanted version, or none is wanted.
    """
    desired = record.desired
    if isinstance(desired.source, FromDisk | Pushed):
        return desired.source
    return known_source(desired, capabilities) or desired.source


def known_source(desired: Desired, capabilities: Capabilities) -> FromDisk | None:
    """A source from disk that brings the wanted version without anybody naming it."""
    known = (desired.rollback_source, capabilities.launch_source)
    return next((each for each in known if each is not None and desired.version in (None, each.version)), None)


def needs_trainer(record: Record, capabilities: Capabilities) -> bool:
    """Whether nothing but a push brings its weights back: nobody asks for one whose step has failed."""
    return isinstance(record.desired.source, Pushed) and invalid_weights(record, capabilities) is not None
