"""Which tags are mapped, told from what is resident, where only one answer fits. Pure.

A reading knows devices, not tags: which tag a byte belongs to is inferred from the sizes of the tags.

- `mapping_from_freed_bytes`: a call whose answer was lost did its work or did not; the bytes that moved decide.
- `mapping_from_resident_bytes`: an engine met closed, or after somebody else's act, may have any of its tags mapped;
  what is resident decides where only one choice of tags fits it.
- `denied_by_bytes`: a mapping that is only remembered or asserted may not be what is resident now.

Two rules say which choices fit what is resident. Where a reading of the same boot with every tag mapped is known, the
bytes that are missing from it are those of the unmapped tags. Otherwise the level alone counts: the bytes of the mapped
tags are resident, and no more than the threshold beside them.

A size that an engine reports may be wrong. Where a proved release of every tag shows by how much in all, each choice
may be off by that. What fits several choices, or none, decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from ..core.calls import Call
from ..core.capabilities import Capabilities
from ..core.facts import Fact, Facts, Grade, Tag
from ..core.frozen import replace
from ..core.policy import Policy
from ..core.readings import Reading
from ..core.record import Calibration, Record, UncertainCall
from ..core.units import mib
from ..core.verdicts import Proved
from .evidence import Context, believed_only, share_bytes, taken_as_launched
from .memory import SLACK, freed_everywhere, visible_bytes
from .sizes import HINTED, size_on_device

Choice = frozenset[Tag]


@dataclass(frozen=True, slots=True)
class Undecided:
    """Why the mapping stays unknown, and the choices of unmapped tags that fit what is resident, where some do."""

    why: str = ""
    fitting: tuple[Choice, ...] = ()
    unclosed: str = ""  # why the engine must not be told to close meanwhile, where it must not


def mapping_from_freed_bytes(
    facts: Facts,
    call: UncertainCall,
    reading: Reading,
    capabilities: Capabilities,
    calibration: Calibration,
    policy: Policy,
) -> Mapping[Tag, bool]:
    """The mapping of the tags whose mapping is unknown since a call may have run, told by the bytes that moved since.

    All of them moved where at least their share did, and none where nothing did. Where a part of the share moved, the
    tags moved whose sizes make that part, if only one choice of tags does. A size that is only reported tells it of one
    tag, by more than half of it, and of several where they fit it. Only right after a barrier: a call that may still
    run could move the bytes later. A share too small to be seen tells nothing: a process grows and shrinks by as much.
    """
    unknown = frozenset(tag for tag, mapped in facts.mapped.items() if mapped is None)
    before = call.baseline
    if not unknown or not unknown <= call.targets or before is None:
        return {}

    def size_of(tags: frozenset[Tag]) -> int | None:
        return share_bytes(tags, before, capabilities, calibration.bytes_by_tags)

    def is_hint(tags: frozenset[Tag]) -> bool:
        size = size_on_device(tags, before, capabilities, calibration.bytes_by_tags)
        return size is not None and size.is_hint

    acknowledged = frozenset(tag for tag in call.targets - unknown if facts.mapped[tag] != call.at_start.mapped[tag])
    share, known = size_of(unknown), size_of(acknowledged)
    if not share or share < policy.visible_bytes or known is None or is_hint(acknowledged):
        return {}
    sizes = [size_of(frozenset({tag})) or 0 for tag in unknown]
    least = min((size for size in sizes if size >= policy.visible_bytes), default=share)
    moved_bytes = [abs(held - reading.devices.get(device, 0)) - known for device, held in before.devices.items()]
    was = {tag: call.at_start.mapped[tag] for tag in unknown}
    if None in was.values():
        return {}
    hint, slack = is_hint(unknown), SLACK * least
    enough = HINTED * share if hint and len(unknown) == 1 else share - slack
    too_many = hint and len(unknown) > 1 and max(moved_bytes) > share + slack
    if min(moved_bytes) >= enough and not too_many:
        return {tag: not mapped for tag, mapped in was.items()}
    if max(map(abs, moved_bytes)) <= slack:
        return {tag: bool(mapped) for tag, mapped in was.items()}
    fitting = [
        choice
        for choice in _choices(sorted(unknown))
        if max(abs(size - (size_of(frozenset(choice)) or 0)) for size in moved_bytes) <= slack
    ]
    if len(fitting) != 1:
        return {}
    return {tag: bool(mapped) is not (tag in fitting[0]) for tag, mapped in was.items()}


def since_call_before(context: Context, record: Record, call: Call) -> Context:
    """The context in which bytes tell what this call of a release did, and not those before it.

    `context` is the command's, with a reading after each call so far; `record` is what is known now. What the calls
    before gave back must have been seen to go by the last of those readings: bytes that go late would be taken for
    those of this call. Otherwise bytes are compared with those before the whole command.
    """
    before, gone = context.baseline.residual, frozenset[Tag]()
    for tags, reading in context.readings_per_call:
        share = context.share_bytes(tags, before) if isinstance(before, Reading) else None
        if not isinstance(before, Reading) or not isinstance(reading, Reading) or not share:
            return context
        if set(before.devices) != set(reading.devices) or freed_everywhere(before, reading) < (1 - SLACK) * share:
            return context
        before, gone = reading, gone | tags
    if not gone:
        return context
    targets = frozenset(call.effect.get(Fact.MAPPED, {}))
    return replace(context, record=record, targets=targets, baseline=replace(context.baseline, residual=before))


@dataclass(frozen=True, slots=True)
class _Level:
    """What is resident now, and what is known of the same process to compare it with."""

    tags: tuple[Tag, ...]
    reading: Reading
    capabilities: Capabilities
    calibration: Calibration
    policy: Policy

    def size(self, tags: Choice) -> int | None:
        """Bytes that these tags hold on each device; None where no figure is known."""
        return share_bytes(tags, self.reading, self.capabilities, self.calibration.bytes_by_tags)

    def choices(self) -> list[Choice]:
        """Every choice of tags."""
        return [frozenset(choice) for choice in _choices(list(self.tags))]

    @property
    def full(self) -> Reading | None:
        """What the same devices held when every tag was mapped; None where that was not read."""
        return self._of_these_devices(self.calibration.reading_all_mapped)

    @property
    def base(self) -> Reading | None:
        """What the same devices held when every tag was released; None where that was not proved."""
        return self._of_these_devices(self.calibration.reading_all_released)

    def _of_these_devices(self, earlier: Reading | None) -> Reading | None:
        return earlier if earlier is not None and set(earlier.devices) == set(self.reading.devices) else None

    def missing(self, full: Reading) -> list[int]:
        """Bytes that each device holds less than when every tag was mapped."""
        return [held - self.reading.devices[device] for device, held in full.devices.items()]

    @property
    def least(self) -> int | None:
        """The size of the smallest tag that can be seen; None where no size of such a tag is known."""
        sizes = [self.size(frozenset({tag})) for tag in self.tags]
        return min((size for size in sizes if size is not None and size >= self.policy.visible_bytes), default=None)


def unmapped_choices(
    facts: Facts, reading: Reading, capabilities: Capabilities, calibration: Calibration, policy: Policy
) -> tuple[Choice, ...]:
    """Every choice of unmapped tags that what is resident may stand for; empty where none fits."""
    level = _Level(tuple(facts.mapped), reading, capabilities, calibration, policy)
    full = level.full
    return _level_fits(level) if full is None else _missing_fits(level, full)


def mapping_from_resident_bytes(
    facts: Facts,
    reading: Reading,
    capabilities: Capabilities,
    calibration: Calibration,
    policy: Policy,
    call: UncertainCall | None = None,
) -> Mapping[Tag, bool]:
    """The mapping of every tag, told from how much is resident, where only one choice of mapped tags fits.

    What is known stays: the bytes of a tag that is known to be unmapped may be resident all the same, unless they were
    measured to go before the `call` in doubt.
    """
    known = {tag: mapped for tag, mapped in facts.mapped.items() if mapped is not None}
    gone = _measured_to_be_gone(call) & facts.unmapped()
    fitting = [
        choice
        for choice in unmapped_choices(facts, reading, capabilities, calibration, policy)
        if gone <= choice and not any(known.get(tag) for tag in choice)
    ]
    if len(fitting) != 1 or any(mapped is (tag in fitting[0]) for tag, mapped in known.items()):
        return {}
    return {tag: tag not in fitting[0] for tag in facts.mapped}


def _measured_to_be_gone(call: UncertainCall | None) -> Choice:
    """The tags whose bytes were measured to be gone when the command of this call began."""
    basis = None if call is None else call.at_start.basis.get(Fact.MAPPED)
    return call.at_start.unmapped() if call and basis and basis.grade is Grade.MEASURED else frozenset()


def as_when_met(record: Record, reading: Reading, capabilities: Capabilities, policy: Policy) -> bool:
    """Whether a process that is taken to be as it launched has lost no tag's bytes since it was met, and holds half.

    A size may have been given wrongly: such an engine is refused its release, and may serve again as it did.
    """
    level = _Level(tuple(record.facts.mapped), reading, capabilities, record.calibration, policy)
    full, stated = level.full, level.size(frozenset(level.tags))
    if not taken_as_launched(record) or full is None or stated is None:
        return False
    a_tag = (1 - SLACK) * (level.least or visible_bytes(policy, full))
    half = all(held >= HINTED * stated for held in reading.devices.values())
    return half and max(level.missing(full)) < a_tag


def denied_by_bytes(record: Record, reading: Reading, capabilities: Capabilities, policy: Policy) -> str | None:
    """How what is resident denies the mapping that is believed, in words; None where it may be so.

    Less may not be resident than the mapped tags hold. That alone denies what was measured, and what a process is taken
    to have launched with: it may have given up a cache since it was read. What is only remembered or asserted is denied
    too where another choice of tags fits, by one rule or the other, and the believed one does not. What was given back
    without being seen to go may be resident still.
    """
    facts, calibration = record.facts, record.calibration
    level = _Level(tuple(facts.mapped), reading, capabilities, calibration, policy)
    unmapped, mapped = facts.unmapped(), frozenset(tag for tag, each in facts.mapped.items() if each)
    if not _may_hold(level, frozenset(level.tags) - mapped):
        held = mib(level.size(mapped) or 0)
        return f"{mib(reading.resident_bytes)} are resident, and its mapped tags hold {held}"
    if None in facts.mapped.values() or taken_as_launched(record) or not believed_only(record):
        return None
    fitting = unmapped_choices(facts, reading, capabilities, calibration, policy) or _level_fits(level)
    borne_out = [choice for choice in fitting if choice == unmapped or (choice < unmapped and not _seen_to_go(record))]
    if not fitting or borne_out:
        return None
    found = " or ".join(sorted(map(_in_words, fitting)))
    return f"{mib(reading.resident_bytes)} are resident, which is what it holds with {found}"


def released_since_mapped(record: Record, reading: Reading, capabilities: Capabilities, policy: Policy) -> str | None:
    """How what is resident shows that somebody else released a mapped tag, in words; None where it does not.

    It denies the mapping, and as much as a tag holds is gone since every tag was mapped, beside what is unmapped. An
    engine that never held as much as its tags are said to is none such.
    """
    denied = denied_by_bytes(record, reading, capabilities, policy)
    level = _Level(tuple(record.facts.mapped), reading, capabilities, record.calibration, policy)
    full, released = level.full, level.size(record.facts.unmapped())
    if denied is None or full is None or released is None:
        return None
    gone = max(level.missing(full)) - released
    a_tag = (1 - SLACK) * (level.least or visible_bytes(policy, full))
    return f"{denied}: externally modified" if gone >= a_tag else None


def restored_in_release(context: Context, after: Reading) -> bool:
    """Whether somebody else restored tags that were seen to go with a call of this release: nothing of ours does.

    As much more is resident at its end than would be had all gone, as only a choice with such a tag in it holds.
    """
    before, gone = context.baseline.residual, frozenset[Tag]()
    if not isinstance(before, Reading):
        return False

    def size(tags: frozenset[Tag]) -> int:
        return context.share_bytes(tags, before) or 0

    level = before
    for tags, reading in context.readings_per_call:
        if not isinstance(reading, Reading) or freed_everywhere(level, reading) < (1 - SLACK) * size(tags):
            break
        level, gone = reading, gone | tags
    sizes = {frozenset(choice): size(frozenset(choice)) for choice in _choices(sorted(context.targets))}
    least = min((sizes[frozenset({tag})] for tag in context.targets), default=0)
    more = freed_everywhere(after, level) + sizes[context.targets - gone]
    fitting = [choice for choice, held in sizes.items() if abs(held - more) <= SLACK * least]
    seen = least >= visible_bytes(context.policy, before)
    return seen and bool(fitting) and all(choice & gone for choice in fitting)


def _seen_to_go(record: Record) -> bool:
    """Whether the memory of released tags is known to have gone with their release."""
    returned = record.conditions.get("memory_returned")
    unproved = returned is not None and not isinstance(returned.verdict, Proved)
    return record.calibration.reading_all_released is not None or not unproved


def undecided(record: Record, reading: Reading, capabilities: Capabilities, policy: Policy) -> Undecided:
    """Why what is resident does not tell which tags are mapped."""
    facts, calibration = record.facts, record.calibration
    level = _Level(tuple(facts.mapped), reading, capabilities, calibration, policy)
    fitting = unmapped_choices(facts, reading, capabilities, calibration, policy)
    full = level.full
    if full is None:
        seen = f"{mib(reading.resident_bytes)} are resident, and what it held with every tag mapped was not read"
    else:
        seen = f"{mib(max(level.missing(full)))} are missing of what it held with every tag mapped"
    sizes = ", ".join(f"{tag} {_size(level.size(frozenset({tag})))}" for tag in sorted(level.tags))
    which = f"fits {' or '.join(sorted(map(_in_words, fitting)))}" if fitting else "is the size of no choice of tags"
    return Undecided(f"{seen}, which {which} ({sizes})", fitting)


def _missing_fits(level: _Level, full: Reading) -> tuple[Choice, ...]:
    """The choices of unmapped tags whose bytes are those that are missing since every tag was mapped."""
    missing = level.missing(full)
    sizes = {choice: level.size(choice) for choice in level.choices()}
    least = level.least or visible_bytes(level.policy, full)
    slack = SLACK * least
    if _all_gone(level, slack):
        everything = frozenset(level.tags)
        return tuple(each for each in sizes if _hidden(sizes[everything - each], slack))
    less, more = (slack + off for off in _misstated(level))
    fitting = tuple(
        choice
        for choice, size in sizes.items()
        if size is not None
        and _may_hold(level, choice)
        and all(each <= size + more and (not choice or each >= size - less) for each in missing)
    )
    return _without_hidden(level, fitting, least)


def _misstated(level: _Level) -> tuple[int, int]:
    """By how much the sizes of all tags together are stated too large, and too small, as a proved release showed."""
    base, full, stated = level.base, level.full, level.size(frozenset(level.tags))
    if base is None or full is None or stated is None:
        return 0, 0
    off = [stated - (full.devices[device] - held) for device, held in base.devices.items()]
    return max(0, *off), max(0, *(-each for each in off))


def _all_gone(level: _Level, slack: float) -> bool:
    """Whether no more is resident than after a proved release of every tag, and a release can be told from that."""
    base, full = level.base, level.full
    if base is None or full is None:
        return False
    gone = all(level.reading.devices[device] <= held + slack for device, held in base.devices.items())
    return gone and all(full.devices[device] - held > 2 * slack for device, held in base.devices.items())


def _hidden(size: int | None, slack: float) -> bool:
    """Whether tags of this size may be mapped without being seen."""
    return size is not None and size <= slack


def _may_hold(level: _Level, unmapped: Choice) -> bool:
    """Whether as much is resident as the tags beside these must hold. Of a size that is only reported half is right."""
    mapped = frozenset(level.tags) - unmapped
    size = size_on_device(mapped, level.reading, level.capabilities, level.calibration.bytes_by_tags)
    if size is None:
        return True
    least = (HINTED if size.is_hint else level.policy.returned_fraction) * size.total_bytes
    return all(held >= least for held in level.reading.devices.values())


def _without_hidden(level: _Level, fitting: tuple[Choice, ...], least: int) -> tuple[Choice, ...]:
    """The choices; any where none is missing, and yet too little or too much for every tag is resident.

    Growth hides a release. Too little is what is short of the base, which a proved release left, with every tag mapped
    beside it; too much is as much as all tags more than it held with them.
    """
    base, full, needed = level.base, level.full, level.size(frozenset(level.tags))
    if frozenset() not in fitting or full is None or needed is None:
        return fitting
    held = {} if base is None else base.devices
    lacking = [before + needed - level.reading.devices[device] for device, before in held.items()]
    hidden = max(lacking, default=0) >= (1 - SLACK) * least or min(level.missing(full)) <= (SLACK - 1) * needed
    return tuple(level.choices()) if hidden else fitting


def _level_fits(level: _Level) -> tuple[Choice, ...]:
    """The choices of unmapped tags beside which the mapped ones and no more than the threshold are resident.

    One small beside what it holds anyway (a CPU engine under a threshold for GPUs), or of unknown sizes, fits several.
    """
    fitting = []
    for choice in level.choices():
        share = level.size(frozenset(level.tags) - choice)
        if share is None or all(
            level.policy.returned_fraction * share <= held <= share + level.policy.threshold_bytes
            for held in level.reading.devices.values()
        ):
            fitting.append(choice)
    return tuple(fitting)


def _in_words(unmapped: Choice) -> str:
    return f"{', '.join(sorted(unmapped))} released" if unmapped else "nothing released"


def _size(size: int | None) -> str:
    return "unknown" if size is None else mib(size)


def _choices(tags: list[Tag]) -> list[tuple[Tag, ...]]:
    return [choice for size in range(len(tags) + 1) for choice in combinations(tags, size)]
