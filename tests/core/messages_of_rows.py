"""Messages of commands that have no row, and of every call of every row, answered in every way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from messages import ACTS, CASES, COMMAND, RING, Case, engine_in, failing, given

from lifecycle import Refuted, State, Unmeasurable
from lifecycle.core.commands import (
    Resume,
)
from lifecycle.rules.table import OPERATIONS, row
from lifecycle.testing import (
    ScriptedAdapter,
)


def _rows() -> Iterator[tuple[str, Case]]:
    for state in (*RING, State.FAILED, State.GONE):
        for command in COMMAND.values():
            if row(command.name, state) is None:
                yield f"{command} in {state}: no row", given(state, command)
    for each in OPERATIONS:
        command = COMMAND[each.command]
        calls = ScriptedAdapter("x").plan(command, _facts_in(each.source))
        for call in dict.fromkeys(call.name for call in calls):
            for what, act in ACTS.items():
                if call != "await_idle":
                    yield f"{command} in {each.source}: {call} {what}", failing(each.source, command, call, act)
    for answer in (Refuted(reason="it generated nothing"), Unmeasurable(reason="nobody knows")):
        for state in (State.PAUSED, State.DRAINED, State.KV_RESTORED):
            yield f"resume in {state}: answers {answer.word}", failing(state, Resume(), "answers", answer)  # type: ignore[arg-type]


def _facts_in(state: State) -> Any:
    async def facts() -> Any:
        return (await engine_in(state)).facts

    return asyncio.run(facts())


CASES |= dict(_rows())
