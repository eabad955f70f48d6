"""Which exceptions of HTTP clients are an answer of the server, told by their names, so that no client is imported."""

from __future__ import annotations

#: Some of them are an OSError, as those are that say that nothing answered.
_ANSWERS = frozenset(
    {
        "requests.exceptions.HTTPError",
        "urllib.error.HTTPError",
        "httpx.HTTPStatusError",
        "aiohttp.client_exceptions.ClientResponseError",
    }
)


def kinds(error: BaseException) -> frozenset[str]:
    """The full names of the classes that this exception is of."""
    return frozenset(f"{each.__module__}.{each.__qualname__}" for each in type(error).__mro__)


def is_answer(error: BaseException) -> bool:
    """Whether the server answered, with an error status."""
    return bool(kinds(error) & _ANSWERS)
