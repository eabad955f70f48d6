"""Gathering evidence: each kind is read only where a guard or proof needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.commands import Command
from ..core.deadline import Deadline
from ..core.facts import Fact
from ..core.readings import Reading
from ..core.verdicts import Unmeasurable
from ..nodes.port import PROCESSES_UNKNOWN
from ..rules.evidence import Evidence, Need
from .preconditions import surroundings

if TYPE_CHECKING:
    from .engine import Engine


#: Seconds that a look at memory is given even when no time is left: the last look before a deadline is the one told of.
LEAST_READ_S = 0.5


#: What is asked for where everything that reads alone can tell is wanted.
EVERYTHING = frozenset({Fact.BOOT, Fact.ADMISSION, Fact.RUNNING, Fact.PARKED, Fact.MAPPED, Fact.CONTENTS})


async def gather(
    engine: Engine, needs: frozenset[Need], *, deadline_s: float, command: Command | None = None
) -> Evidence:
    """The evidence of these kinds, fresh; every part is a value, also where an engine did not answer.

    What surrounds the engine is looked at for a `command` that is about to be sent.
    """
    clock = Deadline(deadline_s)
    want = {Fact.BOOT, Fact.MAPPED}
    if Need.ADMISSION in needs:
        want.add(Fact.ADMISSION)
    if Need.LABEL in needs or Need.CHECKSUM in needs:
        want.add(Fact.CONTENTS)
    if Need.CHECKSUM in needs:
        want.add(Fact.CHECKSUM)
    parts: dict[str, Any] = {}
    parts["observation"] = await engine.adapter.observe(frozenset(want), deadline_s=clock.left_s)
    if Need.IDLE in needs:
        parts["idle"] = await engine.adapter.prove_idle(engine.facts, deadline_s=clock.left_s)
    if Need.ANSWER in needs:
        parts["answer"] = await engine.canary.ask(engine.adapter, engine.facts, deadline_s=clock.left_s)
    if Need.RESIDUAL in needs:
        parts["residual"] = await residual(engine, deadline_s=clock.left_s)
    if command is not None:
        reading = parts.get("residual", Unmeasurable(reason="not read"))
        parts |= await surroundings(engine, needs, command, reading, deadline_s=clock.left_s)
    return Evidence(**parts)


async def residual(engine: Engine, *, deadline_s: float) -> Reading | Unmeasurable:
    """What the engine's processes hold now."""
    processes = await engine.adapter.processes()
    if not processes:
        return Unmeasurable(reason=PROCESSES_UNKNOWN)
    return await engine.probe.read(processes, deadline_s=max(deadline_s, LEAST_READ_S))
