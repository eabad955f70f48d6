"""What one command costs this library itself, and a whole cycle of many engines: adapters that do nothing.

    python benchmarks/command_cost.py [--rounds 200] [--engines 100 1000 10000] [--only p3]
    python benchmarks/command_cost.py --only gc    # objects that full collections walk through, an engine: a count

P3: one command, as often as the `transitions` events that it fires, in turns in one run. The figure is the ratio of
their medians. P4: a cycle of a fleet of N engines, where the figures are ratios between sizes and counts.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transitions import Machine

from lifecycle import (
    Call,
    Capabilities,
    Engine,
    Fact,
    Facts,
    Fleet,
    Grade,
    Kept,
    Observation,
    PauseTraits,
    Policy,
    Probe,
    Proved,
    Reply,
    State,
    TagSpec,
    Verdict,
)
from lifecycle.core.commands import Command
from lifecycle.core.readings import Process
from lifecycle.rules.table import OPERATIONS
from lifecycle.store.sqlite import Store
from lifecycle.testing import planned

ABLE = Capabilities(
    engine="nothing",
    version="1",
    tags=(TagSpec("weights", "weights", "kept"), TagSpec("kv_cache", "kv", "discarded")),
    pause={"abort": PauseTraits(drains=True)},
    memory_saver=True,
)
POLICY = Policy(
    accept=dict.fromkeys(("memory_returned", "tags_unmapped", "weights_mapped", "kv_mapped"), Grade.ACKNOWLEDGED)
)
DONE = Reply("done")
IDLE = Proved(grade=Grade.REPORTED, reason="nothing runs", figures={"cache_dropped": True})
ANSWERED = Proved(grade=Grade.MEASURED, reason="a token")


class Nothing:
    """An adapter that sends nothing: every call is acknowledged, and every question answered, at once."""

    def __init__(self, name: str) -> None:
        self.url = f"nothing://{name}"
        self._met = False
        self._seen = Observation(boot=name)

    async def connect(self, *, deadline_s: float) -> Capabilities:
        return ABLE

    def plan(self, command: Command, facts: Facts) -> tuple[Call, ...]:
        return planned.plan(command, facts, ABLE)

    async def send(self, call: Call, *, deadline_s: float) -> Reply:
        return DONE

    async def observe(self, want: frozenset[Fact], *, deadline_s: float) -> Observation:
        if self._met:
            return self._seen
        self._met = True
        return replace(self._seen, admission="open", running=0)

    async def prove_idle(self, facts: Facts, *, deadline_s: float) -> Verdict:
        return IDLE

    async def answers(self, probe: Probe, *, deadline_s: float) -> Verdict:
        return ANSWERED

    async def barrier(self, *, deadline_s: float) -> bool:
        return True

    async def processes(self) -> tuple[Process, ...] | None:
        return None

    async def aclose(self) -> None:
        pass


def engine(name: str, **how: Any) -> Engine:
    return Engine(Nothing(name), name=name, policy=POLICY, lease=None, **how)


async def ring(one: Engine) -> None:
    """The six commands of a cycle whose weights are kept."""
    await one.pause()
    await one.drain()
    await one.release(weights=Kept())
    await one.restore_weights()
    await one.restore_kv()
    await one.resume()


COMMANDS = 6


class Model:
    """What `transitions` moves."""

    state: str


def plain_machine() -> tuple[Machine, Model]:
    """The rows of the table in a `transitions.Machine` as anybody would make it: one model, and no guards."""
    model = Model()
    machine = Machine(model, states=State, initial=State.SERVING, auto_transitions=False, send_event=False)
    for row in OPERATIONS:
        machine.add_transition(row.command, row.source, row.via)
    for via, dest in {row.via: row.dest for row in OPERATIONS}.items():
        machine.add_transition("succeeded", via, dest)
    return machine, model


def plain_ring(model: Any) -> None:
    """The events that `ring` fires: two a command."""
    for command in ("pause", "drain", "release", "restore_weights", "restore_kv", "resume"):
        getattr(model, command)()
        model.succeeded()


def calls_of(run: Any) -> Counter[str]:
    """How often each Python function was called while this ran, by module and name."""
    counted: Counter[str] = Counter()

    def count(frame: Any, event: str, _: object) -> None:
        if event == "call":
            counted[f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"] += 1

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return counted


def p3(rounds: int = 200) -> dict[str, Any]:
    """One command of an engine against two `transitions` events, without a store and with one, in one run."""
    _, model = plain_machine()
    took: dict[str, list[float]] = {"events": [], "command": [], "stored": []}
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "engines.sqlite3")
        bare, kept = engine("bare"), engine("kept", store=store)
        for one in (bare, kept):
            loop.run_until_complete(one.connect())
            loop.run_until_complete(ring(one))
        for _ in range(rounds):
            begun = time.perf_counter()
            plain_ring(model)
            took["events"].append(time.perf_counter() - begun)
            for name, one in (("command", bare), ("stored", kept)):
                begun = time.perf_counter()
                loop.run_until_complete(ring(one))
                took[name].append(time.perf_counter() - begun)
        counted = calls_of(lambda: loop.run_until_complete(ring(bare)))
        store.close()
    loop.close()
    us = {name: statistics.median(seconds) / COMMANDS * 1e6 for name, seconds in took.items()}
    return {
        "events_us": us["events"],
        "command_us": us["command"],
        "stored_us": us["stored"],
        "ratio": us["command"] / us["events"],
        "ratio_stored": us["stored"] / us["events"],
        "calls_per_command": counted.total() / COMMANDS,
        "called": counted,
    }


async def _cycle(count: int) -> dict[str, float]:
    engines = [engine(f"e{number}") for number in range(count)]
    fleet = Fleet(engines, policy=POLICY)
    begun = time.perf_counter()
    async with fleet:
        connected_s = time.perf_counter() - begun
        begun = time.perf_counter()
        await fleet.offload(weights=Kept())
        await fleet.onload()
        return {"connect_s": connected_s, "cycle_s": time.perf_counter() - begun}


async def _bytes_at_rest(count: int) -> tuple[float, float]:
    """Bytes an engine after connect, and after a whole cycle, as `tracemalloc` counts them."""
    async with Fleet([engine(f"warm{number}") for number in range(10)], policy=POLICY) as warm:
        await warm.offload(weights=Kept())
        await warm.onload()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        fleet = Fleet([engine(f"e{number}") for number in range(count)], policy=POLICY)
        async with fleet:
            gc.collect()
            after = tracemalloc.get_traced_memory()[0]
            await fleet.offload(weights=Kept())
            await fleet.onload()
            gc.collect()
            cycled = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return (after - before) / count, (cycled - before) / count


def p4(sizes: tuple[int, ...] = (100, 1000, 10_000), *, of_memory: int = 2000) -> dict[str, Any]:
    """A cycle of fleets of these sizes: seconds, Python calls an engine, and KiB that an engine keeps."""
    found: dict[str, Any] = {}
    for count in sizes:
        gc.collect()
        found[f"{count}"] = asyncio.run(_cycle(count))
    calls = {count: calls_of(lambda count=count: asyncio.run(_cycle(count))).total() / count for count in (20, 200)}
    connected, cycled = asyncio.run(_bytes_at_rest(of_memory))
    most = max(sizes)
    return {
        "seconds": found,
        "ms_per_engine": found[f"{most}"]["cycle_s"] / most * 1e3,
        "ratio": {
            f"{large}/{small}": found[f"{large}"]["cycle_s"] / found[f"{small}"]["cycle_s"]
            for small, large in zip(sorted(sizes), sorted(sizes)[1:], strict=False)
        },
        "calls_per_engine": {f"{count}": round(each) for count, each in calls.items()},
        "kib_connected": connected / 1024,
        "kib_after_a_cycle": cycled / 1024,
    }


def walked(count: int) -> dict[str, float]:
    """Objects that the full collections of connect and cycle walk through, by engine; and how many those are."""
    seen: list[int] = []

    def count_objects(phase: str, about: Mapping[str, int]) -> None:
        if phase == "start" and about["generation"] == 2:
            seen.append(len(gc.get_objects()))

    gc.collect()
    gc.callbacks.append(count_objects)
    try:
        asyncio.run(_cycle(count))
    finally:
        gc.callbacks.remove(count_objects)
    return {"full_collections": len(seen), "objects_walked_an_engine": sum(seen) / count}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--engines", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--only", choices=("p3", "p4", "gc"))
    options = parser.parse_args()
    if options.only == "gc":
        for name, value in walked(max(options.engines)).items():
            print(f"gc {name}: {value:g}")
        return 0
    if options.only != "p4":
        for name, value in p3(options.rounds).items():
            if isinstance(value, Mapping):
                value = ", ".join(f"{each} {count}" for each, count in Counter(value).most_common(12))
            print(f"p3 {name}: {value:.1f}" if isinstance(value, float) else f"p3 {name}: {value}")
    if options.only != "p3":
        for name, value in p4(tuple(options.engines)).items():
            print(f"p4 {name}: {value:.2f}" if isinstance(value, float) else f"p4 {name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
