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

#: What it answers to a request that it has admitted, and that asks for nothing.
BAD_REQUEST = (400, 422)


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
    """By name, whether each key that the URL gives is needed, all of them asked for at once.

    It is not where every request that takes it is answered without one, or is found wrong in what it asks for. An error
    of the server, or no answer, says nothing: the key counts as needed then.
    """
    given = [name for name in guarded if {name, f"{name}_env"} & set(address.options)]
    asks = [(name, method, path) for name in given for method, path in guarded[name]]
    answers = await together(*(http.request(method, path, deadline_s=deadline_s) for _, method, path in asks))
    unguarded = [answer.ok or answer.status in BAD_REQUEST for answer in answers]
    return {name: not all(each for (of, *_), each in zip(asks, unguarded, strict=True) if of == name) for name in given}


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
