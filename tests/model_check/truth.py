"""What is true of the engines, and what of it each driver could not see yet.

A driver is excused where it was given the answers that it would have been given in a world in which nobody else had
acted, and where its call, or its claim, would be right in that world. That world is a second model of the engine, a
*twin*: it begins as the engine was before somebody else's act, every call of a driver of the library takes its effect
on it too, and every answer that the driver is given is compared with what the twin answers. The first answer that
differs shows the act, and ends the excuse. Nothing else begins or ends one: no time that passes, and no error of the
library. Some answers say less than they seem to:

- a reading of memory that could not be made, and a verdict that is pending or that no answer would have given too, say
  nothing of the engine, and show nothing;
- a reading that could be made is compared by its bytes: they are of whichever process answers;
- bytes that are there after a release was acknowledged, and before they were read once, may be there because somebody
  brought them back, or because that release freed nothing. No evidence tells these apart (SGLang does not report which
  tags are released, and every call that would tell kills one of the two). So there is a second twin then, in which the
  release freed nothing; `lifecycle` believes that one.

What a driver sends is held against it from the answer on that showed the act. What it says is, once it has done what it
was about: a command gathers several answers before it decides (`Finding`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lifecycle.core.capabilities import Capabilities
from lifecycle.core.facts import PauseMode
from lifecycle.core.readings import Reading
from lifecycle.core.units import GIB
from lifecycle.core.verdicts import Pending, Refuted, Unmeasurable
from lifecycle.testing.journal import Journal
from lifecycle.testing.model import ScriptedEngine

Act = Callable[[ScriptedEngine], Any]


class Silent(Journal):
    """A journal of which nobody reads."""

    def append(self, entry: Any) -> None:
        return


class TrueEngine(ScriptedEngine):
    """An engine with one client, which always has one request there: once one was answered or aborted, the next.

    The request runs, is parked by the engine, or waits at its closed gate (`held`); it is lost with the process alone.
    """

    held = 0

    def __init__(self, name: str, capabilities: Capabilities, sizes: Mapping[str, int] | None = None) -> None:
        super().__init__(name, capabilities, journal=Silent(), sizes=sizes)

    def _launch(self) -> None:
        super()._launch()
        self.running, self.held = 1, 0

    def _pause(self, mode: PauseMode) -> None:
        before = self.running + self.parked
        super()._pause(mode)
        self.held += before - self.running - self.parked

    def _resume(self) -> None:
        self.running, self.held = self.running + self.held, 0
        super()._resume()

    def __str__(self) -> str:
        if not self.alive:
            return f"{self.name}: ended ({self.deaths[-1]})"
        waits = ", ".join(f"{many} {what}" for what, many in self.requests().items() if many)
        held = ", ".join(f"{tag} {'-' if tag in self.unmapped else self.resident[tag] // GIB}" for tag in self.sizes)
        contents = ", ".join(f"{tag} {contents}" for tag, contents in self.contents.items())
        return f"{self.name}: {self.boot} {self.admission}; request {waits}; GiB {held}; {contents}"

    def requests(self) -> dict[str, int]:
        """Where the request of its client is."""
        return {"running": self.running, "parked": self.parked, "held": self.held}

    def standing(self) -> tuple[Any, ...]:
        """Everything of it that a later step can depend on; equal where two of them have the same future."""
        if not self.alive:
            return (self.boot, False)
        changes = (self.boot, self.alive, self.admission, self.paused_by, *self.requests().values(), self.label)
        memory = (
            frozenset(self.unmapped),
            tuple(self.resident.items()),
            tuple(self.contents.items()),
            self.cache_fresh,
        )
        return (*changes, *memory, self.frees, self.leaked_bytes, self.pushed, self.pushing)


def twin(model: TrueEngine) -> TrueEngine:
    """An engine that is as this one, and goes its own way."""
    found = copy.copy(model)
    for name, value in vars(model).items():
        if isinstance(value, dict | list | set):
            setattr(found, name, copy.copy(value))
    return found


@dataclass(frozen=True, slots=True)
class Came:
    """What came of an act: what it answered, what of it is wrong, and whether its driver could not know better."""

    told: Any
    wrong: str = ""
    excused: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A driver was shown an act, and is still about what it was about then: the same command, in the same state.

    `before` is the engine as it was shown before; None where another driver of the library acted.
    """

    before: TrueEngine | None
    about: Hashable


Key = tuple[str, str]


class Truth:
    """The engines, and the twins of those that somebody else has changed: by driver and engine.

    `about` says what a driver is about on an engine: its command, and the state that it says the engine is in.
    """

    def __init__(self, about: Callable[[str, str], Hashable]) -> None:
        self.engines: dict[str, TrueEngine] = {}
        self.twins: dict[Key, list[TrueEngine]] = {}
        #: Tags that a driver has released, and of which it has not read the memory since.
        self.unread: dict[Key, set[str]] = {}
        #: What another driver did to an engine since this one looked at it.
        self.missed: set[Key] = set()
        self.finding: dict[Key, Finding] = {}
        self._about = about

    def begins(self, who: str) -> None:
        """A new driver reads what others kept: what these could not see, it cannot see either."""
        for (_, engine), unseen in list(self.twins.items()):
            self.twins[who, engine] = [twin(each) for each in unseen]

    def somebody_else(self, engine: str, act: Act, drivers: list[str]) -> None:
        """Somebody who is no driver of the library acts on the engine; no driver has seen that yet."""
        model = self.engines[engine]
        for who in drivers:
            if (who, engine) not in self.twins:
                self.twins[who, engine] = self._worlds(who, engine)
        act(model)
        model.violations.clear()  # what it serves now is that one's doing
        self._drop_equal(engine)

    def _worlds(self, who: str, engine: str) -> list[TrueEngine]:
        model = self.engines[engine]
        found, unread = [twin(model)], self.unread.get((who, engine), set()) & model.unmapped
        if unread and model.alive:
            kept = twin(model)
            kept.resident |= {tag: kept.sizes[tag] for tag in unread}
            found.append(kept)
        return found

    def comes(self, who: str, engine: str, act: Act, *, boot: str | None = None, shown: bool = False) -> Came:
        """Something that this driver caused reaches the engine. `boot`: nothing comes of it in another process.

        `shown`: the driver is given the answer.
        """
        model = self.engines[engine]
        lived = model.alive
        told = act(model) if boot in (None, model.boot) else None
        wrong = ", ".join(([model.deaths[-1]] if lived and not model.alive else []) + model.violations)
        model.violations.clear()
        excused = False
        for key, worlds in list(self.twins.items()):
            if key[1] != engine:
                continue
            answers = [(each, act(each) if boot in (None, each.boot) else None) for each in worlds]
            right = [(each, answer) for each, answer in answers if each.alive and not each.violations]
            if key == (who, engine):
                excused = bool(right)
                before = worlds[0]
                right = [(each, answer) for each, answer in right if not shown or not _tells(told, answer)]
                if shown and not right:
                    self._found(key, before)
            self._keep(key, [each for each, _ in right])
        self._drop_equal(engine)
        return Came(told, wrong, excused)

    def _keep(self, key: Key, worlds: list[TrueEngine]) -> None:
        self.twins[key] = worlds
        if not worlds:
            del self.twins[key]

    def _drop_equal(self, engine: str) -> None:
        standing = self.engines[engine].standing()
        for key in [key for key in self.twins if key[1] == engine]:
            if any(each.standing() == standing for each in self.twins[key]):
                del self.twins[key]

    def releases(self, who: str, engine: str, tags: Iterable[str]) -> None:
        """The driver releases these."""
        self.unread.setdefault((who, engine), set()).update(tags)

    def reads(self, who: str, engine: str) -> None:
        """The driver was told what is resident."""
        self.unread.pop((who, engine), None)

    def acted(self, who: str, engine: str, drivers: Iterable[str]) -> None:
        """A driver of the library changed the engine: the others have not looked since."""
        self.missed |= {(other, engine) for other in drivers if other != who}

    def looked(self, who: str, engine: str) -> None:
        """The driver was shown the engine."""
        if (who, engine) in self.missed:
            self.missed.discard((who, engine))
            self._found((who, engine), None)

    def _found(self, key: Key, before: TrueEngine | None) -> None:
        self.finding.setdefault(key, Finding(before, self._about(*key)))

    def finding_out(self, who: str, engine: str) -> Finding | None:
        """What the driver was shown, while it is still about what it was about then."""
        found = self.finding.get((who, engine))
        if found is not None and found.about != self._about(who, engine):
            del self.finding[who, engine]
            return None
        return found

    def shown_to(self, who: str, engine: str) -> list[TrueEngine]:
        """What the engine may be, as far as this driver was shown it."""
        return self.twins.get((who, engine), [self.engines[engine]])

    def claimable(self, who: str, engine: str) -> list[TrueEngine]:
        """What the engine may be, as far as this driver is held to it: as it was before while it is finding out."""
        finding = self.finding_out(who, engine)
        before = None if finding is None else finding.before
        return [*self.shown_to(who, engine), *([] if before is None else [before])]

    def standing(self) -> list[Any]:
        """Everything that a later step can depend on."""
        twins = {f"{who} {engine}": [each.standing() for each in all_] for (who, engine), all_ in self.twins.items()}
        finding = {
            f"{who} {engine}": (each.before and each.before.standing(), each.about)
            for (who, engine), each in self.finding.items()
        }
        unread = {f"{who} {engine}": sorted(tags) for (who, engine), tags in self.unread.items()}
        return [[each.standing() for each in self.engines.values()], twins, finding, sorted(self.missed), unread]


def _tells(told: Any, unseen: Any) -> bool:
    """Whether an answer tells that the engine is not as the driver was shown it."""
    if isinstance(told, Unmeasurable | Pending | Refuted):
        return False
    if isinstance(told, Reading) and isinstance(unseen, Reading):
        return told.resident_bytes != unseen.resident_bytes
    return bool(told != unseen)
