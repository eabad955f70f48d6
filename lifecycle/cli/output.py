"""Where the commands print: an output that fails ends no command, and no name can steer a terminal.

A command may be in the middle of a move when its reader goes away or the disk is full. So the streams of this process
are replaced by ones that drop what cannot be written. The command goes on to its end, and its exit code says how that
was. A reader that goes away (`| head`) has read enough. Any other failure loses what was asked for: it is reported on
standard error, and the code is not 0.
"""

from __future__ import annotations

import errno
import io
import logging
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, TextIO

#: How a stream may treat what its encoding lacks; the others raise.
_LENIENT = frozenset({"backslashreplace", "ignore", "namereplace", "replace", "xmlcharrefreplace"})


def printable(text: str) -> str:
    """The text as one line, with control characters, line breaks and the like as escapes.

    A name comes from a URL and a note from a server: either may hold what a terminal would obey.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def say(lines: Iterable[str]) -> None:
    """Prints these lines at once."""
    print("\n".join(printable(line) for line in lines), flush=True)


def complain(message: str) -> None:
    """Prints a message about what went wrong on standard error."""
    lines = (printable(line) for line in f"lifecycle: {message}".split("\n"))
    print("\n".join(lines), file=sys.stderr, flush=True)


class _Dropping(io.FileIO):
    """A file descriptor that takes everything. After the first failure it drops it, and `failure` says why."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """How much was written, or dropped. A descriptor that somebody made non-blocking is waited for."""
        while self.failure is None:
            try:
                written: int | None = super().write(data)
                if written is not None:
                    return written
                select.select([], [self], [])
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes

    def is_lost(self) -> bool:
        """Whether what is written is dropped, or nobody can read it: the other end of a pipe was closed."""
        ends = select.poll()
        ends.register(self, 0)
        return self.failure is not None or any(found & select.POLLERR for _, found in ends.poll(0))


def is_lost() -> bool:
    """Whether nobody gets what is printed on standard output from here on: a command that never ends ends then."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _Dropping) and raw.is_lost()


class _OneLine(logging.Handler):
    """Prints what is logged as one line; of an exception what it says. A command prints no traceback for it."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        complain(record.getMessage() + (f": {str(error) or type(error).__name__}" if error else ""))


@dataclass(slots=True)
class Output:
    """Standard output of this process, as it goes; `raw` is None where somebody else has redirected or closed it."""

    raw: _Dropping | None = None

    def code(self, code: int, failed: int) -> int:
        """The exit code of a command that ended with `code`: `failed` where that is 0 and what it printed is lost."""
        sys.stdout.flush()
        lost = self.raw.failure if self.raw else None
        if lost is None or lost.errno == errno.EPIPE:
            return code
        complain(f"standard output: {lost.strerror or lost}")
        return code or failed


@contextmanager
def guarded() -> Iterator[Output]:
    """What is printed inside cannot fail. Streams that somebody else has redirected are left as they are."""
    output = Output()
    with ExitStack() as stack:
        if sys.stdout is sys.__stdout__:
            output.raw = _replace(stack, sys.stdout, 1, redirect_stdout)
        if sys.stderr is sys.__stderr__:
            _replace(stack, sys.stderr, 2, redirect_stderr)
        if not logging.getLogger().handlers:
            log, handler = logging.getLogger("lifecycle"), _OneLine(logging.WARNING)
            log.addHandler(handler)
            stack.callback(log.removeHandler, handler)
        yield output


def _replace(
    stack: ExitStack, stream: TextIO | None, descriptor: int, redirect: Callable[[TextIO], AbstractContextManager[Any]]
) -> _Dropping | None:
    """Until `stack` is left, what is printed on this stream is dropped where it cannot be written."""
    if stream is None:  # it was closed by whoever started this process (`>&-`)
        stack.enter_context(redirect(io.StringIO()))
        return None
    stream.flush()
    raw = _Dropping(descriptor, "w", closefd=False)
    instead = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors if stream.errors in _LENIENT else "backslashreplace",
        line_buffering=getattr(stream, "line_buffering", True),
    )
    stack.callback(instead.flush)
    stack.enter_context(redirect(instead))
    return raw
