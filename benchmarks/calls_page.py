"""docs/measured/calls.md: the calls of each command of one cycle, and the guard or proof that needs each.

    python benchmarks/calls_page.py [--stdout]

The page is made of a run that was watched. Each request that reached the engine is told by time which method of the
adapter's port made it, in which command, and in which step of it (lifecycle/engine/attempt.py): asked before the first
call, sent, or read to prove. What the method was asked for leads to the kinds of evidence, and those to the guards and
proofs of the command's row in the table.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from fakes import MEASURED, Fakes, Request
from results import MEASURED as FOLDER
from results import about

from lifecycle import BaseObserver, Call, Command, Fact, Fleet, FromDisk, Kept, Reply, Source, State, Transition
from lifecycle.rules.evidence import EvidenceKind
from lifecycle.rules.table import OPERATIONS

PAGE = FOLDER / "calls.md"
SOURCES: dict[str, Source] = {"from disk": FromDisk("/models/step", "v1"), "kept": Kept()}
METHODS = (
    "connect",
    "observe",
    "boot_anew",
    "prove_idle",
    "idle_within",
    "answers",
    "barrier",
    "request_counts",
    "send",
)
#: Methods that tell what another one does.
SAME = {"idle_within": "prove_idle"}
#: What each kind of evidence is read by: a method of the port, and for an observation the fact that it is asked for.
KINDS = {
    EvidenceKind.ADMISSION: ("observe", Fact.ADMISSION),
    EvidenceKind.LABEL: ("observe", Fact.CONTENTS),
    EvidenceKind.CHECKSUM: ("observe", Fact.CHECKSUM),
    EvidenceKind.IDLE: ("prove_idle", None),
    EvidenceKind.ANSWER: ("answers", None),
}
#: Requests that one method alone makes: it may run beside others.
ONLY = {"POST /generate": "answers"}
HEADINGS = ("command", "step", "request", "as part of", "asked for by")


@dataclass(frozen=True, slots=True)
class Asked:
    """One call of a method of the adapter's port, from when to when, and what it was asked for."""

    method: str
    begun_s: float
    ended_s: float
    wanted: frozenset[Fact] = frozenset()
    call: str = ""


@dataclass(slots=True)
class Under:
    """One command of the engine: from when, until when, and when the first call could be sent."""

    name: str
    source: State
    begun_s: float
    fired_s: float = float("inf")
    ended_s: float = float("inf")


class Watch(BaseObserver):
    """Hears of the commands of one engine, and has its adapter's methods traced."""

    def __init__(self) -> None:
        self.commands: list[Under] = []
        self.asked: list[Asked] = []

    def command_started(self, engine: str, command: Command, state: State) -> None:
        self.commands.append(Under(command.name, state, time.monotonic()))

    def transition(self, record: Transition) -> None:
        if self.commands and record.trigger == self.commands[-1].name:
            self.commands[-1].fired_s = record.at_s

    def command_ended(
        self, engine: str, command: Command, result: Transition | BaseException, duration_s: float
    ) -> None:
        self.commands[-1].ended_s = time.monotonic()

    def call(self, engine: str, call: Call, reply: Reply, duration_s: float) -> None:
        """What was sent is told by the adapter's own method."""

    def trace(self, adapter: Any) -> None:
        """Every call of a method of this adapter is noted from here on."""
        for name in METHODS:
            setattr(adapter, name, self._traced(name, getattr(adapter, name)))

    def _traced(self, name: str, method: Any) -> Any:
        async def traced(*arguments: Any, **named: Any) -> Any:
            first = arguments[0] if arguments else named.get("want", named.get("call"))
            wanted = first if isinstance(first, frozenset) else frozenset()
            call = first.name if isinstance(first, Call) else ""
            begun_s = time.monotonic()
            try:
                return await method(*arguments, **named)
            finally:
                self.asked.append(Asked(name, begun_s, time.monotonic(), wanted, call))

        return traced


@dataclass(frozen=True, slots=True)
class Line:
    """One request of the page."""

    command: str
    step: str
    request: str
    part_of: str
    asked_for_by: str
    count: int = 1


def line(request: Request, watch: Watch) -> Line:
    """Which command and step a request belongs to, which method made it, and who asked for that."""
    under = next((each for each in watch.commands if each.begun_s <= request.at_s <= each.ended_s), None)
    asked = [each for each in watch.asked if each.begun_s <= request.at_s <= each.ended_s]
    asked = [each for each in asked if each.method == ONLY.get(request.name, each.method)]
    by = min(asked, key=lambda each: each.ended_s - each.begun_s, default=None)
    method = "" if by is None else by.method
    if under is None:
        step = "connect" if method == "connect" or not watch.commands else "between commands"
        return Line(step if step == "connect" else "", step, request.name, _part(by), "")
    step = "send" if method == "send" else "ask" if request.at_s < under.fired_s else "prove"
    who = "" if by is None or step == "send" else ", ".join(_askers(under, step, by))
    return Line(under.name, step, request.name, _part(by), who or ("the command itself" if step == "send" else ""))


def _part(by: Asked | None) -> str:
    if by is None:
        return ""
    wanted = ", ".join(sorted(str(each) for each in by.wanted))
    return f"{by.method}({by.call or wanted})"


def _askers(under: Under, step: str, by: Asked) -> Iterator[str]:
    """The guards (ask) or proofs (prove) of the row that need what this method read."""
    row = next((each for each in OPERATIONS if (each.command, each.source) == (under.name, under.source)), None)
    if row is None:
        return
    method = SAME.get(by.method, by.method)
    kinds = {kind for kind, (reads, fact) in KINDS.items() if reads == method and (fact is None or fact in by.wanted)}
    named = [*row.guards, *row.proofs] if step == "ask" else [*row.proofs]
    askers = [each for each in named if kinds & set(each.needs)]
    yield from (each.name for each in askers)
    if by.method == "observe":
        yield "same boot"
        if Fact.ADMISSION in by.wanted and not any(EvidenceKind.ADMISSION in each.needs for each in askers):
            yield "admission as believed"


async def watched(name: str) -> list[Line]:
    """The requests of a connect and a second cycle, in order."""
    with Fakes.start(1, apart=True, tag_mib=16, backup=name == "kept") as fakes:
        fakes.set(recording=True)
        watch = Watch()
        fleet = Fleet.connect(fakes.urls, policy=MEASURED, lease=None, observers=[watch])
        watch.trace(fleet.engines[0].adapter)
        async with fleet:
            connect = [line(each, watch) for each in fakes.log().requests]
            await fleet.offload(weights=SOURCES[name])
            await fleet.onload()
            fakes.log()
            watch.commands.clear()
            await fleet.offload(weights=SOURCES[name])
            await fleet.onload()
            return [*connect, *(line(each, watch) for each in fakes.log().requests)]


def table(lines: list[Line]) -> str:
    """The requests as a Markdown table, those that follow each other and are alike in one line."""
    merged = [replace(each, count=len(list(alike))) for each, alike in groupby(lines)]
    rows = [
        (
            each.command,
            each.step,
            f"`{each.request}`" + f" x {each.count}" * (each.count > 1),
            each.part_of,
            each.asked_for_by,
        )
        for each in merged
    ]
    ruled = [HEADINGS, ("---",) * len(HEADINGS), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in ruled)


def page() -> str:
    """docs/measured/calls.md."""
    facts = about([], 0, [])
    text = (
        "# The calls of each command\n\n"
        "Written by `python benchmarks/calls_page.py` from a watched run; do not edit. Steps: what is *asked* before\n"
        "the first call, what the command *sends*, and what is read to *prove* that it succeeded. `same boot` is what\n"
        "every observation is compared with first: that this is still the process that the facts are about.\n"
        "`admission as believed`: no guard needs it, and what contradicts the facts ends the command.\n\n"
        f"Commit {facts['commit']}, {facts['date']}.\n"
    )
    for name in SOURCES:
        lines = asyncio.run(watched(name))
        cycle = sum(each.step != "connect" for each in lines)
        text += f"\n## Weights {name}: {cycle} calls a cycle, {len(lines) - cycle} at connect\n\n{table(lines)}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the calls of each command.")
    parser.add_argument("--stdout", action="store_true", help="print the page, and write none")
    if parser.parse_args().stdout:
        print(page(), end="")
    else:
        PAGE.write_text(page())
        print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
