"""Engines that join and leave a fleet while it lives, between its moves and windows.

A newcomer is observed, shown to be none of the fleet's engines under another name, and brought to where the fleet is,
with the version that its group serves, while the router sends it nothing. Only then is it a member, and only then does
the router send to it. Where that fails it is no member, and the router stays closed for it.

A slot whose engine has died is a member that is gone. It can be retired and replaced like any other.

A fleet that has an agreement of ranks keeps its members: whether all ranks change theirs at the same place between two
moves, none of them knows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import get_args
from urllib.parse import quote

from ..core.commands import Pause
from ..core.deadline import Deadline
from ..core.errors import ConfigurationError, EngineBusy, NothingListens
from ..core.frozen import replace
from ..core.policy import Policy, positive
from ..core.ports import Router
from ..core.sources import FromDisk, Pushed, Source, checked, version_of
from ..core.states import UNCLAIMED, State
from ..engine.engine import Engine
from ..nodes.address import parse
from ..nodes.same_address import address_of
from ..rules.desired import source_after_release, source_to_serve
from ..rules.planner import Goal
from .changes import TurnNotGiven
from .claims import claimed
from .connect import check_distinct
from .groups import Group, check_members
from .move import Move
from .participants import Participants
from .recovery import RecoverTo
from .routing import Routing, known_to, may_open

#: Makes an engine from a URL; what the URL says of its group is added to the groups.
Makes = Callable[[str, dict[str, Group]], Engine]
#: Seconds between two attempts to reach a newcomer that does not listen yet.
AGAIN_S = 0.2
_LOG = logging.getLogger("lifecycle")


class Membership(Participants):
    """The engines of a fleet, and the verbs by which they join and leave it."""

    #: None where the fleet was made of engines.
    _makes: Makes | None = None

    async def adopt(
        self, engine: str | Engine, *, to: RecoverTo | None = None, weights: Source | None = None, deadline_s: float
    ) -> Engine:
        """The engine, or that of this URL, is a member: where the fleet is (or `to`), with the version of its group.

        Waits for moves and windows that are under way, and for an engine that does not listen yet. `weights` names what
        it is to serve. One that cannot serve before the trainer has pushed is released. Where it cannot be brought
        there, the error says why, it is no member, and its router stays closed. ConfigurationError names the member
        that it is already, under whatever name.
        """
        self.ranks.refuse("adopt")
        deadline = _checked(deadline_s, to, weights)
        newcomer, group = self._newcomer(engine)
        async with self._changing("adopt", newcomer, deadline), _let_go_again(newcomer, made=isinstance(engine, str)):
            groups = self._with_group(newcomer.group, group)
            await met(newcomer, self.engines, groups, deadline)
            async with _closed_unless_member(newcomer, self.router):
                await self._bring(newcomer, self.engines, to, weights, deadline)
                self._have([*self.engines, newcomer], groups)
        return newcomer

    async def retire(self, name: str | Engine, *, deadline_s: float) -> None:
        """The engine is no member any more: its router sends it nothing, and it is left where it is.

        Waits for moves and windows that are under way. To have its memory back first: `ensure("released", ...)`.
        KeyError where another change took it away meanwhile, ConfigurationError where one put another in its place.
        """
        self.ranks.refuse("retire")
        deadline, engine = Deadline(positive("deadline_s", deadline_s)), self._member(name)
        async with self._changing("retire", engine, deadline):
            self._member(engine)
            if len(self.engines) == 1:
                raise ConfigurationError(f"{engine.name} is the last engine of the fleet, which needs one; close it")
            await let_go(engine, self.router, deadline)
            self._have([each for each in self.engines if each is not engine], self.groups)
            await engine.aclose()

    async def replace(
        self,
        name: str | Engine,
        engine: str | Engine,
        *,
        to: RecoverTo | None = None,
        weights: Source | None = None,
        deadline_s: float,
    ) -> Engine:
        """The engine, or that of this URL, stands in the place of a member, as after `adopt`; that one is retired.

        It has the name and the group of that place unless its URL says otherwise. Where it cannot be brought where the
        fleet is, the other one stays, and its router opens again if it was open. As `retire` where another change came
        first.
        """
        self.ranks.refuse("replace")
        deadline, old = _checked(deadline_s, to, weights), self._member(name)
        newcomer, group = self._newcomer(_in_place_of(old, engine) if isinstance(engine, str) else engine)
        async with self._changing("replace", old, deadline), _let_go_again(newcomer, made=isinstance(engine, str)):
            self._member(old)
            groups, opens_again = self._with_group(newcomer.group, group), may_open(old)
            await met(newcomer, self.engines, groups, deadline, old)
            await let_go(old, self.router, deadline)
            try:
                async with _closed_unless_member(newcomer, self.router):
                    await self._bring(newcomer, self.engines, to, weights, deadline, old)
                    self._have([newcomer if each is old else each for each in self.engines], groups)
            except BaseException:
                known_to(self.router, [old])
                if opens_again and old.state is State.SERVING:
                    await Routing(self.router).open([old])
                raise
            await old.aclose()
        return newcomer

    def _member(self, name: str | Engine) -> Engine:
        """The member of this name, which is this engine where one is given; what another change did is an error."""
        engine = self[name if isinstance(name, str) else name.name]
        if isinstance(name, Engine) and engine is not name:
            raise ConfigurationError(
                f"{name.name} ({name.adapter.url}) is no member any more: {engine.adapter.url} stands in its place. "
                f"Nothing was changed; replace({name.name!r}, ...) by name if that one is meant"
            )
        return engine

    def _with_group(self, name: str, group: Group) -> dict[str, Group]:
        """The groups as they are now, with what a newcomer says of its own."""
        known = self.groups.get(name, group)
        after = tuple(dict.fromkeys(known.drain_after + group.drain_after))
        return self.groups | {name: replace(known, drain_after=after)}

    def _newcomer(self, engine: str | Engine) -> tuple[Engine, Group]:
        groups = dict(self.groups)
        if isinstance(engine, str):
            if self._makes is None:
                raise ConfigurationError("this fleet was made of engines, so it adopts engines: Engine(adapter, ...)")
            made = self._makes(engine, groups)
            return made, groups.get(made.group, Group())
        return engine, groups.get(engine.group, Group())

    async def _bring(
        self,
        newcomer: Engine,
        members: Sequence[Engine],
        to: RecoverTo | None,
        weights: Source | None,
        deadline: Deadline,
        old: Engine | None = None,
    ) -> None:
        """The newcomer, which takes the place of the `old` one if there is one, is where the fleet is."""
        known_to(self.router, [newcomer])
        if newcomer.offloads:
            where = to or state_of([each for each in members if each is not old])
            source = weights or source_of(newcomer, members, old)
            await brought(newcomer, where, source, self.router, self.policy, deadline)

    @asynccontextmanager
    async def _changing(self, what: str, engine: Engine, deadline: Deadline) -> AsyncIterator[None]:
        """No move and no window is under way, and none begins; EngineBusy where one is at the deadline."""
        try:
            async with self._turns.of_change(f"{what} of {engine.name}", deadline):
                yield
        except TurnNotGiven as busy:
            raise EngineBusy(f"{busy} of this fleet", **engine.about(what)) from None


def _checked(deadline_s: float, to: RecoverTo | None, weights: Source | None) -> Deadline:
    checked(weights)
    if to is not None and to not in get_args(RecoverTo):
        raise ConfigurationError(f"to={to!r}: one of {', '.join(get_args(RecoverTo))}")
    return Deadline(positive("deadline_s", deadline_s))


def _in_place_of(old: Engine, url: str) -> str:
    """The URL of an engine that has the name and the group of this one unless the URL says otherwise."""
    given = parse(url).options
    named = {} if old.name == old.adapter.url else {"name": old.name}
    options = {key: value for key, value in (named | {"group": old.group}).items() if key not in given}
    more = "&".join(f"{key}={quote(value)}" for key, value in options.items())
    return f"{url}{'&' if '?' in url else '?'}{more}" if more else url


@asynccontextmanager
async def _let_go_again(newcomer: Engine, *, made: bool) -> AsyncIterator[None]:
    """Where it does not become a member, an engine that was made from a URL has no connections left."""
    try:
        yield
    except BaseException:
        if made:
            await newcomer.aclose()
        raise


@asynccontextmanager
async def _closed_unless_member(newcomer: Engine, router: Router | None) -> AsyncIterator[None]:
    """Where it does not become a member, the router was closed for a newcomer for which it may have been opened."""
    try:
        yield
    except BaseException:
        if newcomer.offloads and newcomer.facts.routed is not False:
            await Routing(router).kept_closed(newcomer)
        raise


async def met(
    newcomer: Engine,
    members: Sequence[Engine],
    groups: Mapping[str, Group],
    deadline: Deadline,
    old: Engine | None = None,
) -> None:
    """The newcomer was observed, and is none of the members; ConfigurationError names the one that it is.

    Before it is asked anything, the fleet that there will be is checked. One that does not listen yet is waited for.
    Its address may be that of the `old` one, whose place it takes.
    """
    others = [each for each in members if each is not old]
    _check_newcomer(newcomer, others)
    check_members([*others, newcomer], groups)
    while not newcomer.connected:
        try:
            await newcomer.connect(deadline_s=deadline.look_s())
        except NothingListens:
            if not deadline.left_s:
                raise
        if newcomer.connected or not deadline.left_s:
            break
        await asyncio.sleep(min(AGAIN_S, deadline.left_s))
    check_distinct([*members, newcomer])


def _check_newcomer(newcomer: Engine, members: Sequence[Engine]) -> None:
    own = address_of(newcomer.adapter.url)
    for member in members:
        same = "" if own is None or own != address_of(member.adapter.url) else f"they share the address {own}"
        same = same or ("it is driven by the same adapter" if member.adapter is newcomer.adapter else "")
        if same:
            raise ConfigurationError(
                f"{newcomer.name} ({newcomer.adapter.url}) is {member.name} of this fleet already: {same}. An engine "
                f"belongs in a fleet once; replace({member.name!r}, ...) puts another process into its place"
            )
        if member.name == newcomer.name:
            raise ConfigurationError(
                f"the fleet has an engine {member.name} already ({member.adapter.url}); give the newcomer another name "
                f"(name= in its URL), or replace({member.name!r}, ...)"
            )


def state_of(members: Sequence[Engine]) -> RecoverTo:
    """Where the fleet is: serving, or released; ConfigurationError where it is neither, so that `to=` must say it."""
    states = {each.state for each in _living(members) if each.offloads}
    if states == {State.RELEASED}:
        return "released"
    if states <= {State.SERVING}:
        return "serving"
    found = ", ".join(f"{each.name} {each.state}" for each in members)
    raise ConfigurationError(f"the fleet is neither serving nor released ({found}): say to='serving' or to='released'")


def source_of(newcomer: Engine, members: Sequence[Engine], old: Engine | None = None) -> Source | None:
    """What brings the newcomer the version of its group; None where it has that, or no version is known.

    Of a group in which nobody lives it is what the `old` one was to serve, whose place it takes. ConfigurationError
    where the group has two, or nothing that is known brings the one that it has.
    """
    peers = [each for each in _living(members) if each.group == newcomer.group and each is not old]
    peers = peers or [each for each in [old] if each is not None and (each.connected or each.state is State.GONE)]
    versions = {each.desired.version or each.weights_version for each in peers} - {None}
    if len(versions) > 1:
        found = " and ".join(sorted(map(str, versions)))
        raise ConfigurationError(f"group {newcomer.group} serves {found}: name the newcomer's weights (weights=)")
    known = [source_to_serve(each.record, each.capabilities) for each in peers]
    for version in versions:
        for source in known:
            if isinstance(source, FromDisk | Pushed) and version_of(source) == version:
                return source
        if newcomer.weights_version != version:
            has = newcomer.weights_version or "no version that is known"
            raise ConfigurationError(
                f"group {newcomer.group} serves {version}, {newcomer.name} has {has}, and nothing that is known brings "
                f"the former: name it, weights=FromDisk(PATH, {version!r})"
            )
    return None


async def brought(
    newcomer: Engine, to: RecoverTo, source: Source | None, router: Router | None, policy: Policy, deadline: Deadline
) -> None:
    """The newcomer serves, behind a router that sends to it, or is released; with these weights, or to come back so.

    One that cannot serve before the trainer has pushed is released.
    """
    routing = Routing(router)
    await routing.close([newcomer])
    if newcomer.state in UNCLAIMED:
        await newcomer.recover(deadline_s=deadline.look_s())
    if newcomer.state in UNCLAIMED:
        raise newcomer.advised(newcomer.not_allowed("adopt"))
    needed = source is not None and not newcomer.view(source).weights_are_valid
    if needed and newcomer.state is State.SERVING:
        late = newcomer.too_late(Pause.name, deadline)
        if late is not None:
            raise newcomer.advised(late)
        await newcomer.pause(policy.pause_mode, deadline_s=deadline.look_s())
    async with claimed([newcomer], "adopt", deadline.look_s()):
        move = Move([newcomer], router=router, deadline_s=deadline, on_failure="hold")
        if to == "serving" and not (needed and isinstance(source, Pushed)):
            await move.onload(weights=source)
            return
        back = source_after_release(newcomer.record, source)
        await move.offload({newcomer.name: Goal(State.RELEASED, None, back, policy.pause_mode)})


async def let_go(engine: Engine, router: Router | None, deadline: Deadline) -> None:
    """The engine is out of any command, and its router sends it nothing. One that is gone is let go in any case."""
    await engine.until_free(deadline, "retire")
    try:
        await Routing(router).close([engine])
    except Exception as error:
        if engine.state is not State.GONE:
            raise
        _LOG.warning("%s is gone, and its router could not be closed for it: %s", engine.name, error)


def _living(members: Sequence[Engine]) -> list[Engine]:
    return [each for each in members if each.state not in UNCLAIMED and each.quarantined is None]
