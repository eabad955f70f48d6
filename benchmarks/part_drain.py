"""P5: from the end of the last request to a drained engine, by pause mode, and where the idle proof is refused a while.

The floor is a bare client that has the engine wait: `/flush_cache?timeout=` returns when the scheduler is idle. Where
that cannot be (after a retract) the bare client sends what is needed and no more. An abort pause of SGLang looks each
second whether the requests have ended; every way waits for that.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable

import aiohttp
import clients
from fakes import POLICY, Fakes
from results import Row, median

from lifecycle import Fleet, PauseMode
from lifecycle.testing import ScriptedRouter

#: Seconds for which the requests run, and the most for which a flush is refused.
RUN_S, REFUSED_S = 0.35, 0.8
#: Seconds of the 90th percentile that is aimed for.
TARGET_S = 0.1
FLUSH, WAIT = clients.post("/flush_cache"), clients.post("/flush_cache?timeout=60")
SENT = {"wait": "abort", "abort": "abort", "keep": "retract"}


async def polled(session: aiohttp.ClientSession, base: str, every_s: float) -> None:
    """Asks for a flush until it is done."""
    while await clients.ask(session, base, FLUSH) != 200:  # noqa: ASYNC110 - polling is what is measured
        await asyncio.sleep(every_s)


async def bare(session: aiohttp.ClientSession, base: str, mode: str, every_s: float | None) -> None:
    """What is needed to pause and drain in this mode: the engine waits, or (`every_s`) the client polls."""
    pause = clients.post("/pause_generation", mode=SENT[mode])
    if mode == "wait":
        await (clients.ask(session, base, WAIT) if every_s is None else polled(session, base, every_s))
    await clients.ask(session, base, pause)
    await polled(session, base, 0.005 if every_s is None else every_s)


async def by_mode(mode: PauseMode, repeats: int) -> Row:
    """The row of one pause mode."""
    with Fakes.start(1) as fakes:
        router = ScriptedRouter()
        async with (
            Fleet.connect(fakes.urls, policy=POLICY, lease=None, router=router) as fleet,
            clients.bare() as session,
        ):
            base = fakes.bases[0]

            async def ours() -> None:
                await fleet.pause(mode)
                await fleet.drain()

            ways: dict[str, tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[object]]]] = {}
            lifted = lambda: clients.ask(session, base, clients.post("/continue_generation"))  # noqa: E731
            for name, every_s in (("floor", None), ("polling 0.1 s", 0.1), ("polling 1 s", 1.0)):
                ways[name] = (lambda every_s=every_s: bare(session, base, mode, every_s)), lifted
            ways["ours"] = ours, fleet.resume
            took: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(repeats + 1):
                for name, (way, again) in ways.items():
                    fakes.set(engine={"run_s": RUN_S})
                    await way()
                    returned = time.monotonic()
                    ended = fakes.log().run_until[0]
                    if number:
                        took[name].append(returned - ended)
                    await again()
    medians = {name: median(seconds) for name, seconds in took.items()}
    ours_s, floor_s = medians.pop("ours"), medians.pop("floor")
    return Row(
        "P5", f"last request to drained, pause {mode}", ours_s, floor_s, medians, target=2 if mode != "keep" else None
    )


async def refused_a_while(rounds: int, count: int) -> Row:
    """The 90th percentile where each engine refuses a flush for a while of its own."""
    with Fakes.start(count) as fakes:
        async with Fleet.connect(fakes.urls, policy=POLICY, lease=None) as fleet, clients.bare() as session:
            lags: dict[str, list[float]] = {"ours": [], "floor": [], "polling 0.1 s": [], "polling 1 s": []}
            for number in range(rounds):
                drawn = random.Random(number)
                whiles = {index: {"refuse_flush_s": drawn.uniform(0.05, REFUSED_S)} for index in range(count)}

                async def alone(index: int) -> float:
                    await fleet.engines[index].pause("abort")
                    await fleet.engines[index].drain()
                    return time.monotonic()

                async def by_client(index: int, every_s: float | None) -> float:
                    await clients.ask(session, fakes.bases[index], clients.post("/pause_generation", mode="abort"))
                    if every_s is None:
                        await clients.ask(session, fakes.bases[index], WAIT)
                    else:
                        await polled(session, fakes.bases[index], every_s)
                    return time.monotonic()

                for name in lags:
                    every_s = {"floor": None, "polling 0.1 s": 0.1, "polling 1 s": 1.0}.get(name)
                    fakes.set(engines={str(index): each for index, each in whiles.items()})
                    one = alone if name == "ours" else lambda index, every_s=every_s: by_client(index, every_s)
                    done = await asyncio.gather(*(one(index) for index in range(count)))
                    lags[name] += [at - free for at, free in zip(done, fakes.log().flush_from, strict=True)]
                    fakes.set(engine={})
                    if name == "ours":
                        await fleet.resume()
                    else:
                        lift = clients.post("/continue_generation")
                        await asyncio.gather(*(clients.ask(session, base, lift) for base in fakes.bases))
    p90 = {name: statistics.quantiles(each, n=10)[8] for name, each in lags.items()}
    ours, floor = p90.pop("ours"), p90.pop("floor")
    what = f"idle proof refused a while, 90th percentile of {rounds * count}, by {TARGET_S:g} s"
    return Row("P5", what, ours, floor, p90, value=ours / TARGET_S, target=1)


def run(repeats: int = 3) -> list[Row]:
    """The rows of P5."""
    modes: tuple[PauseMode, ...] = ("wait", "abort", "keep")
    return [*(asyncio.run(by_mode(mode, repeats)) for mode in modes), asyncio.run(refused_a_while(5, 10))]
