"""What mutants of the core survived before: one place each, seen to fail where that place is broken."""

from __future__ import annotations

import pytest
from rig import serving

from lifecycle import State
from lifecycle.rules import guards
from lifecycle.rules.evidence import Context
from lifecycle.rules.machine import NoSuchEdge, next_state

# the machine and the session


async def test_a_guard_that_raises_is_no_store_that_cannot_be_written() -> None:
    engine = await serving()
    check = guards.mode_supported.check

    def broken(context: Context) -> str | None:
        raise KeyError("a mistake in a guard")

    object.__setattr__(guards.mode_supported, "check", broken)
    try:
        with pytest.raises(KeyError, match="a mistake in a guard"):
            await engine.pause()
    finally:
        object.__setattr__(guards.mode_supported, "check", check)
    assert engine.state is State.SERVING
    assert engine.busy is None
    await engine.pause()


def test_an_unknown_trigger_leads_nowhere() -> None:
    with pytest.raises(NoSuchEdge, match="there is no trigger 'fly'"):
        next_state(State.SERVING, "fly")
    with pytest.raises(NoSuchEdge, match="drain leads nowhere from serving"):
        next_state(State.SERVING, "drain")
