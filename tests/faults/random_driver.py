"""A driver that is told what to do: a line of JSON is a command, and a line of JSON is what became of it.

Run as a program: the URLs of its engines. It prints which command it begins on which engine, and which failed, so that
somebody else knows when to interfere.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
from typing import Any

from lifecycle import Fleet, FromDisk, Policy, State
from lifecycle.core.observer import BaseObserver

#: Seconds that a command of a cycle may take: an engine that is stopped, or does not answer, fails it.
DEADLINE_S = 2.0
COMMANDS = ("pause", "drain", "release", "restore_weights", "update_weights", "restore_kv", "resume")
POLICY = Policy(
    residual_threshold_gib=0.0625, poll_s=0.02, settle_s=0.5, deadlines_s=dict.fromkeys(COMMANDS, DEADLINE_S)
)

#: Seconds in which every engine is to be found and brought home.
HOME_S = 20.0


def say(**what: Any) -> None:
    """One line."""
    print(json.dumps(what), flush=True)


class Tells(BaseObserver):
    """Prints which commands begin, and which fail."""

    def command_started(self, engine: str, command: Any, state: State) -> None:
        say(began=[engine, command.name])

    def command_ended(self, engine: str, command: Any, result: Any, duration_s: float) -> None:
        if isinstance(result, BaseException):
            say(failed=[engine, command.name])


async def cycle(fleet: Fleet, path: str, version: str, mode: Any) -> dict[str, Any]:
    """One window; what it raised, where it did."""
    try:
        async with fleet.offloaded(weights=FromDisk(path, version), mode=mode):
            await asyncio.sleep(0.02)  # the trainer's step
    except asyncio.CancelledError:
        return {"error": "CancelledError", "why": ""}
    except Exception as error:
        return {"error": type(error).__name__, "why": "; ".join([str(error), *getattr(error, "__notes__", ())])}
    return {"error": ""}


async def home(fleet: Fleet) -> dict[str, Any]:
    """Where every engine is after one recovery, and why; with which weights."""
    found = await fleet.recover(to="serving", deadline_s=HOME_S)
    return {name: [each.state, each.reason, fleet[name].desired.version] for name, each in found.items()}


def measured() -> dict[str, int]:
    """What this process holds."""
    gc.collect()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "descriptors": len(os.listdir("/proc/self/fd")) - 1,  # the one that lists them
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
        "resident KiB": resident // 1024,
    }


async def serve(urls: list[str]) -> None:
    """Does what it is told, until its input ends."""
    lines, loop = asyncio.StreamReader(), asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with Fleet.connect(urls, policy=POLICY, observers=[Tells()]) as fleet:
        say(done="connect")
        task: asyncio.Task[Any] | None = None
        while line := await lines.readline():
            asked = json.loads(line)
            match asked.pop("do"):
                case "cycle":
                    task = asyncio.create_task(_told("cycle", cycle(fleet, **asked)))
                case "cancel":
                    if task is not None:
                        task.cancel()
                case "home":
                    task = asyncio.create_task(_told("home", home(fleet)))
                case "measure":
                    task = None
                    say(done="measure", **measured())


async def _told(name: str, doing: Any) -> None:
    say(done=name, result=await doing)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1:]))
