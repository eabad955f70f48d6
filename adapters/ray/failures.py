"""What an exception that a call of an actor ended with says: that the engine refused, or that what it did is unknown.

Ray tells two things apart. A method that raised is a task error, whose cause is the exception of the method: the actor
lives, and the method has ended. Everything else (the actor died or is unavailable, its node or the owner of the answer
is lost) leaves open whether the method ran. A method that posts to a server and got no answer leaves it open too.
"""

from __future__ import annotations

from typing import Any

from lifecycle.core.http_errors import is_answer, kinds

from ..declared.verbs import InWords

#: The most characters of an exception's message that are repeated.
MOST = 500

#: Exceptions of HTTP clients after which a request may have been carried out, though they are no OSError.
_SILENCE = frozenset(
    {
        "httpx.TransportError",
        "aiohttp.client_exceptions.ClientConnectionError",
        "urllib3.exceptions.HTTPError",
        "http.client.HTTPException",
    }
)


class Refused(InWords):
    """The method raised: the engine, or its actor, refused."""


class Unanswered(InWords, ConnectionError):
    """The call got no answer: it may have been carried out, or be under way still."""


def understood(error: BaseException, ray: Any) -> Refused | Unanswered:
    """What this exception, with which a reference to an answer ended, says."""
    if not isinstance(error, ray.exceptions.RayTaskError):
        return Unanswered(_words(error))
    cause = error.cause
    if isinstance(cause, ray.exceptions.RayError) or not isinstance(cause, Exception):
        return Unanswered(_words(cause if isinstance(cause, BaseException) else error))
    return Unanswered(_words(cause)) if _is_silence(cause) else Refused(_words(cause))


def _is_silence(cause: Exception) -> bool:
    return not is_answer(cause) and (isinstance(cause, OSError) or bool(kinds(cause) & _SILENCE))


def _words(error: BaseException) -> str:
    """Its kind and message on one line, with the notes that were added to it."""
    said = " ".join(" ".join([str(error), *getattr(error, "__notes__", ())]).split())
    return f"{type(error).__name__}: {said}"[:MOST]
