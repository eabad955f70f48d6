"""The command line: `lifecycle --help`.

Exit codes: 0, what was asked for holds; 1, an engine was touched and what was asked for does not hold, or what was to
be printed could not be written; 2, the command line or the configuration is wrong; 3, refused, and no engine was
touched; 130, interrupted (143 by SIGTERM, 129 by SIGHUP). A reader that goes away before the end (`| head`) changes no
code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..core.errors import CommandRefused, ConfigurationError, FleetError, LifecycleError, RouterError, RouterNotClosed
from .output import complain, guarded

OK, FAILED, USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130


class Interrupted(Exception):
    """Ctrl-C or a signal, raised once the cancelled command has ended.

    The message says in which state it left the engines; `code` is the exit code, 128 and the signal's number.
    """

    def __init__(self, message: str, *, code: int = INTERRUPTED) -> None:
        self.code = code
        super().__init__(message)


#: Errors that are reported in one message. Any other exception is a defect of this program and keeps its traceback.
REPORTED_ERRORS = (ConfigurationError, LifecycleError, FleetError, RouterError, Interrupted)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. An error is one message on stderr, without a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with guarded() as output:
        return output.code(_ended(arguments), FAILED)


def _ended(arguments: list[str]) -> int:
    """The exit code of the command that was run."""
    try:
        if arguments[:1] == ["engine"]:
            return _engine(arguments[1:])
        from .app import run

        return run(arguments)
    except REPORTED_ERRORS as error:
        complain(message_of(error))
        return code_of(error)
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED


def message_of(error: Exception) -> str:
    """The message of an error; of a FleetError without the count of its parts that an ExceptionGroup adds."""
    return error.message if isinstance(error, FleetError) else str(error)


def code_of(error: Exception) -> int:
    """The exit code of a command that this error ended."""
    if isinstance(error, ConfigurationError):
        return USAGE
    if isinstance(error, Interrupted):
        return error.code
    parts = error.exceptions if isinstance(error, FleetError) else (error,)
    untouched = all(isinstance(part, CommandRefused | RouterNotClosed) for part in parts)
    return REFUSED if untouched and not getattr(error, "succeeded", ()) else FAILED


def _engine(arguments: list[str]) -> int:
    """Runs the loopback engine's own command line, without importing the rest of this one."""
    from ..fleet.registry import engine_command

    return int(engine_command("loopback")(arguments))
