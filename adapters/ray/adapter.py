"""The adapter: verbs are methods of actors, and what is observed is asked of the server in them over HTTP.

An actor runs one call at a time, and a server in it goes on answering. So what is only read never waits behind a call
that hangs. Nothing else is called before that one has ended (`HomeInTurn`): what waits in an actor's queue would run
long after its own deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lifecycle.core.calls import Call
from lifecycle.core.capabilities import Capabilities
from lifecycle.core.deadline import Deadline, growing
from lifecycle.core.errors import ConfigurationError, NothingListens
from lifecycle.core.facts import Fact, Facts
from lifecycle.core.observation import Observation, Probe
from lifecycle.core.requests import RequestCounts
from lifecycle.core.verdicts import Verdict
from lifecycle.rules.identity import own_identity

from ..declared.adapter import DeclaredAdapter
from ..declared.declaration import About
from ..declared.processes import Declared, finder
from ..server_processes import ServerProcesses
from .bound import takes, url_methods, verbs_of
from .handles import Handles
from .located import agent_of, located, server_address
from .methods import Methods
from .server import Server, load_by, merged, server_of

#: Seconds in which the server of an actor that has died ends, and the most between two looks whether it has.
ENDS_S, ENDS_POLL_S = 3.0, 0.2


class RayActors(DeclaredAdapter):
    """Drives one engine by methods of the actors in which it lives.

    - `handles`: the handle of its actor; of an engine of several nodes a list, node 0 first.
    - `methods`: what the actor calls each verb, and what that does: `SLIME`, `MILES`, or a map of one's own.
    - `every_rank`: whether the actors of other nodes are called too. slime's and miles' are not: miles' pause of
      another node posts to a port at which nothing listens. A rank that answers None says nothing.
    - `url`: where the server of the engine listens, where no method of the actor says so.
    - `options`: those of the adapter of that server, as in its URL: `{"api_key_env": "KEY", "sizes": "weights:..."}`.
    - `processes`: what holds its memory, where that is neither what listens there nor its actors with all below them.
    - `agents`: by the id or the IP address of a node, where its agent listens ("HOST:PORT"); see `agents_on`.
    - `about`: what neither a method nor the server tells.

    It is known by the id of the actor of node 0, whatever it is called: an actor that was adopted under two names is
    found out. An actor that Ray has restarted is another engine in the same actor: connect anew.
    """

    def __init__(
        self,
        handles: Any,
        methods: Methods,
        *,
        every_rank: bool = False,
        url: str | None = None,
        options: Mapping[str, str] | None = None,
        processes: Declared | None = None,
        agents: Mapping[str, str] | None = None,
        about: About | None = None,
    ) -> None:
        self.handles = Handles(handles, every_rank=every_rank)
        self.methods = methods
        if url is not None and methods.server is None:
            raise ConfigurationError(f"{self.handles.url}: url={url!r} says where, and Methods(server=) does not what")
        loads = {"load": load_by(lambda: self._server)} if methods.server == "sglang" and methods.load is None else {}
        asks_url = methods.server is not None and url is None
        verbs = verbs_of(methods, self.handles, asks_url=asks_url, **loads)
        super().__init__(self.handles.url, verbs, processes=processes or (lambda: None), about=about)
        self._given_url = url
        self._options = dict(options or {})
        self._agents = dict(agents or {})
        if processes is None:
            self._processes = ServerProcesses(self._find)
        else:
            self._processes = ServerProcesses(finder(processes, self.url, self._home))
        self._server: Server | None = None

    async def connect(self, *, deadline_s: float) -> Capabilities:
        """What the methods and the server can do. Its actors live, and its server answers.

        Raises NothingListens where an actor is dead, and ConfigurationError where the engine cannot be driven.
        """
        clock = Deadline(deadline_s)
        await self.handles.check_alive(clock)
        if self.methods.server is None:
            return await super().connect(deadline_s=clock.left_s)
        await self._close_server()
        address = await self._address(clock)
        agent = agent_of((await self.handles.placed(clock))[0], self._agents)
        options = self._options if agent is None else {"agent": agent, **self._options}
        self._server = server_of(self.methods.server, address, self.methods.tags, options)
        try:
            seen = await self._server.connect(deadline_s=clock.left_s)
        except NothingListens as silent:
            raise NothingListens(f"{self.url}: {silent}") from None
        except ConfigurationError as wrong:
            raise ConfigurationError(f"{self.url}: {wrong}") from None
        first = await self._server.observe(frozenset({Fact.BOOT}), deadline_s=clock.left_s)
        await self._processes.find(own_identity(first.boot or ""), deadline_s=clock.left_s)
        self._capabilities = merged(self.declared, seen, self.url)
        return self._capabilities

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        """As the server in the actor is observed, whatever the actor is busy with.

        It is gone where nothing of it answers and all processes of all its nodes have ended.
        """
        if self._server is None:
            return await super().observe(want, deadline_s=deadline_s)
        clock = Deadline(deadline_s)
        seen = await self._server.observe(want, deadline_s=clock.total_s * 0.8)
        if not seen.alive:
            ended = await self._ended(clock)
            return replace(seen, alive=None if ended is None else False, detail=ended or seen.detail)
        if seen.boot is None:
            return seen
        return replace(seen, boot=await self._processes.boot(own_identity(seen.boot), clock))

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        """What the method `idle` says, where there is one; else what the server says."""
        if self._server is None or self.declared.has("idle") is not None:
            return await super().prove_idle(facts, deadline_s=deadline_s)
        return await self._server.prove_idle(facts, deadline_s=deadline_s)

    async def barrier(self, *, deadline_s: float) -> bool:
        """True once every call of this driver has ended, and, after one that got no answer, once the server says so.

        A call that hangs in an actor may still reach the server, so that nothing but its end, or the actor's, decides.
        """
        if self._server is None or not self._unanswered:
            return await super().barrier(deadline_s=deadline_s)
        clock = Deadline(deadline_s)
        if not await self._home.all_ended(clock.left_s / 2):
            return False
        self._unanswered = not await self._server.barrier(deadline_s=clock.left_s)
        return not self._unanswered

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        """Whether the server generates a token; without one, what the method `answer` says."""
        if self._server is None or self.declared.has("answer") is not None:
            return await super().answers(probe, deadline_s=deadline_s)
        return await self._server.answers(probe, deadline_s=deadline_s)

    def push_call(self, how: str, args: Mapping[str, Any], version: str) -> Call:
        """One call of a push. A method that takes `weight_version` is given it, unless the trainer gives one."""
        call = super().push_call(how, args, version)
        if "weight_version" in args or not takes(self.handles.signatures()[self._push_method(how)], "weight_version"):
            return call
        return replace(call, args={**call.args, "weight_version": version})

    async def request_counts(self, *, deadline_s: float) -> RequestCounts | None:
        """What the server counts of requests; None without a server, or where it does not count."""
        return None if self._server is None else await self._server.request_counts(deadline_s=deadline_s)

    async def aclose(self) -> None:
        """The connections to the server are closed. Actors and server are left as they are."""
        await self._close_server()

    # parts

    def _push_method(self, how: str) -> str:
        asked = self.methods.push[how]
        return asked if isinstance(asked, str) else asked.name

    async def _address(self, clock: Deadline) -> str:
        """Where the server listens, as the actor says or the user has given it."""
        if self._given_url is not None:
            return server_address(self._given_url, self.url)
        names = url_methods(self.methods, self.handles.signatures())
        said = []
        for name in names:
            outcome = await self._home.run(name, partial(self.handles.call, name, {}), clock.left_s)
            if outcome.what != "returned":
                why = outcome.error or "its actor did not answer in time; a call of somebody else may hang in it"
                raise ConfigurationError(f"{self.url}: it does not say where its server listens: {name}(): {why}")
            said.append(outcome.value)
        return server_address(said[0] if len(said) == 1 else said, self.url)

    async def _find(self, deadline_s: float) -> Any:
        """The server's processes, and those of the actors of other nodes; without a server those of all actors."""
        clock = Deadline(deadline_s)
        serving = None if self._server is None else await self._server.processes()
        return await located(self.handles, serving, self._agents, clock)

    async def _ended(self, clock: Deadline) -> str | None:
        """That all processes of it have ended, in words. Those of a dead actor are given a moment: they end later."""
        polls, waits = growing(ENDS_POLL_S), Deadline(ENDS_S)
        while (ended := await self._processes.end(clock)) is None:
            if not min(clock.left_s, waits.left_s) or not await self.handles.is_dead(clock):
                return None
            await asyncio.sleep(next(polls))
        return ended

    async def _close_server(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await server.aclose()
