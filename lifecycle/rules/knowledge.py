"""From what was observed to what is known: merging observations, finding contradictions."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

from ..core.capabilities import Capabilities
from ..core.facts import GARBAGE, Contents, Fact, Facts, Grade, Tag
from ..core.observation import Observation
from ..core.readings import Reading
from ..core.states import State
from ..core.verdicts import Unmeasurable
from .evidence import Context

if TYPE_CHECKING:
    pass


def launched(seen: Observation, capabilities: Capabilities, grade: Grade) -> Facts:
    """What is taken of a process met for the first time: all is mapped and holds what it launched with.

    Nothing measures that; `grade` says how it is known, and its first proved release measures it.
    """
    tags = [spec.name for spec in capabilities.tags]
    contents = {tag: Contents("launched", seen.weights_label) for tag in capabilities.stage("weights")}
    effect: dict[Fact, Any] = {
        Fact.BOOT: seen.boot,
        Fact.MAPPED: dict.fromkeys(tags, True),
        Fact.CONTENTS: contents,
        Fact.CACHE_FRESH: True,
    }
    return merge(Facts().learn(effect, grade), seen, capabilities)


def unknown(seen: Observation, capabilities: Capabilities) -> Facts:
    """What is known of a process that is met while it admits nothing: whether its memory is mapped, is not."""
    tags = [spec.name for spec in capabilities.tags]
    effect = {Fact.BOOT: seen.boot, Fact.MAPPED: dict.fromkeys(tags), Fact.CONTENTS: dict.fromkeys(tags)}
    return merge(Facts().learn(effect, Grade.REPORTED), seen, capabilities)


def merge(facts: Facts, seen: Observation, capabilities: Capabilities) -> Facts:
    """The facts after an observation of the same process: what it told replaces what was known."""
    told: dict[Fact, Any] = {}
    if seen.admission is not None and seen.admission != facts.admission:
        told[Fact.ADMISSION] = seen.admission
        told[Fact.RUNNING] = None
        if seen.admission == "open":
            told[Fact.PAUSED_BY] = None
    if seen.running is not None:
        told[Fact.RUNNING] = seen.running
    if seen.parked is not None:
        told[Fact.PARKED] = seen.parked
    if seen.released_tags is not None:
        told[Fact.MAPPED] = {spec.name: spec.name not in seen.released_tags for spec in capabilities.tags}
    return facts.learn(told, Grade.REPORTED).doubt(_denied(facts, seen, told.get(Fact.MAPPED, {})))


def _denied(facts: Facts, seen: Observation, mapped: Mapping[Tag, bool]) -> dict[Fact, Any]:
    """What others changed with what they did: contents of memory that they moved, or that has another label now.

    A tag that is released now has moved, unless it was known to be released before.
    """
    were = {tag: facts.mapped.get(tag) for tag in mapped}
    moved = {tag for tag, now in mapped.items() if were[tag] is not now and False in (were[tag], now)}
    label = seen.weights_label
    other = {tag for tag, held in facts.contents.items() if held and label and held.version not in (None, label)}
    denied = {tag for tag in facts.contents if tag in moved | other and facts.contents[tag] != GARBAGE}
    effect: dict[Fact, Any] = {Fact.CACHE_FRESH: None} if moved else {}
    return {**effect, Fact.CONTENTS: dict.fromkeys(denied)} if denied else effect


def replaced(facts: Facts, seen: Observation) -> str | None:
    """Why the process that the facts are about is not the one that answers; None where it is."""
    if seen.alive is False:
        return f"its process is gone{_because(seen)}"
    if seen.boot is None:
        return f"it stopped answering{_because(seen)}"
    if facts.boot is not None and seen.boot != facts.boot:
        return f"it is another process now (boot {facts.boot} became {seen.boot})"
    return None


def contradiction(facts: Facts, seen: Observation, state: State) -> str | None:
    """What an observation denies of the facts, in words; None where it denies nothing.

    Serving and paused say nothing of requests: those that run there come and go.
    """
    other = replaced(facts, seen)
    if other is not None:
        return other
    if seen.admission is not None and facts.admission is not None and seen.admission != facts.admission:
        return f"admission is {seen.admission}, and was left {facts.admission}: somebody else acted"
    if seen.running and facts.running == 0 and state not in (State.SERVING, State.PAUSED):
        return f"{seen.running} requests run, and it was left idle: somebody else acted"
    if seen.released_tags is not None and seen.released_tags != facts.unmapped():
        return f"released are {_tags(seen.released_tags)}, and were left {_tags(facts.unmapped())}: somebody else acted"
    return None


def by_residual(
    facts: Facts, were: Facts, before: Reading, after: Reading, share: int, known: int, least: int
) -> Facts:
    """The facts with the tags whose mapping is in doubt decided by how many bytes moved since `were`.

    On each device those tags hold `share` together, `least` the smallest of them, and `known` bytes moved by calls that
    were acknowledged. Where only a part of the share moved, they stay in doubt. Only right after a barrier: a call that
    may still run could move the bytes later.
    """
    lost = [tag for tag, mapped in facts.mapped.items() if mapped is None]
    moved = [abs(held - after.devices.get(device, 0)) - known for device, held in before.devices.items()]
    if min(moved) >= share - 0.1 * least:
        return facts.learn({Fact.MAPPED: {tag: not were.mapped[tag] for tag in lost}}, Grade.MEASURED)
    if max(map(abs, moved)) <= 0.1 * least:
        return facts.learn({Fact.MAPPED: {tag: were.mapped[tag] for tag in lost}}, Grade.MEASURED)
    return facts


def by_level(facts: Facts, reading: Reading | Unmeasurable, context: Context) -> Facts:
    """The facts with the mapping that was unknown told from how much is resident, where only one answer fits.

    An answer fits where the bytes of its mapped tags are resident, and no more than the threshold beside them. An
    engine small beside what it holds anyway (a CPU engine under a threshold for GPUs) fits several: nothing is told.
    What is known stays: the bytes of a tag that is known to be unmapped may be resident all the same.
    """
    if isinstance(reading, Unmeasurable):
        return facts
    fraction, threshold = context.policy.returned_fraction, context.policy.threshold_bytes
    fitting = []
    for tags in _subsets(list(facts.mapped)):
        share = context.share_bytes(frozenset(tags), reading)
        if share is not None and all(
            fraction * share <= held <= share + threshold for held in reading.devices.values()
        ):
            fitting.append(tags)
    known = {tag: mapped for tag, mapped in facts.mapped.items() if mapped is not None}
    if len(fitting) != 1 or any(mapped is not (tag in fitting[0]) for tag, mapped in known.items()):
        return facts
    return facts.learn({Fact.MAPPED: {tag: tag in fitting[0] for tag in facts.mapped}}, Grade.MEASURED)


def _subsets(tags: list[Tag]) -> list[tuple[Tag, ...]]:
    return [subset for size in range(len(tags) + 1) for subset in combinations(tags, size)]


def _because(seen: Observation) -> str:
    return f" ({seen.detail})" if seen.detail else ""


def _tags(tags: frozenset[Tag]) -> str:
    return ", ".join(sorted(tags)) or "none"
