"""From a URL to an adapter: `scheme://host:port?option=value`, where the scheme names the kind of engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .adapter import EngineAdapter
from .errors import ConfigurationError

ADAPTERS = "lifecycle.adapters"
ENGINES = "lifecycle.engines"


@dataclass(frozen=True, slots=True)
class Address:
    """A URL, taken apart. `options` are those of the query that are the adapter's own."""

    scheme: str
    host: str
    port: int
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def only(self, *known: str) -> Address:
        """This address, whose options are all among `known`; ConfigurationError names one that is not."""
        for option in self.options:
            if option not in known:
                raise ConfigurationError(f"{self}: unknown option {option!r}; it has {', '.join(known)}")
        return self


def parse(url: str) -> Address:
    """The parts of an engine's URL; ConfigurationError says what is wrong with it."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"{url!r} is no engine URL: {error}") from None
    if not parts.scheme or not parts.hostname:
        raise ConfigurationError(f"{url!r} is no engine URL; it looks like sglang://127.0.0.1:30000?group=decode")
    if port is None:
        raise ConfigurationError(f"{url!r} has no port; it looks like {parts.scheme}://{parts.netloc}:30000")
    if parts.path.strip("/") or parts.fragment or parts.username is not None:
        raise ConfigurationError(f"{url!r}: a path, a fragment or a user means nothing here; keys are options")
    options = parse_qsl(parts.query, keep_blank_values=True)
    names = [name for name, _ in options]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigurationError(f"{url!r} gives {twice} twice")
    return Address(parts.scheme, parts.hostname, port, dict(options))


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
