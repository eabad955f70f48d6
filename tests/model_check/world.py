"""One run: engines as they truly are, the drivers that act on them, and every choice of what happens next.

A driver is a coroutine over the shipped library, with a store, a holder of leases and adapters of its own. Whatever it
asks an engine waits in `World.pending` until it is chosen. What can be chosen at a moment, each at its cost:

- the oldest question is answered, or the oldest call takes its effect and is answered (0: what happens by itself);
- another one that waits comes first (1);
- the oldest ends otherwise, as `fates.FATES` says: no answer, rejected, lost before or after its effect, late (1);
- an effect that is late comes (0: it may at any moment; a barrier brings it);
- time passes until the next timer (0 where nothing else is left by itself, else 1);
- an act happens: an engine's process ends or is replaced, somebody else acts on it, a driver is killed, its caller
  gives up, a second driver begins (1).

A run may cost no more than its budget. Within it every choice is walked, so that all runs with so many deviations from
the plain course are. Between two choices tasks run in the order in which asyncio has made them ready, as they do
wherever asyncio runs them: what differs from run to run is which answer comes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

from clockwork import Apart, ChosenLoop, Deadlock
from fates import NOTHING, Asked, fates
from fingerprint import Fingerprint, Values
from truth import Act, Truth

from lifecycle.core.calls import Call
from lifecycle.core.readings import Reading


class Pruned(BaseException):
    """The run has come to where another one has been."""


class Violation(AssertionError):
    """An invariant does not hold; `World.story` tells how it came to that."""


@dataclass(slots=True)
class Late:
    """A call whose effect has not come yet, and may never."""

    who: str
    engine: str
    boot: str
    call: Call
    act: Act

    def __str__(self) -> str:
        return f"{self.who}'s {self.call} reaches {self.engine} late"


@dataclass(frozen=True, slots=True)
class Option:
    """What may happen next, in words, and what makes it happen. `unread`: a reading of memory cannot be made."""

    words: str
    cost: int
    happen: Callable[[], None]
    unread: bool = False


@dataclass(slots=True)
class Deed:
    """What may happen at any moment at which it may, so often."""

    happen: Callable[[], None]
    may: Callable[[], bool] = lambda: True
    left: int = 1


@dataclass(slots=True)
class DriverState:
    """A driver: alive until it is killed; what is left of it then never runs."""

    name: str
    alive: bool = True
    task: asyncio.Task[Any] | None = None

    @property
    def runs(self) -> bool:
        """Whether it lives and has not ended."""
        return self.alive and self.task is not None and not self.task.done()


#: In whose name a task runs; None: it is the explorer's own.
_DRIVER: ContextVar[str | None] = ContextVar("driver", default=None)

#: The number of the run's choice among the options.
Choose = Callable[["World", Sequence[Option]], int]
Check = Callable[["World"], None]


class World(Apart):
    """The truth of a run, and its scheduler."""

    def __init__(self, choose: Choose, check: Check, *, budget: int) -> None:
        self.loop = ChosenLoop(self._quiet, self._runs)
        self.truth = Truth(self._about)
        self.drivers: dict[str, DriverState] = {}
        self.pending: list[Asked] = []
        self.late: list[Late] = []
        self.left = budget
        #: Set where a driver has ended, by itself or not.
        self.ended = asyncio.Event()
        self.story: list[str] = []
        #: What may happen at any moment.
        self.deeds: dict[str, Deed] = {}
        #: Which calls of drivers did what must not happen, in words.
        self.wrong: list[str] = []
        #: Whether all that went otherwise so far were readings of memory that could not be made; None: nothing did.
        self.unread_alone: bool | None = None
        #: What the hash of a state takes in beside this.
        self.roots: list[Any] = []
        #: What the drivers share (`parts.Host`); the play sets it.
        self.host: Any = None
        self._choose = choose
        self._values = Values()
        self._check = check

    # what adapters do

    async def ask(self, who: str, engine: str, what: str, act: Act, call: Call | None = None) -> Any:
        """What the engine answers, once that was chosen; `NOTHING` where it does not."""
        answer = self.loop.create_future()
        asked = Asked(who, engine, what, answer, act, call)
        self.pending.append(asked)
        try:
            return await answer
        finally:
            if asked in self.pending:
                self.pending.remove(asked)

    # what happens

    def _quiet(self) -> None:
        """Every task waits: something is chosen, and happens."""
        self._check(self)
        options = [each for each in self._options() if each.cost <= self.left]
        if not options:
            raise Deadlock(f"nothing can happen any more; {self.told()}")
        chosen = options[self._choose(self, options)]
        if chosen.cost:
            self.left -= chosen.cost
            self.unread_alone = chosen.unread and self.unread_alone is not False
        self.story.append(chosen.words)
        chosen.happen()

    def _options(self) -> list[Option]:
        found: list[Option] = []
        timer = self.loop.next_timer_s()
        for place, asked in enumerate(self.pending):
            found.append(Option(str(asked), 1 if place else 0, partial(self._answer, asked)))
            if place == 0 and self.truth.engines[asked.engine].alive:
                unread = asked.what == "memory"
                ends = [(f"{asked}: {fate}", partial(fate.ends, self, asked)) for fate in fates(asked)]
                found += [Option(words, 1, end, unread) for words, end in ends]
        if timer is not None:
            found.append(Option("time passes", 1 if found else 0, partial(self._pass, timer)))
        found += [Option(str(late), 0, partial(self._arrive, late)) for late in self.late]
        deeds = [(words, deed) for words, deed in self.deeds.items() if deed.left and deed.may()]
        return [*found, *(Option(words, 1, partial(self._do, deed)) for words, deed in deeds)]

    def _answer(self, asked: Asked) -> None:
        self.end(asked, self.affect(asked.who, asked.engine, asked.act, str(asked), call=asked.call, shown=True))

    def end(self, asked: Asked, answer: Any = NOTHING) -> None:
        """Who asked goes on, with this answer."""
        self.pending.remove(asked)
        if asked.what == "observe":
            self.truth.looked(asked.who, asked.engine)
        if isinstance(answer, Reading):
            self.truth.reads(asked.who, asked.engine)
            self.host.reads(asked.who, asked.engine)
        if not asked.answer.done():
            asked.answer.set_result(answer)

    def affect(
        self,
        who: str,
        engine: str,
        act: Act,
        words: str,
        *,
        call: Call | None = None,
        boot: str | None = None,
        shown: bool = False,
    ) -> Any:
        """What a driver sent reaches the engine; whether that was right is noted. Returns the answer."""
        came = self.truth.comes(who, engine, act, boot=boot, shown=shown)
        if call is not None:
            self.truth.acted(who, engine, self.drivers)
        if came.wrong and not came.excused:
            self.wrong.append(f"{words}: {came.wrong}")
        return came.told

    def comes_late(self, who: str, engine: str, boot: str, call: Call, act: Act) -> None:
        """Nobody waits for this call any more; what it does may still come."""
        model = self.truth.engines[engine]
        if model.boot == boot and model.alive:
            self.late.append(Late(who, engine, boot, call, act))

    def _arrive(self, late: Late) -> None:
        self.late.remove(late)
        self.affect(late.who, late.engine, late.act, str(late), call=late.call, boot=late.boot)

    def arrived(self, engine: str) -> None:
        """A barrier returned: every effect that was late has come."""
        for late in [each for each in self.late if each.engine == engine]:
            self._arrive(late)

    def somebody_else(self, engine: str, act: Act) -> None:
        """Somebody who is no driver of the library acts on the engine."""
        self.truth.somebody_else(engine, act, list(self.drivers))

    def _pass(self, until_s: float) -> None:
        self.loop.now_s = max(self.loop.now_s, until_s)

    def _do(self, deed: Deed) -> None:
        deed.left -= 1
        deed.happen()

    # drivers

    def begin(self, name: str, work: Coroutine[Any, Any, Any]) -> DriverState:
        """A driver begins."""
        driver = self.drivers[name] = DriverState(name)
        self.truth.begins(name)
        context = copy_context()
        context.run(_DRIVER.set, name)
        driver.task = self.loop.create_task(work, name=name, context=context)
        driver.task.add_done_callback(lambda _: self.ended.set())
        return driver

    def kill(self, name: str, what_it_sent: str = "comes later") -> None:
        """The driver's process is killed: nothing of it runs any more. What it had sent may still reach its engine."""
        self.drivers[name].alive = False
        for asked in [each for each in self.pending if each.who == name]:
            self.pending.remove(asked)
            if asked.call is not None:
                self.comes_late(name, asked.engine, self.truth.engines[asked.engine].boot, asked.call, asked.act)
        if what_it_sent == "is lost":
            self.late = [each for each in self.late if each.who != name]
        elif what_it_sent == "is done":
            for late in [each for each in self.late if each.who == name]:
                self._arrive(late)
        self.ended.set()

    async def until_all_ended(self) -> None:
        """No driver runs any more."""
        while any(driver.runs for driver in self.drivers.values()):
            self.ended.clear()
            await self.ended.wait()

    def _runs(self, context: Context) -> bool:
        name = context.get(_DRIVER)
        return name is None or self.drivers[name].alive

    def _about(self, who: str, engine: str) -> Hashable:
        return self.host.about(who, engine)

    # a state

    def fingerprint(self) -> str:
        """Where the run stands."""
        reader = Fingerprint(self.loop.now_s, self.loop.wall(), self._values)
        living = [driver.task for driver in self.drivers.values() if driver.alive]
        waits = [(each.who, each.engine, each.what, str(each.call)) for each in self.pending]
        late = [(each.who, each.engine, each.boot, str(each.call)) for each in self.late]
        deeds = {words: deed.left for words, deed in self.deeds.items()}
        about = (waits, late, deeds, self.unread_alone is True)
        return reader.of(self.truth.standing(), *about, self.loop.waiting_timers(), self.roots, living)

    def told(self) -> str:
        """The story so far, and how things stand."""
        truth = [f"  {engine}" for engine in self.truth.engines.values()]
        claims = [] if self.host is None else [f"  {each}" for each in self.host.claims()]
        return "\n".join([
            "what happened:", *(f"  {each}" for each in self.story), "in truth:", *truth, "what is claimed:", *claims
        ])  # fmt: skip
