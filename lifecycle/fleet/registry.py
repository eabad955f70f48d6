"""From an address to an adapter or a router: the scheme names the kind of engine, or of router.

What is installed is looked up once a process: that reads the metadata of every installed package, 5 ms. An adapter that
is installed while a process runs is found by the next process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigurationError
from ..core.ports import EngineAdapter, Router
from ..nodes.address import Address, parse

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ADAPTERS = "lifecycle.adapters"

ROUTERS = "lifecycle.routers"

ENGINES = "lifecycle.engines"

#: What to do where Python runs from a checkout: its adapters lie beside the package, and no entry point names them.
NOT_INSTALLED = "this checkout of engine-lifecycle is not installed; run: pip install -e ."


def known_schemes() -> list[str]:
    """The schemes for which an adapter is installed."""
    return sorted(installed(ADAPTERS))


@cache
def installed(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of this group, by name, as they were when this process first asked."""
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=group)}


def adapter_for(address: Address) -> EngineAdapter:
    """A new adapter for this address; its module is imported only now."""

    def unknown() -> str:
        return (
            f"no adapter for {address.scheme!r}; installed are {', '.join(known_schemes())}; "
            f"another comes with a package that has an entry point {address.scheme!r} in the group {ADAPTERS!r}"
        )

    kind: Any = _loaded(ADAPTERS, address.scheme, str(address), unknown)
    adapter: EngineAdapter = kind(address)
    return adapter


def router_for(url: str) -> Router:
    """A new router for this URL; its module is imported only now."""
    address = parse(url, "router")

    def unknown() -> str:
        return (
            f"no router {address.scheme!r}; installed are {', '.join(sorted(installed(ROUTERS)))}; another comes with "
            f"a package that has an entry point {address.scheme!r} in the group {ROUTERS!r}"
        )

    kind: Any = _loaded(ROUTERS, address.scheme, str(address), unknown)
    router: Router = kind(address)
    return router


def engine_command(kind: str) -> Any:
    """The function behind `lifecycle engine` for this kind of engine: argv in, exit code out."""
    return _loaded(ENGINES, kind, f"an engine of kind {kind!r}", lambda: "no engine of that kind can be started here")


def _loaded(group: str, name: str, what: str, unknown: Callable[[], str]) -> Any:
    """What the entry point of this name stands for; ConfigurationError says why `what` cannot be had."""
    found = installed(group)
    if name not in found:
        raise ConfigurationError(f"{what}: {unknown() if found else NOT_INSTALLED}")
    try:
        return found[name].load()
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "lifecycle":
            raise ConfigurationError(f"{what}: {NOT_INSTALLED}") from error
        remedy = f"pip install 'engine-lifecycle[{name}]'"
        raise ConfigurationError(f"{what}: it needs the package {error.name!r}; {remedy}") from error
