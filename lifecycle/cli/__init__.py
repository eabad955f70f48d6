"""The command line: `lifecycle engine | demo | status | cycle`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..errors import ConfigurationError, FleetError, LifecycleError

#: Exit codes: what was asked for held; it did not; the command line or the configuration is wrong.
OK, FAILED, USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; errors are one message on stderr, never a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["engine"]:
            return _engine(arguments[1:])
        from .app import run

        return run(arguments)
    except ConfigurationError as error:
        return _say(error, USAGE)
    except (LifecycleError, FleetError) as error:
        return _say(error, FAILED)
    except KeyboardInterrupt:
        return 130


def _engine(arguments: list[str]) -> int:
    """The engine's own command line, without the time that ours takes to load."""
    from ..registry import engine_command

    return int(engine_command("loopback")(arguments))


def _say(error: Exception, code: int) -> int:
    print(f"lifecycle: {getattr(error, 'message', None) or error}", file=sys.stderr)
    return code
