"""The command line: `lifecycle --help`.

Exit codes: 0, it holds; 1, an engine was touched and what was asked for does not hold; 2, the command line or the
configuration is wrong; 3, it was refused and no engine was touched; 130, interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..core.errors import CommandRefused, ConfigurationError, FleetError, LifecycleError

OK, FAILED, USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130


class Interrupted(Exception):
    """Ctrl-C, once what it stopped has ended; the message says where that left the engines."""


#: What is told in one message. Anything else is a fault of ours, and its traceback is wanted.
TOLD = (ConfigurationError, LifecycleError, FleetError, Interrupted)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; errors are one message on stderr, never a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["engine"]:
            return _engine(arguments[1:])
        from .app import run

        return run(arguments)
    except TOLD as error:
        print(f"lifecycle: {told(error)}", file=sys.stderr)
        return code_of(error)
    except KeyboardInterrupt:
        print("lifecycle: interrupted", file=sys.stderr)
        return INTERRUPTED


def told(error: Exception) -> str:
    """The message of an error, without a count of its parts."""
    return error.message if isinstance(error, FleetError) else str(error)


def code_of(error: Exception) -> int:
    """The exit code that an error stands for."""
    if isinstance(error, ConfigurationError):
        return USAGE
    if isinstance(error, Interrupted):
        return INTERRUPTED
    parts = error.exceptions if isinstance(error, FleetError) else (error,)
    untouched = all(isinstance(part, CommandRefused) for part in parts)
    return REFUSED if untouched and not getattr(error, "succeeded", ()) else FAILED


def _engine(arguments: list[str]) -> int:
    """The engine's own command line, without the time that ours takes to load."""
    from ..fleet.registry import engine_command

    return int(engine_command("loopback")(arguments))
