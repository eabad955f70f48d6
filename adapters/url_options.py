"""Options of an engine's URL that several adapters have."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lifecycle.core.errors import ConfigurationError
from lifecycle.nodes.address import Address


def key_of(address: Address, name: str) -> str | None:
    """The key in the environment variable that `NAME_env` names, else the one in `NAME`."""
    variable = address.options.get(f"{name}_env")
    if variable is None:
        return address.options.get(name)
    if not os.environ.get(variable):
        raise ConfigurationError(f"{address}: {name}_env names {variable}, which is not set")
    return os.environ[variable]


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
