"""From an address to an adapter: the scheme names the kind of engine."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from ..core.errors import ConfigurationError
from ..core.ports import EngineAdapter
from ..nodes.address import Address

ADAPTERS = "lifecycle.adapters"


ENGINES = "lifecycle.engines"


def known_schemes() -> list[str]:
    """The schemes for which an adapter is installed."""
    return sorted({entry.name for entry in entry_points(group=ADAPTERS)})


def adapter_for(address: Address) -> EngineAdapter:
    """A new adapter for this address; its module is imported only now."""
    found = {entry.name: entry for entry in entry_points(group=ADAPTERS)}.get(address.scheme)
    if found is None:
        raise ConfigurationError(
            f"{address}: no adapter for {address.scheme!r}; installed are {', '.join(known_schemes())}; "
            f"another comes with a package that has an entry point {address.scheme!r} in the group {ADAPTERS!r}"
        )
    try:
        kind: Any = found.load()
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{address}: its adapter needs the package {error.name!r}; pip install 'engine-lifecycle[{address.scheme}]'"
        ) from error
    adapter: EngineAdapter = kind(address)
    return adapter


def engine_command(kind: str) -> Any:
    """The function behind `lifecycle engine` for this kind of engine: argv in, exit code out."""
    found = {entry.name: entry for entry in entry_points(group=ENGINES)}.get(kind)
    if found is None:
        raise ConfigurationError(f"no engine of kind {kind!r} can be started here")
    return found.load()
