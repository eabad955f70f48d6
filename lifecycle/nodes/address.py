"""The address of an engine: `scheme://host:port?option=value`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from ..core.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Address:
    """The parts of an engine's URL. `options` are its query: keys for the registry, the locator and the adapter."""

    scheme: str
    host: str
    port: int
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """Returns host and port as they stand in a URL, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def only(self, *known: str) -> Address:
        """Returns this address; raises ConfigurationError for an option that is not among `known`."""
        for option in self.options:
            if option not in known:
                raise ConfigurationError(f"{self}: unknown option {option!r}; it has {', '.join(known)}")
        return self


def parse(url: str, what: str = "engine") -> Address:
    """Returns the parts of an engine's URL, or a router's; raises ConfigurationError that says what is wrong."""
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")  # what no resolver could ask for raises here
    except ValueError as error:
        raise ConfigurationError(f"{url!r} is no {what} URL: {error}") from None
    if not parts.scheme or not parts.hostname:
        raise ConfigurationError(f"{url!r} is no {what} URL; it looks like SCHEME://127.0.0.1:30000?group=decode")
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
