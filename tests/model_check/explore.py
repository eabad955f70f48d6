"""Walks every run within a budget: depth first, each run from the beginning, none on from where another has been."""

from __future__ import annotations

import gc
import itertools
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock
from uuid import UUID

from clockwork import Deadlock
from dead_ends import DeadEnd, DeadEnds
from world import Option, Pruned, Violation, World

from lifecycle.engine import owner, processes
from lifecycle.testing import model

Choose = Callable[[World, Sequence[Option]], int]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`play` is a run: it makes its engines and drivers in the world, and returns the dead ends that it came to.

    `check` raises Violation in a state that must not be.
    """

    name: str
    play: Callable[[World], Coroutine[Any, Any, Sequence[DeadEnd]]]
    check: Callable[[World], None]
    budget: int


@dataclass(frozen=True, slots=True)
class Broken:
    """An invariant that a run broke: what, the story of that run, and the choices that repeat it."""

    what: str
    story: str
    path: tuple[int, ...]

    @property
    def kind(self) -> str:
        """What it is, whichever process and whichever figures."""
        return re.sub(r"-boot-\d+|\d+(\.\d+)?", "", self.what.split(";")[0])

    def __str__(self) -> str:
        return f"{self.what}\n{self.story}"


@dataclass(slots=True)
class Found:
    """What a walk came to. Of each kind of violation the shortest run is kept, and how many broke it."""

    name: str
    states: int = 0
    transitions: int = 0
    runs: int = 0
    depth: int = 0
    complete: bool = True
    seconds: float = 0.0
    broken: dict[str, Broken] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    dead_ends: DeadEnds = field(default_factory=DeadEnds)

    def takes(self, broken: Broken) -> None:
        """A run broke an invariant."""
        before = self.broken.get(broken.kind)
        if before is None or len(broken.path) < len(before.path):
            self.broken[broken.kind] = broken
        self.counts[broken.kind] = self.counts.get(broken.kind, 0) + 1

    @property
    def violation(self) -> str:
        """The first that was found, with its story; empty where none was."""
        return next((str(each) for each in self.broken.values()), "")

    @property
    def path(self) -> tuple[int, ...]:
        """The choices that lead there."""
        return next((each.path for each in self.broken.values()), ())

    def __str__(self) -> str:
        how = "" if self.complete else ", not to the end"
        figures = f"{self.states} states, {self.transitions} transitions, depth {self.depth}, {self.runs} runs"
        ends = f"violations {sum(self.counts.values())}, dead ends {len(self.dead_ends_named())}"
        return f"{self.name}: {figures}, {self.seconds:.1f} s{how}; {ends}"

    def dead_ends_named(self) -> dict[str, list[DeadEnd]]:
        """The dead ends that nobody can avoid, by name: each with the truths that give the same evidence."""
        return dict(self.dead_ends.undecided())


@dataclass(slots=True)
class _Run:
    """One run: the choices that lead to where it begins to be its own, and those that it leaves to others."""

    prefix: tuple[int, ...]
    visited: dict[str, int]
    taken: list[int] = field(default_factory=list)
    others: list[tuple[int, ...]] = field(default_factory=list)

    def choose(self, world: World, options: Sequence[Option]) -> int:
        """What the prefix says; after it, what happens by itself, unless another run was here with as much left."""
        at = len(self.taken)
        if at < len(self.prefix):
            choice = self.prefix[at]
        else:
            here = world.fingerprint()
            if self.visited.get(here, -1) >= world.left:
                raise Pruned
            self.visited[here] = world.left
            so_far = tuple(self.taken)
            self.others += [(*so_far, other) for other in range(len(options) - 1, 0, -1)]
            choice = 0
        self.taken.append(choice)
        return choice


def walk(
    scenario: Scenario, *, limit_s: float = 600.0, most_runs: int | None = None, to_the_first: bool = False
) -> Found:
    """Every run of the scenario, or as many as there is time for; `to_the_first`: it ends at the first violation."""
    found, began = Found(scenario.name), time.perf_counter()
    visited: dict[str, int] = {}
    waiting: list[tuple[int, ...]] = [()]
    gc.disable()  # what is left of a run is collected between two, and runs in none
    try:
        while waiting and not (to_the_first and found.broken):
            if time.perf_counter() - began > limit_s or (most_runs is not None and found.runs >= most_runs):
                found.complete = False
                break
            run = _Run(waiting.pop(), visited)
            outcome = repeated(scenario, run.choose)
            if outcome.broken is not None:
                found.takes(Broken(*outcome.broken, tuple(run.taken)))
            found.dead_ends.take(outcome.dead_ends)
            waiting += run.others
            found.runs += 1
            found.transitions += len(run.taken) - len(run.prefix) + 1
            found.depth = max(found.depth, len(run.taken))
            if found.runs % 50 == 0:
                gc.collect()
    finally:
        gc.enable()
        gc.collect()
    if found.complete:
        for end in found.dead_ends.decided():
            found.takes(Broken(f"a dead end, though what is seen fits one truth: {end.name}", end.story, end.path))
    found.states, found.seconds = len(visited), time.perf_counter() - began
    return found


def follow(path: Sequence[int]) -> Choose:
    """Chooses what a run chose before, as far as there is so much to choose from; then what happens by itself."""
    left = list(reversed(path))
    return lambda world, options: min(left.pop(), len(options) - 1) if left else 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to: the invariant that it broke with its story, and its dead ends."""

    broken: tuple[str, str] | None = None
    dead_ends: Sequence[DeadEnd] = ()

    def __str__(self) -> str:
        return "" if self.broken is None else "\n".join(self.broken)


def repeated(scenario: Scenario, choose: Choose) -> Outcome:
    """One run."""
    numbers, world = itertools.count(1), World(choose, scenario.check, budget=scenario.budget)
    with (
        mock.patch.object(owner, "uuid4", side_effect=lambda: UUID(int=next(numbers))),
        mock.patch.object(model, "_PIDS", itertools.count(1000, 100)),
        mock.patch.object(processes, "ended", lambda these, **how: world.host.have_ended(these, **how)),
    ):
        try:
            return Outcome(dead_ends=world.loop.run(scenario.play(world)) or ())
        except Pruned:
            return Outcome()
        except (Violation, Deadlock) as broken:
            return Outcome((str(broken), world.told()))
        finally:
            world.loop.abandon()
