"""Options of an engine's URL that several adapters have."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from lifecycle.core.errors import ConfigurationError
from lifecycle.nodes.address import Address

from .http import HttpClient, together

#: A request that changes nothing, by method and path, and that a key may be asked for.
Guarded = tuple[str, str]

#: What a server answers without the right key.
KEY_REFUSED = (401, 403)


def key_of(address: Address, name: str) -> str | None:
    """The key in the environment variable that `NAME_env` names, else the one in `NAME`."""
    variable = address.options.get(f"{name}_env")
    if variable is None:
        return address.options.get(name)
    if not os.environ.get(variable):
        raise ConfigurationError(f"{address}: {name}_env names {variable}, which is not set")
    return os.environ[variable]


async def keys_needed(
    address: Address, http: HttpClient, guarded: Mapping[str, Sequence[Guarded]], deadline_s: float
) -> dict[str, bool]:
    """By name, whether each key that the URL gives is needed: one of the requests that take it is refused without one.

    A request that gets no answer says nothing: its key counts as needed.
    """
    needed = {}
    for name, requests in guarded.items():
        if {name, f"{name}_env"} & set(address.options):
            asks = [http.request(method, path, deadline_s=deadline_s) for method, path in requests]
            statuses = [answer.status for answer in await together(*asks)]
            needed[name] = any(status is None or status in KEY_REFUSED for status in statuses)
    return needed


def choice_of(address: Address, name: str, choices: tuple[str, ...]) -> str:
    """The option `name`, one of `choices`, whose first stands where it is not given."""
    value = address.options.get(name, choices[0]).lower()
    if value not in choices:
        raise ConfigurationError(f"{address}: {name} must be {' or '.join(choices)}, got {value!r}")
    return value


def sizes_of(address: Address, tags: Sequence[str]) -> dict[str, int]:
    """The option `sizes` as bytes by tag. Raises ConfigurationError where it is not of the form TAG:BYTES,..."""
    parts = [part.partition(":") for part in address.options.get("sizes", "").split(",") if part]
    if not all(tag.strip() in tags and size.isdecimal() and int(size) for tag, _, size in parts):
        raise ConfigurationError(
            f"{address}: sizes must be TAG:BYTES,... with the tags {' and '.join(tags)}, "
            f"got {address.options['sizes']!r}"
        )
    return {tag.strip(): int(size) for tag, _, size in parts}
