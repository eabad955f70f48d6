"""From URLs to the engines of a fleet, each in its group, and to their first observation."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from ..core.errors import ConfigurationError, by_reason
from ..core.frozen import replace
from ..core.observer import Observers
from ..core.policy import Policy
from ..core.ports import LeaseHolder, ResidualProbe, Router, StateStore, TenantLedger
from ..core.states import State
from ..engine.engine import Engine
from ..nodes.address import parse
from ..nodes.process_table import above
from ..nodes.processes import node_name
from ..rules.identity import own_identity, processes_of, same_process
from .groups import Group
from .registry import adapter_for
from .routing import closing

#: How the options of a URL end that no message repeats, of whatever adapter: api_key, admin_api_key, control_key.
SECRET = "_key"


def member(
    url: str,
    groups: dict[str, Group],
    has_router: bool,
    policy: Policy | None,
    observers: Observers,
    store: StateStore | None,
    probe: ResidualProbe | None,
    lease: LeaseHolder | None,
    tenants: TenantLedger | None = None,
) -> Engine:
    """An engine for this URL; what the URL says of its group is added to `groups`."""
    address = parse(url)
    options = dict(address.options)
    name, group = options.pop("name", None), options.pop("group", "default")
    given = groups.get(group, Group())
    offload = _offload(url, options)
    after = tuple(each for each in options.pop("drain_after", "").split(",") if each)
    typed = {name: value for name, value in options.items() if not name.endswith(SECRET)}
    options.pop("worker", None)  # for the router alone: `routing.router_of`
    groups[group] = replace(given, drain_after=tuple(dict.fromkeys(given.drain_after + after)))
    return Engine(
        adapter_for(replace(address, options=options)),
        name=name,
        group=group,
        offload=given.offload and offload,
        policy=policy,
        probe=probe,
        observers=observers,
        has_router=has_router,
        store=store,
        lease=lease,
        tenants=tenants,
        address=f"{address}?{urlencode(typed, safe=':/,')}" if typed else str(address),
    )


def check_distinct(engines: Sequence[Engine]) -> None:
    """Every engine is a server of its own; ConfigurationError names two that are one, or that share a process.

    One server under two names would be released twice, which kills it. Compared is what was observed at connect.
    """
    by_own: dict[str, list[Engine]] = {}
    by_pid: dict[tuple[str, int], Engine] = {}
    for engine in engines:
        boot = engine.facts.boot
        if boot is None or engine.state is State.GONE:
            continue
        for other in by_own.setdefault(own_identity(boot), []):
            if same_process(other.facts.boot, boot):
                raise _one_engine(other, engine, f"the boot {own_identity(boot)}")
        by_own[own_identity(boot)].append(engine)
        for process in processes_of(boot):
            other = by_pid.setdefault((process.node, process.pid), engine)
            if other is not engine:
                raise _one_engine(other, engine, f"the process {process.pid} on {process.node}")
    _check_trees(by_pid)


def _check_trees(by_pid: Mapping[tuple[str, int], Engine]) -> None:
    """No process of an engine is below that of another, as far as this host can tell."""
    here = node_name()
    parents = above(pid for node, pid in by_pid if node == here)
    for (node, pid), engine in by_pid.items():
        for parent in parents[pid] if node == here else ():
            other = by_pid.get((here, parent), engine)
            if other is not engine:
                raise _one_engine(other, engine, f"a process tree: {pid} is below {parent} on {here}")


def _one_engine(one: Engine, other: Engine, shared: str) -> ConfigurationError:
    return ConfigurationError(
        f"{one.name} ({one.adapter.url}) and {other.name} ({other.adapter.url}) are one engine: they share {shared}. "
        "An engine belongs in a fleet once; leave one out, or correct its pid="
    )


async def connected(engines: Sequence[Engine]) -> None:
    """Every engine was observed. ConfigurationError has a line for each reason why some could not be."""
    results = await asyncio.gather(*(engine.connect() for engine in engines), return_exceptions=True)
    problems: list[tuple[str, str]] = []
    for engine, result in zip(engines, results, strict=True):
        if isinstance(result, ConfigurationError):
            problems.append(_said(engine, str(result)))
        elif isinstance(result, BaseException):
            raise result
    if problems:
        raise ConfigurationError("\n".join(by_reason(problems)))
    check_distinct(engines)


def _said(engine: Engine, message: str) -> tuple[str, str]:
    """The name of the engine that the message begins with, if it does, and the rest of it."""
    name, colon, reason = message.partition(": ")
    return (name, reason) if colon and name in (engine.name, engine.adapter.url) else ("", message)


def _offload(url: str, options: dict[str, str]) -> bool:
    value = options.pop("offload", "true").lower()
    if value not in ("true", "false"):
        raise ConfigurationError(f"{url}: offload must be true or false, got {value!r}")
    return value == "true"


async def disconnected(engines: Sequence[Engine], router: Router | None) -> None:
    """Connections are let go; the engines are left as they are."""
    used = [*(engine.aclose() for engine in engines), *closing(router)]
    for problem in await asyncio.gather(*used, return_exceptions=True):
        if isinstance(problem, BaseException):
            raise problem
