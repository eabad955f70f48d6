"""One name for the address of an engine, however a URL spells it."""

from __future__ import annotations

from ..core.errors import ConfigurationError
from .address import parse
from .processes import is_local, node_name


def address_of(url: object) -> str | None:
    """The engine's host and port; None where the URL has none: such an engine lives in the process that drives it.

    Every name of this host is one, whichever scheme stands before it.
    """
    if not isinstance(url, str):  # refused at connect, where it can be said of which engine
        return None
    try:
        address = parse(url)
    except ConfigurationError:
        return None
    host = node_name() if is_local(address.host) else address.host
    return f"{host.lower()}:{address.port}"
