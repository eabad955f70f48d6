"""The running engine of a conformance case, and how the case drives it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...core.policy import Policy
from ...core.ports import EngineAdapter, StateStore
from ...core.sources import FromDisk, Kept, Source
from ...core.states import State
from ...engine.engine import Engine
from ...fleet.registry import adapter_for
from ...nodes.address import parse
from ...rules.planner import Goal, next_command
from .fault_injector import FaultInjector


class Subject(Protocol):
    """A running engine, as the author of its adapter starts it."""

    @property
    def url(self) -> str:
        """The engine's address: `scheme://host:port`, with options of the adapter."""

    def generate(self, text: str, tokens: int) -> list[int]:
        """Returns the greedy token ids that a client gets, fewer where the request was aborted. Blocks its thread."""

    def kill(self) -> None:
        """Sends SIGKILL to every process of the engine, and returns when none is left."""

    def stop(self) -> None:
        """Ends the engine in the cheapest way."""


def adapter_by_url(subject: Subject) -> EngineAdapter:
    """The adapter that is registered for the scheme of the engine's URL."""
    return adapter_for(parse(subject.url))


@dataclass
class Bench:
    """One running engine, the settings of the suite, and the answers that it gives with its launch weights."""

    subject: Subject
    home: FromDisk
    keeps: bool
    policy: Policy
    prompts: tuple[str, ...]
    tokens: int
    #: Makes an adapter for the engine.
    adapter: Callable[[Subject], EngineAdapter] = adapter_by_url
    #: The token ids of each prompt's answer with the weights that the engine was launched with.
    launch_answers: list[list[int]] = field(default_factory=list)
    #: Whether the case left the engine as it found it, so that the next case can have it.
    reusable: bool = False
    _engines: list[Engine] = field(default_factory=list)

    @property
    def source(self) -> Source:
        """The source of the weights that a release names."""
        return Kept() if self.keeps else self.home

    async def attach(self, *, has_router: bool = False, store: StateStore | None = None) -> Engine:
        """Returns a newly connected engine object, driven through a `FaultInjector`.

        It takes no lease: a case may drive its engine by several objects.
        """
        adapter = FaultInjector(self.adapter(self.subject))
        engine = Engine(adapter, name="e", policy=self.policy, has_router=has_router, store=store, lease=None)
        self._engines.append(engine)
        return await engine.connect()

    async def engine_in(self, state: State, **how: Any) -> Engine:
        """Returns a newly attached engine, brought round the ring into this state."""
        engine = await self.attach(**how)
        await self.bring_to(engine, state)
        return engine

    async def bring_to(self, engine: Engine, state: State) -> None:
        """Executes the planner's commands until the engine is in this state of the ring."""
        mode = self.policy.pause_mode
        goals = [Goal(each, weights=self.source, mode=mode) for each in (State.RELEASED, State.SERVING)]
        while engine.state is not state and goals:
            command = next_command(engine.view(), goals[0])
            if command is None:
                goals.pop(0)
            else:
                await engine.execute(command)
        assert engine.state is state, f"the ring led to {engine.state}, not to {state}"

    async def onload(self, engine: Engine) -> None:
        """Brings the engine back to serving its launch weights, compares its answers, and makes it reusable."""
        goal = Goal(State.SERVING, weights=engine.desired.source or self.source)
        while (command := next_command(engine.view(), goal)) is not None:
            await engine.execute(command)
        assert engine.state is State.SERVING, f"it does not serve: {engine!r}"
        assert await self.answers() == self.launch_answers, "its answers differ from those at launch"
        self.reusable = True

    async def reload(self, engine: Engine) -> None:
        """Loads the weights of `home` into a serving engine."""
        await engine.pause()
        await engine.drain()
        await engine.update_weights(self.home)
        await engine.resume()

    async def answers(self) -> list[list[int]]:
        """Returns the token ids of the present answer to each prompt."""
        return await asyncio.to_thread(self.answers_blocking)

    def answers_blocking(self) -> list[list[int]]:
        """`answers`, in this thread."""
        return [self.subject.generate(prompt, self.tokens) for prompt in self.prompts]

    async def aclose(self) -> None:
        """Closes the connections of the engine objects of this case."""
        while self._engines:
            await self._engines.pop().aclose()
