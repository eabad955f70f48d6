"""What a message says that leads on, read out of its text."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: One way on: what a person does first, then a call and a command in backquotes. Any of them may be missing.
_CHOICE = re.compile(
    r"(?P<first>[^`;]*?)(?:, then )?(?:`(?P<call>[^`]+)`(?: \(`(?P<command>[^`]+)`\))?)?(?:; or |$)",
)

#: What an ExceptionGroup adds to its message.
_GROUP = re.compile(r" \(\d+ sub-exceptions?\)$")


@dataclass(frozen=True)
class Way:
    """One way on, as it was read in a message."""

    first: str
    call: str
    command: str


def ways_in(message: str) -> list[Way]:
    """What the message says that leads on. Of several engines' messages, that of the first."""
    _, _, advice = message.partition("Next: ")
    advice = _GROUP.sub("", advice.splitlines()[0]) if advice else ""
    found = [Way(*(part or "" for part in match.groups())) for match in _CHOICE.finditer(advice) if match.group()]
    return [way for way in found if way.first or way.call]


def ways_recovered(printed: str) -> list[Way]:
    """What `lifecycle recover` prints that leads on, a line each."""
    lines = printed.splitlines()
    after = lines[lines.index("  what leads on:") + 1 :] if "  what leads on:" in lines else []
    return ways_in(f"Next: {'; or '.join(line.strip() for line in after)}") if after else []
