"""The handles of an engine's actors: what can be asked of Ray about them, and how their methods are called.

What Ray does unasked is kept from happening. A call without `ray.init()` would start a cluster of its own. A method of
an actor with `max_task_retries` would run again, on the process that Ray has restarted: a second release ends a server.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lifecycle.core.deadline import Deadline, growing
from lifecycle.core.errors import ConfigurationError, NothingListens
from lifecycle.nodes.in_thread import in_thread

from ..declared.verbs import NotCalled
from .failures import MOST, Refused, Unanswered, understood

#: The seconds in which Ray's control store answers.
TABLE_S = 10.0

#: The most seconds between two questions whether an actor has been started.
START_POLL_S = 0.5

#: The state of an actor that will never run a method again (ActorTableData.ActorState). Source: ray 2.60.0.
_DEAD = 4

_REMOVED = "placement group was removed"


def ray_of(name: str) -> Any:
    """The package `ray`, which has been initialised; ConfigurationError says what to do where it is not."""
    try:
        ray = import_module("ray")
        initialised = ray.is_initialized()
    except (ModuleNotFoundError, AttributeError):  # a folder called ray is found as an empty package
        raise ConfigurationError(f"{name}: it needs the package 'ray'; pip install 'engine-lifecycle[ray]'") from None
    if not initialised:
        raise ConfigurationError(
            f"{name}: Ray is not initialised in this process; call ray.init() first (address='auto' joins a cluster)"
        )
    return ray


def actor_named(name: str, namespace: str | None = None) -> Any:
    """The handle of the actor of this name; ConfigurationError lists the names that there are."""
    ray = ray_of(f"actor {name}")
    try:
        return ray.get_actor(name, namespace)
    except ValueError:
        found = ray.util.list_named_actors(all_namespaces=True)
        known = ", ".join(sorted(f"{each['namespace']}/{each['name']}" for each in found)[:20]) or "none"
        where = namespace or ray.get_runtime_context().namespace
        raise ConfigurationError(
            f"no actor {name!r} lives in the namespace {where!r}; named actors are: {known}"
        ) from None


@dataclass(frozen=True, slots=True)
class Placed:
    """Where an actor runs, as Ray knows it. `state` is Ray's word; `dead` why it will not run again, else empty."""

    pid: int
    node_ip: str
    node_id: str
    state: str
    dead: str = ""


class Handles:
    """The actors of one engine, one a node, node 0 first."""

    def __init__(self, handles: Any, *, every_rank: bool) -> None:
        given = list(handles) if isinstance(handles, list | tuple) else [handles]
        ray = ray_of("an engine in actors")
        for each in given:
            if not isinstance(each, ray.actor.ActorHandle):
                raise ConfigurationError(_no_handle(each, ray))
        if not given:
            raise ConfigurationError("an engine needs a handle of at least one actor; an empty slot is no engine")
        self.ids = tuple(each._ray_actor_id.hex() for each in given)
        twice = next((each for each in self.ids if self.ids.count(each) > 1), None)
        if twice is not None:
            raise ConfigurationError(f"the actor {twice} stands twice among the ranks of an engine")
        self.all = tuple(given)
        self._called = self.all if every_rank else self.all[:1]
        self._alone = not isinstance(handles, list | tuple) or not every_rank
        self._ray = ray

    @property
    def url(self) -> str:
        """What the engine is known by: the id of the actor of node 0, which is another one for each actor."""
        return f"ray:{self.ids[0]}"

    def signatures(self) -> Mapping[str, Sequence[inspect.Parameter]]:
        """The methods of the actor of node 0 that can be called, and what each takes."""
        own = self.all[0]._ray_method_signatures
        return {name: takes for name, takes in own.items() if not name.startswith("__")}

    async def call(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """What the method answered: a list, one answer a rank, where every rank is called.

        All references are awaited together. Raises NotCalled where it was not called, Unanswered where a rank may
        have run it, and Refused where every rank that answered refused; of some that did, the answers have it.
        """
        self._check_callable()
        references: list[Any] = []
        for each in self._called:
            try:
                once = getattr(each, method).options(max_task_retries=0, retry_exceptions=False)
                references.append(once.remote(**arguments))
            except Exception as error:
                if not references:
                    raise NotCalled(_unsent(method, error)) from None
                references.append(_failed(error))
        answers = await _ended(references)
        answers = [understood(each, self._ray) if isinstance(each, BaseException) else each for each in answers]
        silent = [f"rank {rank}: {each}" for rank, each in enumerate(answers) if isinstance(each, Unanswered)]
        if silent:
            raise Unanswered("; ".join(silent) if len(answers) > 1 else str(answers[0]))
        if all(isinstance(each, Refused) for each in answers):
            raise answers[0]
        return answers[0] if self._alone else answers

    async def placed(self, clock: Deadline) -> tuple[Placed, ...]:
        """Where each of the actors runs. Ray's control store is asked, and no actor."""
        self._check_initialised()
        return await in_thread(
            lambda: tuple(_placed(self._ray, each) for each in self.ids), deadline_s=min(clock.look_s(), TABLE_S)
        )

    async def check_alive(self, clock: Deadline) -> None:
        """Returns once Ray has started all of the actors. Raises NothingListens where one is dead, and says why it is.

        Raises ConfigurationError where one is not started by the deadline.
        """
        polls = growing(START_POLL_S)
        while True:
            found = await self._known(clock)
            for rank, each in enumerate(found):
                if each.dead:
                    raise NothingListens(f"{self.url}: the actor of rank {rank} is dead; {_again(each.dead)}")
            waiting = [(rank, each) for rank, each in enumerate(found) if each.state != "ALIVE"]
            if not waiting:
                return
            if not clock.left_s:
                rank, each = waiting[0]
                raise ConfigurationError(
                    f"{self.url}: Ray has not started the actor of rank {rank} in {clock.total_s:.1f} s (it is "
                    f"{each.state}); see whether its resources, its placement group and its runtime_env can be had"
                )
            await asyncio.sleep(min(next(polls), clock.left_s))

    async def _known(self, clock: Deadline) -> tuple[Placed, ...]:
        try:
            return await self.placed(clock)
        except TimeoutError:
            raise ConfigurationError(f"{self.url}: Ray's control store does not say where its actors run") from None

    async def is_dead(self, clock: Deadline) -> bool:
        """Whether Ray knows that the actor of node 0 is dead; False where it does not answer."""
        with suppress(ConfigurationError, TimeoutError):
            return bool((await self.placed(clock))[0].dead)
        return False

    def _check_callable(self) -> None:
        """Raises NotCalled where no call would reach its actor."""
        try:
            self._check_initialised()
        except ConfigurationError as error:
            raise NotCalled(str(error)) from None
        for rank, each in enumerate(self._called):
            if each._get_local_state() == _DEAD:
                raise NotCalled(f"the actor of rank {rank} was dead before; create it again, and give the new handle")

    def _check_initialised(self) -> None:
        ray_of(self.url)


def _placed(ray: Any, actor: str) -> Placed:
    found = import_module("ray._private.state").actors(actor)
    if not found:
        return Placed(0, "", "", "not known to it")  # an actor is registered a moment after its handle is there
    node = found["Address"]["IPAddress"], found["Address"]["NodeID"]
    if found["State"] != "DEAD":
        return Placed(found["Pid"], *node, found["State"])
    cause = found["DeathCause"]
    said = getattr(getattr(cause, "actor_died_error_context", None), "error_message", "") or str(cause)
    return Placed(found["Pid"], *node, "DEAD", " ".join(said.split())[:MOST] or "Ray does not say why")


def _again(why: str) -> str:
    """What to do about an actor that is dead for this reason."""
    first = "its placement group is gone: create that again, and then " if _REMOVED in why else ""
    return f"{first}create the actor again, and give the new handle ({why})"


def _no_handle(given: object, ray: Any) -> str:
    if isinstance(given, str):
        return f"{given!r} is the name of an actor, and no handle; give actor_named({given!r})"
    if isinstance(given, ray.actor.ActorClass):
        return f"{type(given).__name__} is a class of actors, and no handle; give what its .remote() returns"
    return f"a handle of an actor is needed, got {given!r:.200}"


def _unsent(method: str, error: Exception) -> str:
    """Why a call could not be submitted, in words."""
    said = " ".join(str(error).split())
    if isinstance(error, TypeError) and said.startswith("Could not serialize the argument"):
        return f"{said.partition(':')[0][:MOST]}: every argument of {method}() must be one that can be pickled"
    return f"{method}(): {type(error).__name__}: {said}"[:MOST]


async def _ended(references: Sequence[Any]) -> list[Any]:
    """What each of these references became: its value, or the exception that it ended with."""
    if len(references) > 1:
        return await asyncio.gather(*references, return_exceptions=True)
    try:  # awaited without a task of its own
        return [await references[0]]
    except Exception as error:
        return [error]


async def _failed(error: Exception) -> Any:
    raise error
