"""One driver on each node of a Ray: engines there are driven by it, and what is asked of them at once is one message.

The driver is the actor of that node's agent, with the adapters of the node's engines. In the coordinator each of them
has an `OnNode`: what is pure is decided there, and every other question goes into the batch of its node. Answers come
back as they are ready, since one engine that hangs must not keep those of the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from lifecycle.core.deadline import Deadline
from lifecycle.core.errors import ConfigurationError
from lifecycle.core.policy import RESIDUAL_THRESHOLD_GIB
from lifecycle.core.readings import Process

from .adapter import RayActors
from .agents import AgentActor, Agents, agents_on
from .failures import understood
from .handles import Handles, ray_of

#: Seconds for which questions to the engines of a node are gathered for one message. Each engine is asked the next one
#: as soon as it has answered, which is never quite at once.
GATHER_S = 0.002

#: A question to an engine of a node: its name, a method of the port, and the arguments of that.
Question = tuple[str, str, tuple[Any, ...], dict[str, Any]]

#: What a node answers: the number of the question in its batch, and the answer or the exception.
Answer = tuple[int, Any]


class DriverActor(AgentActor):
    """Drives the engines of its node, beside measuring there."""

    def __init__(self, token: str, threshold_gib: float) -> None:
        super().__init__(token, threshold_gib)
        self._adapters: dict[str, RayActors] = {}
        self.batches = 0

    async def adopt(self, name: str, make: Callable[[], RayActors]) -> None:
        """The engine of this name is driven here, by the adapter that this makes."""
        before = self._adapters.pop(name, None)
        if before is not None:
            await before.aclose()
        self._adapters[name] = make()

    async def ask(self, questions: Sequence[Question]) -> AsyncIterator[list[Answer]]:
        """The answers to these questions, which are asked all at once: those that are ready, as often as some are."""
        self.batches += 1
        asked = {asyncio.ensure_future(self._answer(number, each)) for number, each in enumerate(questions)}
        while asked:
            done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            yield [each.result() for each in done]

    async def counts(self) -> int:
        """How many batches it was sent."""
        return self.batches

    async def _answer(self, number: int, question: Question) -> Answer:
        name, method, args, named = question
        try:
            adapter = self._adapters[name]
            answer = await getattr(adapter, method)(*args, **named)
            return number, (answer, await self._processes(adapter))
        except Exception as error:
            return number, error

    async def _processes(self, adapter: RayActors) -> tuple[Process, ...] | None:
        """The processes of an engine, as others reach them: by the agent of this node."""
        found, address = await adapter.processes(), await self.address()
        return found and tuple(each if each.agent else replace(each, agent=address) for each in found)


class NodeLost(Exception):
    """The driver of a node did not answer: it ended, or its node did."""


class Driver:
    """The driver of one node, as the coordinator asks it. `messages` counts the batches that were sent."""

    def __init__(self, node: str, actor: Any) -> None:
        self.node, self.actor = node, actor
        self.messages = 0
        self._batch: list[tuple[Question, asyncio.Future[Any]]] = []
        self._sent: set[asyncio.Task[None]] = set()

    async def adopt(self, name: str, make: Callable[[], RayActors], deadline_s: float) -> None:
        """The engine of this name is driven there. Raises ConfigurationError where it is not, by the deadline."""
        ray = ray_of(f"the driver of node {self.node}")
        try:
            async with asyncio.timeout(deadline_s):
                await self.actor.adopt.remote(name, make)
        except (TimeoutError, ray.exceptions.RayError) as error:
            why = str(understood(error, ray)) if str(error) else f"no answer in {deadline_s:.1f} s"
            raise ConfigurationError(f"{name}: the driver of node {self.node} did not take it: {why}") from error

    async def ask(self, name: str, method: str, *args: Any, deadline_s: float, **named: Any) -> Any:
        """The answer of this engine's adapter there, and the engine's processes.

        Raises NodeLost where the driver has ended, and TimeoutError where it does not answer in time. What is asked
        within GATHER_S goes in one message.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if not self._batch:
            loop.call_later(GATHER_S, self._flush)
        self._batch.append(((name, method, args, {**named, "deadline_s": deadline_s}), future))
        async with asyncio.timeout(deadline_s):
            return await future

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        self.messages += 1
        sending = asyncio.ensure_future(self._send(batch))
        self._sent.add(sending)
        sending.add_done_callback(self._sent.discard)

    async def _send(self, batch: list[tuple[Question, asyncio.Future[Any]]]) -> None:
        lost = NodeLost(f"the driver of node {self.node} has ended")
        try:
            streaming = self.actor.ask.options(num_returns="streaming", max_task_retries=0)
            async for reference in streaming.remote([question for question, _ in batch]):
                for number, answer in await reference:
                    _settle(batch[number][1], answer)
        except Exception as error:
            lost = NodeLost(f"the driver of node {self.node} did not answer: {' '.join(str(error).split())[:300]}")
        finally:
            for _, future in batch:
                _settle(future, lost)


class Drivers:
    """The drivers of several nodes. They end with `aclose`, or with this process; engines are left as they are."""

    def __init__(self, agents: Agents) -> None:
        self.agents = agents
        self.by_node = {node: Driver(node, actor) for node, actor in agents.actors.items()}

    async def of(self, actor: Any, *, deadline_s: float = 30.0) -> Driver:
        """The driver of the node on which this actor runs. ConfigurationError where there is none."""
        handles, clock = Handles(actor, every_rank=False), Deadline(deadline_s)
        await handles.check_alive(clock)
        node = (await handles.placed(clock))[0].node_id
        if node not in self.by_node:
            known = ", ".join(sorted(self.by_node))
            raise ConfigurationError(f"{handles.url} runs on node {node}, which has no driver; there are {known}")
        return self.by_node[node]

    async def aclose(self) -> None:
        """The drivers have ended."""
        await self.agents.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def drivers_on(
    nodes: Iterable[str] | None = None, *, threshold_gib: float = RESIDUAL_THRESHOLD_GIB, deadline_s: float = 60.0
) -> Drivers:
    """A driver runs on each of these nodes, by id, or on all that live; the rest is as of `agents_on`."""
    return Drivers(await agents_on(nodes, threshold_gib=threshold_gib, deadline_s=deadline_s, kind=DriverActor))


def _settle(future: asyncio.Future[Any], answer: Any) -> None:
    """Who waits for this answer has it, if nobody gave it up and none came before."""
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
        future.exception()
    else:
        future.set_result(answer)
