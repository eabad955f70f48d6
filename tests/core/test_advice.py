"""Every message names what leads on, and following it to the letter ends with an engine that serves.

A case brings a scripted engine to a message; `advice_walk` reads the advice out of its text and carries it out. Two
walks a case: one makes the call in Python, one gives the command to the command line's own parser.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection

import messages_of_failures  # noqa: F401
import messages_of_refusals  # noqa: F401
import messages_of_rows  # noqa: F401
import messages_of_sources  # noqa: F401
import pytest
from advice_walk import Walk
from messages import CASES, Case
from virtual_time import VirtualTime


def walked(make: Case, *, on_command_line: bool, but_for: Collection[str] = ()) -> Walk | None:
    """The walk from the message of this case; None where the fault did no harm, or such advice was followed before."""
    world = VirtualTime()
    try:
        try:
            at = world.run(make())
        except pytest.fail.Exception:
            return None
        if shape(at.message) in but_for:
            return None
        walk = Walk(world, at.fleet, at.engine, at.heal, on_command_line, message=at.message)
        walk.follow(at.message)
        return walk
    finally:
        world.close()


def shape(message: str) -> str:
    """The message's advice, without what it names."""
    return re.sub(r"'[^']*'|[a-z]+://\S+", "", message.partition("Next: ")[2])


@pytest.mark.parametrize("on_command_line", [False, True], ids=["python", "command line"])
def test_every_message_leads_to_an_engine_that_serves_or_to_a_person(
    on_command_line: bool, report: Callable[[str], None]
) -> None:
    """On the command line each advice once: that it is the same one as in Python, the walk in Python has shown."""
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    shapes: set[str] = set()
    for name, make in CASES.items():
        try:
            walk = walked(make, on_command_line=on_command_line, but_for=shapes if on_command_line else set())
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
            continue
        if walk is not None:
            shapes.add(shape(walk.message))
            ends[", then ".join(dict.fromkeys(walk.decisions))] += 1
    assert not wrong, f"{len(wrong)} of {len(CASES)}:\n" + "\n\n".join(wrong)
    form, serve = "command line" if on_command_line else "Python", ends.pop("", 0)
    report(f"advice followed in {form}: {serve + ends.total()} messages, {serve} lead to serving without a person")
    report(f"advice followed in {form}: {ends.total()} lead to a person first, and then to serving:")
    for decision, count in ends.most_common():
        report(f"    {count:4} {decision}")
    assert serve
    assert ends
