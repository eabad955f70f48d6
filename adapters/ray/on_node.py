"""The adapter of an engine that the driver of its node drives: the port, with each question asked there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lifecycle.core.calls import Call, Reply
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.commands import Command
from lifecycle.core.deadline import Deadline
from lifecycle.core.errors import ConfigurationError
from lifecycle.core.facts import Fact, Facts
from lifecycle.core.observation import Observation, Probe
from lifecycle.core.readings import Process
from lifecycle.core.verdicts import Pending, Verdict

from .adapter import RayActors
from .driver import Driver, NodeLost

#: The share of a deadline that the driver is given: its answer is on its way for the rest.
SHARE = 0.95

#: A node that is lost, or a driver that does not answer: nothing is known of what was asked.
_SILENCE = (NodeLost, TimeoutError)


class OnNode:
    """Drives one engine through the driver of its node: `Engine(OnNode(driver, partial(RayActors, actor, SLIME)))`.

    `make` makes its adapter, here for what is pure, and there for the rest; it must be one that can be pickled. Where
    the driver does not answer, nothing is known: the engine is never taken to be gone for that.
    """

    def __init__(self, driver: Driver, make: Callable[[], RayActors]) -> None:
        self._driver, self._make = driver, make
        self._local = make()
        self._processes: tuple[Process, ...] | None = None

    @property
    def url(self) -> str:
        """As without a driver: by the id of its actor."""
        return self._local.url

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """What the engine can do, as its adapter there finds out. Raises ConfigurationError where the node is lost."""
        clock = Deadline(deadline_s)
        await self._driver.adopt(self.url, self._make, clock.left_s)
        try:
            capabilities: Capabilities = await self._ask("connect", clock.left_s)
        except _SILENCE as silent:
            why = str(silent) or f"no answer in {deadline_s:.1f} s"
            raise ConfigurationError(
                f"{self.url}: {why}; start agents and drivers on the nodes that there are"
            ) from None
        self._local.is_known(capabilities)
        return capabilities

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """The methods of a command, in order: decided here."""
        return self._local.plan(command, facts)

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """One call of a push, by a word that was declared."""
        return self._local.push_call(how, args, version)

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Calls one method, once, there. Of a node that is lost it is not known whether it was called."""
        try:
            reply: Reply = await self._ask("send", deadline_s, call)
            return reply
        except _SILENCE as silent:
            return Reply("lost", detail=str(silent), late=isinstance(silent, TimeoutError))

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """As its adapter there observes it; nothing of one whose node is lost."""
        try:
            seen: Observation = await self._ask("observe", deadline_s, want)
            return seen
        except _SILENCE as silent:
            return Observation(detail=str(silent) or f"its node did not answer in {deadline_s:.1f} s")

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """As its adapter there proves it."""
        return await self._verdict("prove_idle", facts, deadline_s)

    async def barrier(self, *, deadline_s: float) -> bool:
        """As its adapter there says; False of one whose node is lost."""
        try:
            return bool(await self._ask("barrier", deadline_s))
        except _SILENCE:
            return False

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """As its adapter there says."""
        return await self._verdict("answers", probe, deadline_s)

    async def processes(self) -> tuple[Process, ...] | None:
        """Its processes as they were with the last answer; each is measured by the agent of its node."""
        return self._processes

    async def aclose(self) -> None:
        """The adapter there is left to its driver."""
        await self._local.aclose()

    async def _ask(self, method: str, deadline_s: float, *args: Any) -> Any:
        answer, self._processes = await self._driver.ask(self.url, method, *args, deadline_s=SHARE * deadline_s)
        return answer

    async def _verdict(self, method: str, about: Any, deadline_s: float) -> Verdict:
        try:
            verdict: Verdict = await self._ask(method, deadline_s, about)
            return verdict
        except _SILENCE as silent:
            return Pending(reason=str(silent) or f"its node did not answer in {deadline_s:.1f} s")
