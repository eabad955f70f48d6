"""What a driver of the explorer is made of: adapters over the true engines, a store, and a holder of leases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from clockwork import Apart
from fates import NOTHING
from truth import Silent, TrueEngine
from world import World

from lifecycle import Engine, Policy
from lifecycle.core.calls import Call, Reply
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command
from lifecycle.core.encoding import decode, encode
from lifecycle.core.errors import NothingListens
from lifecycle.core.facts import Fact, Facts
from lifecycle.core.lease import Driver, Lease, LeasedEngine, LeaseUse
from lifecycle.core.observation import Observation, Probe
from lifecycle.core.observer import Observer
from lifecycle.core.readings import Process, Reading
from lifecycle.core.record import Record
from lifecycle.core.states import State
from lifecycle.core.verdicts import Pending, Refuted, Unmeasurable, Verdict
from lifecycle.store.lease_table import LeaseTable
from lifecycle.testing import ScriptedAdapter
from lifecycle.testing.model import Rejection
from lifecycle.testing.scripted import ScriptedProbe

#: Long enough that time passes only where that is chosen, or where nothing else is left.
POLICY = Policy(settle_s=2.0, poll_s=1.0)
DEADLINE_S = 8.0


def applied(model: TrueEngine, call: Call) -> Reply:
    """The call reaches the engine."""
    if not model.alive:
        return Reply("lost", detail="connection refused", refused=True)
    try:
        model.apply(call.name, call.args)
    except Rejection as refusal:
        return Reply("rejected", status=400, detail=str(refusal))
    return Reply("done") if model.alive else Reply("lost", detail="disconnected without an answer")


class TrueProbe(ScriptedProbe):
    """Measures the memory of one engine of the world, in the name of one driver."""

    def __init__(self, adapter: TrueAdapter) -> None:
        super().__init__(adapter.engine)
        self._adapter = adapter

    async def read(self, processes: Sequence[Process], *, deadline_s: float) -> Reading | Unmeasurable:
        """What these processes hold now."""
        pids = {process.pid for process in processes}
        return await self._adapter.told(
            "memory", lambda model: self._of(model, pids), deadline_s, Unmeasurable(reason="it cannot be read now")
        )

    def _of(self, model: TrueEngine, pids: set[int]) -> Reading | Unmeasurable:
        self._engine = model
        return self._read(pids if model is self._adapter.true else {model.pid})


class TrueAdapter(ScriptedAdapter):
    """Asks an engine of the world in the name of one driver. What comes of that is chosen."""

    def __init__(self, world: World, who: str, engine: str, name: str, capabilities: Capabilities) -> None:
        super().__init__(name, capabilities, journal=Silent())
        self.who = who
        self.world = world
        self.of = engine
        self.true = self.engine = world.truth.engines[engine]
        self.probe = TrueProbe(self)

    async def told(self, what: str, read: Callable[[TrueEngine], Any], deadline_s: float, silence: Any) -> Any:
        """What the engine answers to a question; `silence` where it does not in time."""
        try:
            async with asyncio.timeout(deadline_s):
                answer = await self.world.ask(self.who, self.of, what, read)
        except TimeoutError:
            return silence
        return silence if answer is NOTHING else answer

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """What the engine can do."""
        if not await self.told("connect", lambda model: model.alive, deadline_s, False):
            raise NothingListens(f"{self.url}: nothing listens there")
        return self.capabilities

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Sends one call. One that is not answered in time is lost, and its effect may come later."""
        act = lambda model: applied(model, call)  # noqa: E731
        boot = self.true.boot
        self.world.host.sends(self.who, self.name, call)
        try:
            async with asyncio.timeout(deadline_s):
                reply: Reply = await self.world.ask(self.who, self.of, "call", act, call)
        except TimeoutError:
            self.world.comes_late(self.who, self.of, boot, call, act)
            return Reply("lost", detail=f"no answer in {deadline_s:.2f} s", late=True)
        except asyncio.CancelledError:
            self.world.comes_late(self.who, self.of, boot, call, act)
            raise
        return reply

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """What the engine reports of the wanted facts."""
        silent = Observation(detail="no answer", sampled_at=self.world.loop.now_s)
        what = "observe" if Fact.ADMISSION in want else "boot"
        return await self.told(what, lambda model: self._seen(model, want), deadline_s, silent)

    @contextmanager
    def _looking_at(self, model: TrueEngine) -> Iterator[None]:
        """What is read inside is of this model of the engine."""
        self.engine = model
        try:
            yield
        finally:
            self.engine = self.true

    def _seen(self, model: TrueEngine, want: frozenset[Fact]) -> Observation:
        with self._looking_at(model):
            return self._observation(want, True)

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """Proved where no request runs; drops the prefix cache."""
        return await self.told("prove_idle", self._idle_of, deadline_s, Pending(reason="no answer"))

    def _idle_of(self, model: TrueEngine) -> Verdict:
        with self._looking_at(model):
            return self._idle() if model.alive else Pending(reason="no answer")

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Proved where the engine admits requests and generates a token."""
        return await self.told("answers", self._answer_of, deadline_s, Refuted(reason="no answer"))

    def _answer_of(self, model: TrueEngine) -> Verdict:
        with self._looking_at(model):
            return self._answer() if model.alive else Refuted(reason="no answer")

    async def barrier(self, *, deadline_s: float) -> bool:
        """True once every late effect has come."""
        answered = await self.told("barrier", lambda model: model.alive, deadline_s, None)
        if answered:
            self.world.arrived(self.of)
        return answered is not None

    async def processes(self) -> tuple[Process, ...]:
        """The root process of the ranks, on a host whose agent is the truth (`Host.have_ended`)."""
        return (Process("scripted", self.true.pid, float(self.true.pid), agent="the truth"),)


@lru_cache(maxsize=10_000)
def _written(record: Record) -> Record:
    return decode(Record, encode(record))


class Rows:
    """What is kept of engines (a `StateStore`): what is left of a record once it was encoded and decoded."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.rows: dict[str, Any] = {}

    def of(self, world: World, who: str) -> DriverRows:
        """The same rows, as one driver writes them while it lives."""
        return DriverRows(self, world, who)


class DriverRows:
    """The store as one driver has it: what a dead one writes is written nowhere."""

    def __init__(self, rows: Rows, world: World, who: str) -> None:
        self.path = rows.path
        self._rows = rows.rows
        self._world = world
        self._who = who

    def save(self, engine: str, record: Record) -> None:
        """The record survives the driver."""
        if self._world.drivers[self._who].alive:
            self._rows[engine] = _written(record)

    def load(self, engine: str) -> Record | None:
        """The record that was kept last."""
        return self._rows.get(engine)


class Holder:
    """Leases of the drivers of one host, as one driver asks for them: that of a dead driver is void."""

    def __init__(self, table: LeaseTable, world: World, who: str, tokens: dict[str, str]) -> None:
        self._table = table
        self._world = world
        self._who = who
        self._tokens = tokens

    def take(self, driver: Driver, engine: LeasedEngine, use: LeaseUse) -> Lease:
        """As the table answers, once the leases of the dead are void."""
        self._tokens[driver.token] = self._who
        self._void()
        return self._table.take(driver, engine, use)

    def free(self, driver: Driver, engine: LeasedEngine) -> None:
        """As the table does."""
        if self._world.drivers[self._who].alive:
            self._table.free(driver, engine)

    def seen(self, engine: LeasedEngine) -> Lease | None:
        """As the table answers."""
        self._void()
        return self._table.seen(engine)

    def _void(self) -> None:
        for row in self._table._rows.values():
            who = self._tokens.get(row.lease.token)
            if who is not None and not self._world.drivers[who].alive:
                self._table.free(Driver(row.lease.token, row.lease.who), row.engine)


@dataclass(slots=True)
class Offloading:
    """Of an offload under way: the engines whose memory was read since it began, and those whose release has begun."""

    read: set[str] = field(default_factory=set)
    releasing: set[str] = field(default_factory=set)


class Commands(Observer):
    """Notes since when a command is under way, and whether one that was given up left the engine where it was."""

    def __init__(self, host: Host, who: str) -> None:
        self._host = host
        self._who = who

    def command_started(self, engine: str, command: Command, state: State) -> None:
        """From here on its deadline runs, and nothing was sent."""
        self._host.begun[self._who, engine] = self._host.world.loop.now_s
        self._host.unsent[self._who, engine] = state

    def command_ended(self, engine: str, command: Command, result: Any, duration_s: float) -> None:
        """It has ended. Where its caller gave up before anything was sent, the engine is where it was."""
        key = self._who, engine
        self._host.begun.pop(key, None)
        before, now = self._host.unsent.pop(key, None), self._host.engine(*key).state
        if isinstance(result, asyncio.CancelledError) and before is not None and now is not before:
            self._host.world.wrong.append(
                f"the {command.name} of {self._who} was given up before anything was sent, and {engine} was left {now}"
            )

    def refused(self, engine: str, command: Command, error: Any) -> None:
        """It was refused."""
        self._host.begun.pop((self._who, engine), None)


class Host(Apart):
    """What the drivers of one host share, and the engines that each of them has."""

    def __init__(self, world: World, capabilities: Capabilities, also: Mapping[str, str]) -> None:
        self.world = world
        self.capabilities = capabilities
        #: By the name under which drivers have it: which engine it is. `also` are further names.
        self.names = {name: name for name in world.truth.engines} | dict(also)
        self.rows = Rows("shared")
        self.table = LeaseTable(ttl_s=1e5)
        self.tokens: dict[str, str] = {}
        #: The engines of each driver, as it knows them.
        self.known: dict[str, list[Engine]] = {}
        #: When the command under way began, by driver and engine.
        self.begun: dict[tuple[str, str], float] = {}
        #: The state in which a command began under which nothing was sent yet.
        self.unsent: dict[tuple[str, str], State] = {}
        #: The drivers that are in an offload.
        self.offloading: dict[str, Offloading] = {}
        world.roots += [self.rows.rows, self.table._rows, self.begun, self.unsent, self.offloading]

    def engines(self, who: str, *, own_store: bool = False) -> list[Engine]:
        """New engines of this driver, not connected yet."""
        store = (Rows(f"of {who}") if own_store else self.rows).of(self.world, who)
        holder = Holder(self.table, self.world, who, self.tokens)
        self.known[who] = [
            Engine(
                (adapter := TrueAdapter(self.world, who, engine, name, self.capabilities)),
                name=name,
                policy=POLICY,
                probe=adapter.probe,
                observers=[Commands(self, who)],
                store=store,
                lease=holder,
                address=adapter.url,
            )
            for name, engine in self.names.items()
        ]
        return self.known[who]

    def engine(self, who: str, name: str) -> Engine:
        """The engine of this name, as a driver has it."""
        (found,) = (each for each in self.known[who] if each.name == name)
        return found

    def truly(self, engine: Engine) -> str:
        """Which engine this is."""
        return self.names[engine.name]

    async def have_ended(self, processes: Sequence[Process], *, deadline_s: float) -> bool:
        """Whether none of these is that of an engine that lives."""
        alive = {model.pid for model in self.world.truth.engines.values() if model.alive}
        return alive.isdisjoint(process.pid for process in processes)

    def living(self) -> list[tuple[str, Engine]]:
        """The engines of each driver that lives, as it knows them."""
        return [
            (who, engine)
            for who, engines in self.known.items()
            if who in self.world.drivers and self.world.drivers[who].alive
            for engine in engines
        ]

    def about(self, who: str, engine: str) -> Hashable:
        """The states that a driver says an engine is in, under each name of it, and its commands under way."""
        return tuple((each.state, each.busy) for each in self.known[who] if self.truly(each) == engine)

    def claims(self) -> list[str]:
        """What each driver that lives says of each engine."""
        return [f"{who}: {engine.name} is {engine.state}; {engine.facts}" for who, engine in self.living()]

    def reads(self, who: str, engine: str) -> None:
        """A driver was told what is resident."""
        if who in self.offloading:
            self.offloading[who].read.add(engine)

    def sends(self, who: str, name: str, call: Call) -> None:
        """A driver sends a call: no participant of an offload is released before all are drained."""
        self.unsent.pop((who, name), None)
        engine = self.names[name]
        if call.name == "release":
            self.world.truth.releases(who, engine, call.args["tags"])
        if call.name != "release" or who not in self.offloading or engine in self.offloading[who].releasing:
            return
        self.offloading[who].releasing.add(engine)
        for other, model in self.world.truth.engines.items():
            shown = self.world.truth.shown_to(who, other)
            if model.alive and all(each.alive and not each.idle_and_closed() for each in shown):
                self.world.wrong.append(f"{who} releases {engine}, and {other} is not drained")
