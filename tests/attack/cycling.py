"""A driver that cycles one engine for some seconds, and tries again where another driver has it. Prints what it did.

Run as a program: URL, seconds, checkpoint, version, and the file of its store or nothing.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from lifecycle import EngineHeld, Fleet, FleetError, FromDisk, Policy
from lifecycle.store import Store


async def cycles(url: str, seconds: float, source: FromDisk, store: Store | None) -> dict[str, Any]:
    """What became of it: cycles completed, refusals by who was named, and every other error."""
    done, refused, errors = 0, dict[str, int](), list[str]()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            async with Fleet.connect([url], policy=Policy(poll_s=0.01), store=store) as fleet:
                while time.monotonic() < end:
                    try:
                        async with fleet.offloaded(weights=source):
                            await asyncio.sleep(0.02)  # the trainer's step
                        done += 1
                        await asyncio.sleep(random.uniform(0.1, 0.3))
                    except EngineHeld as held:
                        refused[held.who] = refused.get(held.who, 0) + 1
                        await asyncio.sleep(random.uniform(0.01, 0.05))
        except EngineHeld as held:  # attached in the middle of a call
            refused[held.who] = refused.get(held.who, 0) + 1
            await asyncio.sleep(0.05)
        except FleetError as error:
            errors.append(str(error))
            await asyncio.sleep(0.05)
    return {"cycles": done, "refused": refused, "errors": errors}


def main(url: str, seconds: str, path: str, version: str, store: str = "") -> None:
    """Prints the result as JSON."""
    kept = Store(Path(store)) if store else None
    print(json.dumps(asyncio.run(cycles(url, float(seconds), FromDisk(path, version), kept))))


if __name__ == "__main__":
    main(*sys.argv[1:])
