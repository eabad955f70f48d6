"""The command line: `lifecycle --help`.

Exit codes: 0, it holds; 1, an engine was touched and what was asked for does not hold; 2, the command line or the
configuration is wrong; 3, it was refused and no engine was touched; 130, interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..errors import CommandRefused, ConfigurationError, FleetError, LifecycleError

OK, FAILED, USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; errors are one message on stderr, never a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["engine"]:
            return _engine(arguments[1:])
        from .app import run

        return run(arguments)
    except (ConfigurationError, LifecycleError, FleetError, KeyError) as error:
        print(f"lifecycle: {told(error)}", file=sys.stderr)
        return code_of(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def told(error: Exception) -> str:
    """The message of an error, without a count of its parts."""
    if isinstance(error, FleetError):
        return error.message
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def code_of(error: Exception) -> int:
    """The exit code that an error stands for."""
    if isinstance(error, ConfigurationError | KeyError):
        return USAGE
    parts = error.exceptions if isinstance(error, FleetError) else (error,)
    untouched = all(isinstance(part, CommandRefused) for part in parts)
    return REFUSED if untouched and not getattr(error, "succeeded", ()) else FAILED


def _engine(arguments: list[str]) -> int:
    """The engine's own command line, without the time that ours takes to load."""
    from ..registry import engine_command

    return int(engine_command("loopback")(arguments))
