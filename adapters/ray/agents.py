"""One agent on each node of a Ray, in an actor that Ray places there: what only a process of that node can measure."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

from lifecycle.core.errors import ConfigurationError
from lifecycle.core.policy import RESIDUAL_THRESHOLD_GIB
from lifecycle.nodes.remote import TOKEN

from .handles import ray_of

#: Seconds in which the server of an agent begins to listen.
LISTENS_S = 20.0


class AgentActor:
    """Serves its node's memory figures, in a thread, as `lifecycle agent` does."""

    def __init__(self, token: str, threshold_gib: float) -> None:
        import threading

        import ray
        import uvicorn

        from lifecycle.nodes.agent import Agent, application

        self.agent = Agent(threshold_gib=threshold_gib, version=version("engine-lifecycle"))
        self.asked: list[str] = []
        for name, handler in self.agent.questions.items():
            self.agent.questions[name] = self._counted(name, handler)
        self._host = ray.util.get_node_ip_address()
        config = uvicorn.Config(
            application(self.agent, token), host=self._host, port=0, log_level="warning", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        threading.Thread(target=self._server.run, name="lifecycle-agent", daemon=True).start()

    async def address(self) -> str:
        """Where it listens, once it does."""
        async with asyncio.timeout(LISTENS_S):
            while not self._server.started:  # noqa: ASYNC110 - a server in another thread, with no event for it
                await asyncio.sleep(0.02)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"

    async def questions(self) -> list[str]:
        """The questions that it was asked, in order."""
        return self.asked

    def _counted(self, name: str, handler: Any) -> Any:
        async def answer(request: dict[str, Any]) -> dict[str, Any]:
            self.asked.append(name)
            found: dict[str, Any] = await handler(request)
            return found

        return answer


@dataclass(frozen=True, slots=True)
class Agents:
    """The agents that were started, by the id of their node; they end with `aclose`, or with this process."""

    addresses: Mapping[str, str]
    actors: Mapping[str, Any] = field(repr=False)

    async def aclose(self) -> None:
        """The agents have ended."""
        ray = ray_of("agents on nodes")
        for each in self.actors.values():
            ray.kill(each)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def agents_on(
    nodes: Iterable[str] | None = None,
    *,
    threshold_gib: float = RESIDUAL_THRESHOLD_GIB,
    deadline_s: float = 60.0,
    kind: type[AgentActor] = AgentActor,
) -> Agents:
    """An agent runs on each of these nodes, by id, or on all that live: `RayActors(..., agents=agents.addresses)`.

    They take the token in LIFECYCLE_AGENT_TOKEN; where this process has none, it is given one, which no other knows.
    `kind` is what an agent is an actor of. Raises ConfigurationError where one does not listen by the deadline.
    """
    ray = ray_of("agents on nodes")
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = {each["NodeID"] for each in ray.nodes() if each["Alive"]}
    chosen = list(alive if nodes is None else dict.fromkeys(nodes))
    gone = [each for each in chosen if each not in alive]
    if gone:
        raise ConfigurationError(f"no node {gone[0]} lives; there are {', '.join(sorted(alive))}")
    token = os.environ.setdefault(TOKEN, secrets.token_urlsafe(32))
    placed = ray.remote(num_cpus=0, max_restarts=0)(kind)
    actors = {
        each: placed.options(scheduling_strategy=NodeAffinitySchedulingStrategy(each, soft=False)).remote(
            token, threshold_gib
        )
        for each in chosen
    }
    try:
        async with asyncio.timeout(deadline_s):
            listening = await asyncio.gather(*(each.address.remote() for each in actors.values()))
    except BaseException as error:
        for each in actors.values():
            ray.kill(each)
        if isinstance(error, TimeoutError | ray.exceptions.RayError):
            why = " ".join(str(error).split())[:500] or f"it does not listen after {deadline_s:.1f} s"
            raise ConfigurationError(f"an agent on a node could not be started: {why}") from error
        raise
    return Agents(dict(zip(actors, listening, strict=True)), actors)
