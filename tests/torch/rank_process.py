"""One rank as a process of its own: a fleet of a scripted engine that votes over a TCPStore. Forked by the tests."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "core"))

from lifecycle.adapters.torch_distributed import StoreAgreement
from rig import V1, new_engine

from lifecycle import AgreementError, Fleet, FleetError
from lifecycle.testing import REJECTED, Act

#: Where a rank ends: the call or question of its engine in each phase, and the barriers between them.
CALLS = {
    "pause": "pause",
    "drain": "prove_idle",
    "release": "release",
    "restore_weights": "restore",
    "update_weights": "load",
    "restore_kv": "flush",
    "resume": "resume",
}


def killed(*_: Any) -> None:
    """This process has ended, and says nothing of it."""
    os.kill(os.getpid(), signal.SIGKILL)


class EndsAt(StoreAgreement):
    """Ends this process once its vote on a phase stands in the store."""

    phase = ""

    def _vote(self, number: int, text: str) -> None:
        super()._vote(number, text)
        if self.phase and f'"{self.phase}"' in text:
            killed()


async def _cycle(pipe: Connection, rank: int, world_size: int, port: int, name: str, how: dict[str, str]) -> None:
    agreement = EndsAt.connect(
        "127.0.0.1", port, rank=rank, world_size=world_size, hosts=False, name=name, rejoins=how.get("rejoins") == "yes"
    )
    agreement.phase = how.get("voted", "")
    engine = new_engine(f"e{rank}")
    fleet = Fleet([engine], agreement=agreement)
    async with fleet:
        if how.get("killed") in CALLS:
            engine.adapter.always(CALLS[how["killed"]], Act(then=killed))
        if how.get("refuses") in CALLS:
            engine.adapter.always(CALLS[how["refuses"]], REJECTED)
        if how.get("refuses") == "begin":
            engine._session.go("contradicted", reason="a test")
        verbs = {
            "offload": lambda: fleet.offload(weights=V1, deadline_s=float(how["offload"])),
            "onload": lambda: fleet.onload(deadline_s=float(how["onload"])),
        }
        pipe.send("ready")
        pipe.recv()
        if how.get("killed") == "start":
            killed()
        for verb in how["verbs"].split():
            said = await _said(verbs[verb])
            pipe.send((*said, str(engine.state), list(engine.adapter.engine.violations)))
            if how.get("killed") == "training" and said[0] == "done":
                killed()
    pipe.send(None)


async def _said(verb: Callable[[], Any]) -> tuple[str, str, list[tuple[str, int, str]], float]:
    """How the verb ended, in words; of which ranks it said something; and how long it took."""
    begun = time.monotonic()
    try:
        await verb()
    except FleetError as error:
        ranks = [
            (type(each).__name__, each.rank, each.phase)
            for each in error.exceptions
            if isinstance(each, AgreementError)
        ]
        return "failed", str(error), ranks, time.monotonic() - begun
    return "done", "", [], time.monotonic() - begun


def run_rank(pipe: Connection, rank: int, world_size: int, port: int) -> None:
    """What a forked process runs: one cycle after the other, until there is no more."""
    while (job := pipe.recv()) is not None:
        asyncio.run(_cycle(pipe, rank, world_size, port, *job))
