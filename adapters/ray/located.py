"""Where an engine in actors is: the address that its actor says, and the processes that hold its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import psutil

from lifecycle.core.deadline import Deadline
from lifecycle.core.errors import ConfigurationError
from lifecycle.core.readings import Process
from lifecycle.core.verdicts import Unmeasurable
from lifecycle.nodes.processes import by_pid, is_local
from lifecycle.nodes.remote import RemoteNode

from .handles import Handles, Placed


def server_address(said: Any, who: str) -> str:
    """HOST:PORT of what an actor says of its server: a URL, a mapping that has one, or a host and a port.

    Raises ConfigurationError where it says anything else.
    """
    url: Any = said.get("url") if isinstance(said, Mapping) else said
    if isinstance(said, Sequence) and not isinstance(said, str) and len(said) == 2:
        host = str(said[0])
        url = (
            f"http://[{host}]:{said[1]}" if ":" in host.strip("[]") and "[" not in host else f"http://{host}:{said[1]}"
        )
    try:
        parts = urlsplit(url if "//" in str(url) else f"http://{url}")
        if parts.scheme == "http" and parts.hostname and parts.port:
            return f"[{parts.hostname}]:{parts.port}" if ":" in parts.hostname else f"{parts.hostname}:{parts.port}"
    except (TypeError, ValueError):
        pass
    raise ConfigurationError(f"{who}: its server listens at no address that can be read, which is {said!r:.200}")


async def located(
    handles: Handles, serving: Sequence[Process] | None, agents: Mapping[str, str], clock: Deadline
) -> tuple[Process, ...] | None:
    """The processes that the engine's trees hang from: what listens as its server, else its actor; and other ranks'.

    Ray says where an actor runs, so that none of them is asked. Of a node that is not this host its agent is.
    """
    placed = await handles.placed(clock)
    found = list(serving or await _of_actor(placed[0], agents, clock, handles.url))
    for each in placed[1:]:
        found += await _of_actor(each, agents, clock, handles.url)
    return tuple(found) or None


def agent_of(actor: Placed, agents: Mapping[str, str]) -> str | None:
    """Where the agent of an actor's node listens; None where none is known. Two nodes of a test have one address."""
    return agents.get(actor.node_id) or agents.get(actor.node_ip)


async def _of_actor(actor: Placed, agents: Mapping[str, str], clock: Deadline, who: str) -> tuple[Process, ...]:
    """The process of an actor; none where it is dead, or is not running yet."""
    if actor.dead or not actor.pid:
        return ()
    agent = agent_of(actor, agents)
    if agent is not None:
        answer = await RemoteNode(agent).find_pid(pid=actor.pid, deadline_s=clock.look_s())
        if isinstance(answer, Unmeasurable):
            raise ConfigurationError(f"{who}: {answer.reason}")
        return answer
    if not is_local(actor.node_ip):
        return (Process(actor.node_ip, actor.pid, 0.0),)  # of which a reading says that its node needs an agent
    try:
        return (by_pid(actor.pid),)
    except psutil.NoSuchProcess:
        return ()
