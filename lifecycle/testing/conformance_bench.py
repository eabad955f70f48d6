"""What a conformance case works on: a running engine, and an adapter at which things can be made to go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..core.calls import Call, Reply
from ..core.capabilities import Capabilities
from ..core.commands import Command
from ..core.facts import Fact, Facts
from ..core.observation import Observation, Probe
from ..core.policy import Policy
from ..core.ports import EngineAdapter, StateStore
from ..core.readings import Process
from ..core.sources import FromDisk, Kept, Source
from ..core.states import State
from ..core.verdicts import Verdict
from ..engine.engine import Engine
from ..fleet.registry import adapter_for
from ..nodes.address import parse
from ..rules.planner import Goal, next_command

Send = Callable[[], Awaitable[Reply]]
Meddle = Callable[[Call, Send], Awaitable[Reply]]


class Subject(Protocol):
    """A running engine, as the author of its adapter starts it."""

    @property
    def url(self) -> str:
        """Where it is: `scheme://host:port`, with options of the adapter's own."""

    def generate(self, text: str, tokens: int) -> list[int]:
        """The greedy token ids that a client gets; fewer where its request was aborted. Blocks, in a thread."""

    def kill(self) -> None:
        """Every process of the engine was sent SIGKILL, and none is left."""

    def stop(self) -> None:
        """The engine is gone, by whatever is cheapest."""


class Meddled:
    """An adapter that passes everything on, and does to a call what networks, processes and impatient callers do."""

    def __init__(self, inner: EngineAdapter) -> None:
        self.inner = inner
        #: The calls that reached the engine or may have, in order.
        self.sent: list[str] = []
        #: What becomes of the next calls; None: they are passed on.
        self.meddle: Meddle | None = None

    @property
    def url(self) -> str:
        """The inner adapter's."""
        return self.inner.url

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """The call was sent, unless the case has other plans for it."""

        async def passed_on() -> Reply:
            self.sent.append(call.name)
            return await self.inner.send(call, deadline_s=deadline_s)

        return await (passed_on() if self.meddle is None else self.meddle(call, passed_on))

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """Passed on."""
        return await self.inner.connect(deadline_s=deadline_s)

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """Passed on."""
        return self.inner.plan(command, facts)

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """Passed on."""
        return self.inner.push_call(how, args, version)

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """Passed on."""
        return await self.inner.observe(want, deadline_s=deadline_s)

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """Passed on."""
        return await self.inner.prove_idle(facts, deadline_s=deadline_s)

    async def barrier(self, *, deadline_s: float) -> bool:
        """Passed on."""
        return await self.inner.barrier(deadline_s=deadline_s)

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Passed on."""
        return await self.inner.answers(probe, deadline_s=deadline_s)

    async def processes(self) -> tuple[Process, ...] | None:
        """Passed on."""
        return await self.inner.processes()

    async def aclose(self) -> None:
        """Passed on."""
        await self.inner.aclose()


@dataclass
class Bench:
    """One engine on the bench: what it is driven by, and what it answers when it is well."""

    subject: Subject
    home: FromDisk
    keeps: bool
    policy: Policy
    prompts: tuple[str, ...]
    tokens: int
    #: What it answers with the weights it was launched with.
    well: list[list[int]] = field(default_factory=list)
    #: Whether the case left it as it found it; else the next case gets a new one.
    clean: bool = False
    _engines: list[Engine] = field(default_factory=list)

    @property
    def source(self) -> Source:
        """What a release names as where the weights come back from."""
        return Kept() if self.keeps else self.home

    async def attach(self, *, has_router: bool = False, store: StateStore | None = None) -> Engine:
        """A newly connected engine object, driven through a `Meddled` adapter."""
        adapter = Meddled(adapter_for(parse(self.subject.url)))
        engine = Engine(adapter, name="e", policy=self.policy, has_router=has_router, store=store)
        self._engines.append(engine)
        return await engine.connect()

    async def engine_in(self, state: State, **how: Any) -> Engine:
        """A newly attached engine that was led round the ring to this state."""
        engine = await self.attach(**how)
        await self.lead(engine, state)
        return engine

    async def lead(self, engine: Engine, state: State) -> None:
        """The engine is in this state of the ring, reached by its verbs."""
        goals = [Goal(State.RELEASED, weights=self.source), Goal(State.SERVING, weights=self.source)]
        while engine.state is not state and goals:
            command = next_command(engine.view(), goals[0])
            if command is None:
                goals.pop(0)
            else:
                await engine.execute(command)
        assert engine.state is state, f"the ring led to {engine.state}, not to {state}"

    async def lead_home(self, engine: Engine) -> None:
        """The engine serves the weights it was launched with, and answers as it did then."""
        goal = Goal(State.SERVING, weights=engine.desired.source or self.source)
        while (command := next_command(engine.view(), goal)) is not None:
            await engine.execute(command)
        assert engine.state is State.SERVING, f"it does not serve: {engine!r}"
        assert await self.answers() == self.well, "it serves, and does not answer as it did at first"
        self.clean = True

    async def reload(self, engine: Engine) -> None:
        """A serving engine has the weights of `home` again."""
        await engine.pause()
        await engine.drain()
        await engine.update_weights(self.home)
        await engine.resume()

    async def answers(self) -> list[list[int]]:
        """What it answers to the prompts now."""
        return await asyncio.to_thread(self.answers_now)

    def answers_now(self) -> list[list[int]]:
        """`answers`, on this thread."""
        return [self.subject.generate(prompt, self.tokens) for prompt in self.prompts]

    async def aclose(self) -> None:
        """The engine objects of this case let go of their connections."""
        while self._engines:
            await self._engines.pop().aclose()


def meddled(engine: Engine) -> Meddled:
    """The adapter between this engine object and its engine."""
    assert isinstance(engine.adapter, Meddled)
    return engine.adapter
