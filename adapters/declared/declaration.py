"""What a user declares of one engine, and what follows from it: its tags, and what it can do and prove. Pure.

What is not declared is not had. So all that can be wrong with a declaration is said when it is made, by the name of the
verb.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import combinations
from typing import Any, Literal, get_args

from lifecycle.core.calls import PUSH
from lifecycle.core.capabilities import Capabilities, PauseTraits
from lifecycle.core.errors import ConfigurationError
from lifecycle.core.facts import Fact, Grade, PauseMode, Stage, Tag, TagSpec
from lifecycle.core.frozen import EMPTY, FrozenMap

from .verbs import TagEffect, Verb, accepted

Asked = Verb | Callable[..., Any]

#: The fact that each question tells.
FACTS: Mapping[str, Fact] = {
    "boot": Fact.BOOT,
    "admission": Fact.ADMISSION,
    "running": Fact.RUNNING,
    "released": Fact.MAPPED,
    "label": Fact.CONTENTS,
    "checksum": Fact.CHECKSUM,
}

#: What verbs are offered, by their place, beside `deadline_s`. Of the questions only that for a token is offered more.
OFFERED: Mapping[str, tuple[str, ...]] = {
    "pause": ("mode",),
    "release": ("tags", "keep"),
    "restore": ("tags",),
    "load": ("path", "version", "options"),
    "push_begins": ("version",),
    "push_ends": ("version",),
    "answer": ("text", "tokens"),
}

#: The seconds that a call is given. A verb that takes them ends in time by itself: nothing else can end it.
DEADLINE = "deadline_s"

_QUESTIONS = (*FACTS, "idle", "answer", "barrier")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verbs:
    """The verbs of one engine. A function alone stands for `Verb(call=...)`; a question may be asked again.

    Each is offered `deadline_s`: one that takes it ends in time by itself, and raises TimeoutError then.

    - `pause`: by mode, as this library calls them. Offered `mode`.
    - `resume`: admits requests again.
    - `release`: verbs whose effects name the tags that they unmap. One that takes `tags` releases those of its tags
      that it is given; another releases all of them. `keep`: whether weights that are `as_wanted` are kept.
    - `restore`: verbs whose effects name the tags that are `resident` after them; `tags` as of a release.
    - `load`: loads a checkpoint. Offered `path`, `version` and `options`.
    - `push`: the calls that a trainer makes, by the word of `engine.push(WORD, ...)`, whose arguments they get.
      `push_begins` and `push_ends` are called before the first and after the last. Offered `version`.
    - `drop_cache`: empties the prefix cache.
    - `idle`: done where no request can run a step or hold device memory.
    - `admission`: "open" or "closed". `running`: how many requests run. `released`: the tags that are released.
      `boot`: what differs for each start of it. `label`: the version of its weights. `checksum`: of all of them, or by
      model role.
    - `answer`: tokens that it generated, as ids or text. Offered `text` and `tokens`.
    - `barrier`: returns once all that was sent before has taken effect, as any cheap method of a sync actor does.
    """

    pause: Mapping[PauseMode, Asked]
    resume: Asked
    release: Verb | Sequence[Verb]
    restore: Verb | Sequence[Verb]
    load: Asked | None = None
    push: Mapping[str, Asked] = EMPTY
    push_begins: Asked | None = None
    push_ends: Asked | None = None
    drop_cache: Asked | None = None
    idle: Asked | None = None
    admission: Asked | None = None
    running: Asked | None = None
    released: Asked | None = None
    boot: Asked | None = None
    label: Asked | None = None
    checksum: Asked | None = None
    answer: Asked | None = None
    barrier: Asked | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A verb in its place: what its call is named, and what it takes of what it is offered there."""

    name: str
    verb: Verb
    takes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What no verb tells: `sizes` are in bytes per rank, and `stages` are of tags other than `weights`.

    `live_update`: the engine takes weights while requests wait in it by `freeze`, and they go on with what is cached of
    the weights before.
    """

    engine: str = "declared"
    version: str = ""
    device: Literal["cuda", "cpu"] | None = None
    ranks: int = 1
    sizes: Mapping[Tag, int] = EMPTY
    stages: Mapping[Tag, Stage] = EMPTY
    memory_saver: bool | None = None
    live_update: bool = False


@dataclass(frozen=True, slots=True)
class Declaration:
    """Verbs that were checked. Raises ConfigurationError that names the verb, and what to do, where one is wrong."""

    verbs: Verbs
    about: About
    processes_declared: bool
    placed: Mapping[str, Placed] = field(init=False)
    release: tuple[Placed, ...] = field(init=False)
    restore: tuple[Placed, ...] = field(init=False)
    tags: Mapping[Tag, TagEffect] = field(init=False)

    def __post_init__(self) -> None:
        placed: dict[str, Placed] = {}
        for each in fields(Verbs):
            given = getattr(self.verbs, each.name)
            if each.name in ("pause", "push"):
                placed |= _of_table(each.name, given)
            elif each.name in ("release", "restore"):
                several = isinstance(given, Sequence) and not isinstance(given, str)
                placed |= _of_several(each.name, given if several else [given])
            elif given is not None or each.name == "resume":
                placed[each.name] = _place(each.name, given, question=each.name in _QUESTIONS)
        object.__setattr__(self, "placed", FrozenMap(_named(placed)))
        for name in ("release", "restore"):
            object.__setattr__(self, name, tuple(self.placed[key] for key in placed if key.partition(" ")[0] == name))
        object.__setattr__(self, "tags", FrozenMap(_tags(self.release)))
        self._check()

    def has(self, place: str) -> Placed | None:
        """The verb in this place, if there is one."""
        return self.placed.get(place)

    def by_call(self, name: str) -> Placed:
        """The verb of the call of this name."""
        return next(each for each in self.placed.values() if each.name == name)

    def stage(self, tag: Tag) -> Stage:
        """The stage in which this tag is restored."""
        return self.about.stages.get(tag, "weights" if tag == "weights" else "kv")

    def kept(self, tag: Tag) -> bool:
        """Whether a release keeps what this tag holds, whatever it wants."""
        return self.tags[tag] in ("kept", "kept_on_host")

    def covering(self, verbs: Sequence[Placed], tags: frozenset[Tag], *, maps: bool) -> list[Placed] | None:
        """The fewest of these verbs that act on just these tags, each tag once; None where none do."""
        for count in range(1, len(verbs) + 1):
            for chosen in combinations(verbs, count):
                left = tags
                for each in chosen:
                    own = each.verb.maps if maps else each.verb.unmaps
                    mine = own & left if "tags" in each.takes else own
                    if not mine or not mine <= left:
                        break
                    left -= mine
                else:
                    if not left:
                        return list(chosen)
        return None

    @property
    def releasable(self) -> frozenset[frozenset[Tag]]:
        """The sets of tags that can be released together."""
        names = sorted(self.tags)
        sets = [frozenset(each) for count in range(1, len(names) + 1) for each in combinations(names, count)]
        return frozenset(each for each in sets if self.covering(self.release, each, maps=False) is not None)

    def capabilities(self, version: str = "") -> Capabilities:
        """What the engine can do, and prove, by what is declared of it."""
        placed, about = self.placed, self.about
        update: set[Literal["disk", "push", "live"]] = set()
        update |= {"disk"} if "load" in placed else set()
        update |= {"push"} if self.verbs.push else set()
        update |= {"live"} if about.live_update else set()
        reads = frozenset(fact for name, fact in FACTS.items() if name in placed)
        reads |= {Fact.CLOSED} if "admission" in placed else frozenset()
        reads |= {Fact.BOOT} if self.processes_declared else frozenset()
        releasable = self.releasable
        return Capabilities(
            engine=about.engine,
            version=version or about.version,
            tags=tuple(self._spec(tag) for tag in sorted(self.tags)),
            pause={mode: self._traits(mode) for mode in self.verbs.pause},
            releasable="any" if len(releasable) == 2 ** len(self.tags) - 1 else releasable,
            memory_saver=about.memory_saver,
            update=frozenset(update),
            cancellable=False,
            reports_released="released" in placed,
            observable=reads,
            device=about.device,
            ranks=about.ranks,
            evidence=self._evidence(),
            notes=self._notes(),
        )

    def _spec(self, tag: Tag) -> TagSpec:
        effect = self.tags[tag]
        on_release: Literal["kept", "discarded", "as_wanted"] = (
            "kept" if self.kept(tag) else "as_wanted" if effect == "as_wanted" else "discarded"
        )
        size = self.about.sizes.get(tag)
        return TagSpec(tag, self.stage(tag), on_release, size, on_host=effect != "kept")

    def _traits(self, mode: PauseMode) -> PauseTraits:
        """What a mode means, whatever the engine: and one that keeps KV drains only where a release keeps it too."""
        kv = [tag for tag in self.tags if self.stage(tag) == "kv"]
        match mode:
            case "abort" | "wait":
                return PauseTraits(drains=True)
            case "keep":
                return PauseTraits(drains=True, keeps_requests=True)
            case "freeze":
                survives = bool(kv) and all(self.kept(tag) for tag in kv)
                live = self.about.live_update
                return PauseTraits(drains=survives, keeps_requests=True, keeps_kv=True, live_update=live)

    def _evidence(self) -> dict[str, Grade]:
        """The best grade of each claim. A claim of which nobody reads anything is known by what was acknowledged."""
        placed = self.placed
        asked = Grade.REPORTED if {"idle", "running"} & set(placed) else Grade.ACKNOWLEDGED
        match = Grade.REPORTED if {"label", "checksum"} & set(placed) else Grade.ACKNOWLEDGED
        token = Grade.MEASURED if "answer" in placed else Grade.ACKNOWLEDGED
        closed = Grade.REPORTED if "admission" in placed else Grade.ACKNOWLEDGED
        return {"admission_closed": closed, "idle": asked, "weights_match": match, "answers": token}

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if "admission" not in self.placed:
            notes.append("nothing reads whether it admits requests: what nobody here paused is not known at connect")
        if "barrier" not in self.placed:
            notes.append("no barrier: after a call that got no answer it stays failed until its processes have ended")
        if not self.processes_declared:
            notes.append("its processes are not declared: what it holds cannot be measured")
        return tuple(notes)

    def _check(self) -> None:
        """What is wrong with an option comes first: a tag that is misspelt there is of another stage than was meant."""
        if not self.processes_declared and "boot" not in self.placed:
            raise ConfigurationError(
                "nothing tells one process of the engine from the next: declare processes=, or the question boot="
            )
        if not self.verbs.pause:
            raise ConfigurationError("pause: no mode is declared, and no engine is released while it admits requests")
        self._check_options()
        self._check_restores()
        self._check_cache()
        if self.about.live_update and "freeze" not in self.verbs.pause:
            raise ConfigurationError("live_update=True needs pause={'freeze': ...}: requests wait in the engine then")

    def _check_restores(self) -> None:
        mapped = frozenset(tag for each in self.restore for tag in each.verb.maps)
        unknown = sorted(mapped - self.tags.keys())
        if unknown:
            raise ConfigurationError(f"restore: {unknown[0]} is released by no verb; it has {_list(self.tags)}")
        for tags in self.releasable:
            for stage in get_args(Stage):
                part = frozenset(tag for tag in tags if self.stage(tag) == stage)
                if part and self.covering(self.restore, part, maps=True) is None:
                    raise ConfigurationError(
                        f"restore: no verbs bring {_list(part)} back alone, of {_list(tags)} that can be released; "
                        "weights come back before KV, so declare a verb for each, or one that takes tags"
                    )

    def _check_options(self) -> None:
        ranks = self.about.ranks
        if not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 1:
            raise ConfigurationError(f"ranks must be a whole number > 0, got {ranks!r}")
        for name in ("sizes", "stages"):
            unknown = sorted(set(getattr(self.about, name)) - set(self.tags))
            if unknown:
                raise ConfigurationError(f"{name}: {unknown[0]} is released by no verb; it has {_list(self.tags)}")
        for tag, stage in self.about.stages.items():
            if stage not in get_args(Stage):
                raise ConfigurationError(f"stages: {tag} is of {stage!r}; the stages are {', '.join(get_args(Stage))}")
        for tag, size in self.about.sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
                raise ConfigurationError(f"sizes: {tag} must have a whole number of bytes > 0, got {size!r}")
        if not any(self.stage(tag) == "weights" for tag in self.tags):
            raise ConfigurationError(
                f"no tag is of the weights stage: one is to be called 'weights', or stages= names one of "
                f"{_list(self.tags)}"
            )

    def _check_cache(self) -> None:
        """Something empties the prefix cache after its memory came back with nothing in it."""
        lost = [tag for tag in sorted(self.tags) if self.stage(tag) == "kv" and not self.kept(tag)]
        drops = "drop_cache" in self.placed or all(
            each.verb.drops_cache for each in self.restore if each.verb.maps & set(lost)
        )
        if not drops:
            raise ConfigurationError(
                f"restore: {', '.join(lost)} comes back with nothing in it, and nothing empties the prefix cache; "
                "declare drop_cache=, or drops_cache=True of the verb that restores it"
            )


def _place(place: str, given: Asked, *, question: bool = False, several: str = "") -> Placed:
    """The verb in this place. `several`: where others stand there too, what tells it from them."""
    shown = f"{place} {several}".strip()
    if not isinstance(given, Verb):
        if not callable(given):
            raise ConfigurationError(f"{shown}: it must be a function or a Verb, got {given!r}")
        given = Verb(call=given)
    if question:
        given = replace(given, repeatable=True, refusal_is_untouched=True)
    if given.effects and place not in ("release", "restore"):
        raise ConfigurationError(f"{shown}: only verbs that release or restore have effects on tags")
    takes = frozenset[str]() if place == "push" else accepted(given, shown, (*OFFERED.get(place, ()), DEADLINE))
    return Placed(given.own_name, given, takes)


def _of_table(place: str, given: Mapping[Any, Asked]) -> dict[str, Placed]:
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"{place}: its verbs are given as {{WORD: verb}}, got {given!r:.200}")
    known = get_args(PauseMode) if place == "pause" else None
    for word in given:
        if known is not None and word not in known:
            raise ConfigurationError(f"pause: {word!r} is no pause mode; they are {', '.join(known)}")
    return {f"{place} {word}": _place(place, each, several=str(word)) for word, each in given.items()}


def _of_several(place: str, given: Sequence[Verb]) -> dict[str, Placed]:
    found: dict[str, Placed] = {}
    for number, each in enumerate(given):
        if not isinstance(each, Verb) or not each.effects:
            raise ConfigurationError(f"{place}: a Verb with effects={{tag: ...}} is needed, got {each!r:.200}")
        if place == "release" and not each.unmaps:
            raise ConfigurationError(f"release: {each.own_name} unmaps nothing; all its tags are resident after it")
        if place == "restore" and each.unmaps:
            raise ConfigurationError(f"restore: {each.own_name} unmaps {_list(each.unmaps)}; it is to map them")
        found[f"{place} {number}"] = _place(place, each, several=each.own_name)
    if not found:
        raise ConfigurationError(f"{place}: no verb is declared")
    return found


def _named(placed: Mapping[str, Placed]) -> dict[str, Placed]:
    """Each with a name of its own for its call: the function's, unless another has it, or it is none."""
    names = [each.name for each in placed.values()]
    return {
        place: replace(each, name=each.name)
        if each.name not in ("", PUSH.name) and names.count(each.name) == 1
        else replace(each, name=place.replace(" ", "_"))
        for place, each in placed.items()
    }


def _tags(release: Iterable[Placed]) -> dict[Tag, TagEffect]:
    tags: dict[Tag, TagEffect] = {}
    for each in release:
        for tag in each.verb.unmaps:
            effect = each.verb.effects[tag]
            if tags.setdefault(tag, effect) != effect:
                raise ConfigurationError(f"release: {tag} is {tags[tag]} after one verb and {effect} after another")
    return tags


def _list(tags: Iterable[Tag]) -> str:
    return ", ".join(sorted(tags))
