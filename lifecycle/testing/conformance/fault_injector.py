"""An adapter that passes every call on, except those for which a case injects a fault."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ...core.calls import Call, Reply
from ...core.capabilities import Capabilities
from ...core.commands import Command
from ...core.facts import Fact, Facts
from ...core.observation import Observation, Probe
from ...core.ports import EngineAdapter
from ...core.readings import Process
from ...core.verdicts import Verdict
from ...engine.engine import Engine

#: Passes the call on to the engine.
Send = Callable[[], Awaitable[Reply]]
#: Replaces the sending of a call; may send it, before or after the fault.
Fault = Callable[[Call, Send], Awaitable[Reply]]


class FaultInjector:
    """Wraps an adapter; `fault` replaces the sending of each call, everything else is passed on unchanged."""

    def __init__(self, inner: EngineAdapter) -> None:
        self.inner = inner
        #: The names of the calls that were passed on, in order.
        self.sent: list[str] = []
        #: The fault of the next calls; None passes them on.
        self.fault: Fault | None = None

    @property
    def url(self) -> str:
        """The URL of the inner adapter."""
        return self.inner.url

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        """Sends the call, or lets `fault` decide what becomes of it."""

        async def pass_on() -> Reply:
            self.sent.append(call.name)
            return await self.inner.send(call, deadline_s=deadline_s)

        return await (pass_on() if self.fault is None else self.fault(call, pass_on))

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """Passed on."""
        return await self.inner.connect(deadline_s=deadline_s)

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        """Passed on."""
        return self.inner.plan(command, facts)

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """Passed on."""
        return self.inner.push_call(how, args, version)

    def __getattr__(self, name: str) -> Any:
        """What the inner adapter has beside the port."""
        return getattr(self.inner, name)

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


def fault_injector(engine: Engine) -> FaultInjector:
    """Returns the adapter between this engine object and the engine."""
    assert isinstance(engine.adapter, FaultInjector)
    return engine.adapter


def fault_at(index: int, fault: Fault) -> Fault:
    """Injects the fault into the call of this index, counted from now; the others are passed on."""
    count = -1

    async def inject(call: Call, send: Send) -> Reply:
        nonlocal count
        count += 1
        return await (fault(call, send) if count == index else send())

    return inject
