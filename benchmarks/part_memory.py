"""P1b: a whole cycle over loopback engines, with real processes and real memory, beside the engines' own time.

A loopback engine zeroes, maps and reads real pages. What its own time is, a bare client shows that sends the 12 needed
calls in their phases, on the same processes; "its own calls" is the sequence that this library sends, by that client.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import clients
import psutil
from fakes import MEASURED, Fakes
from lifecycle.adapters.loopback import LoopbackProcess
from part_cycle import SOURCE, cycle, in_turns
from results import Row

from lifecycle import Fleet, FromDisk, Policy

#: Engines, and MiB of each of their two tags: small, and still seen in what a process holds, so that 64 fit; and eight
#: times as much, by which it is seen how the overhead depends on size.
SIZES = ((8, 32), (64, 32), (8, 256))
#: Bytes of one engine beside its tags: Python, NumPy and a web framework.
BESIDE_BYTES = 110 << 20
POLICY = Policy(residual_threshold_gib=0.08, visible_bytes=8 << 20, visible_fraction=0.01)


def fits(count: int, tag_mib: int) -> str:
    """Why so many engines do not fit into this host's memory; empty where they do."""
    need, there = count * ((2 * tag_mib << 20) + BESIDE_BYTES), psutil.virtual_memory().available
    return "" if need < there * 0.8 else f"needs {need >> 20} MiB of memory, {there >> 20} are available"


def own_calls() -> tuple[clients.Ask, ...]:
    """What this library sends to one engine in a cycle, seen by a fake one whose memory is measured."""

    async def seen() -> tuple[clients.Ask, ...]:
        with Fakes.start(1, apart=True, tag_mib=16) as fakes:
            async with Fleet.connect(fakes.urls, policy=MEASURED, lease=None) as fleet:
                await fleet.offload(weights=SOURCE)
                await fleet.onload()
                fakes.log()
                fakes.set(recording=True)
                await fleet.offload(weights=SOURCE)
                await fleet.onload()
                return tuple(clients.sequences(fakes.log().requests, 1)[0])

    return asyncio.run(seen())


def with_path(asks: Sequence[clients.Ask], path: str) -> list[clients.Ask]:
    """These calls, which load this checkpoint."""

    def renamed(body: bytes | None) -> bytes | None:
        return body and body.replace(SOURCE.path.encode(), path.encode())

    return [clients.Ask(each.method, each.target, renamed(each.body)) for each in asks]


def checkpoint(folder: str, tag_mib: int) -> str:
    """A checkpoint that all engines are started with and load."""
    path = str(Path(folder) / "weights")
    size = ("--weights-mib", str(tag_mib), "--make-weights", path)
    command = [sys.executable, "-m", "lifecycle.adapters.loopback", *size]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() or path


async def measure(count: int, tag_mib: int, repeats: int, own: Sequence[clients.Ask]) -> list[Row]:
    """The rows of so many engines of this size."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        weights = await asyncio.to_thread(checkpoint, folder, tag_mib)

        def started(_: int) -> LoopbackProcess:
            return LoopbackProcess.start(weights_mib=tag_mib, kv_mib=tag_mib, weights=weights, deadline_s=120)

        with ThreadPoolExecutor(4) as pool:
            engines = list(pool.map(started, range(count)))
        for each in engines:
            stack.callback(each.kill)
        urls = [f"loopback://127.0.0.1:{each.port}" for each in engines]
        bases = [each.url for each in engines]
        source = FromDisk(weights, SOURCE.version)
        phases = clients.needed(weights, SOURCE.version)
        asked = [with_path(own, weights)] * count
        async with Fleet.connect(urls, policy=POLICY, lease=None) as fleet, clients.bare() as session:

            async def ours() -> None:
                await cycle(fleet, source)

            ways = {
                "ours": ours,
                "floor": lambda: clients.in_phases(session, bases, phases),
                "its own calls": lambda: clients.replay(session, bases, asked),
            }
            took = await in_turns(ways, repeats)
    what = f"{count} loopback engines of {2 * tag_mib} MiB, cycle"
    return [
        Row("P1b", f"{what} by the same calls", took["ours"], took["its own calls"], target=1.15),
        Row("P1b", f"{what} by the needed calls", took["ours"], took["floor"]),
    ]


def run(repeats: int = 3, sizes: Sequence[tuple[int, int]] = SIZES) -> list[Row]:
    """The rows of P1b; of engines that do not fit into memory, why."""
    own, rows = own_calls(), list[Row]()
    for count, tag_mib in sizes:
        why = fits(count, tag_mib)
        if why:
            rows.append(Row("P1b", f"{count} loopback engines of {2 * tag_mib} MiB", why=f"left out: {why}"))
        else:
            rows += asyncio.run(measure(count, tag_mib, repeats, own))
    return rows
