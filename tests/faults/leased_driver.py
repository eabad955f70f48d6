"""A driver that holds a window on one engine, under a lease of a table that another process keeps.

Run as a program: the port of the table, the engine's URL, a checkpoint, its version. It prints a line once it is inside
the window, blocks its event loop until it reads a line, ends the window, and prints how that was.
"""

from __future__ import annotations

import asyncio
import json
import sys
from multiprocessing.managers import BaseManager
from typing import Any

from lifecycle import Fleet, FleetError, FromDisk, LifecycleError, Policy
from lifecycle.store.lease_table import LeaseTable
from lifecycle.store.leases import RenewingHolder

KEY = b"leases of a test"
#: Seconds after which a lease ends that is not renewed.
TTL_S = 1.0

_TABLE = LeaseTable(TTL_S)


class Tables(BaseManager):
    """Serves the one table of a process to others."""


Tables.register("table", callable=lambda: _TABLE, exposed=("take", "free", "seen", "renew"))


def asked(port: int) -> RenewingHolder:
    """The holder that asks the table on this port."""
    manager = Tables(("127.0.0.1", port), KEY)
    manager.connect()
    table = manager.table()  # type: ignore[attr-defined]
    return RenewingHolder(lambda what, **about: getattr(table, what)(**about), renew_s=TTL_S / 4)


async def window(port: int, url: str, source: FromDisk) -> dict[str, Any]:
    """What became of a window whose trainer kept the loop busy."""
    async with Fleet.connect([url], policy=Policy(poll_s=0.01), lease=asked(port)) as fleet:
        try:
            async with fleet.offloaded(weights=source):
                print("inside", flush=True)
                sys.stdin.readline()
        except (FleetError, LifecycleError) as error:
            return {"state": str(fleet.engines[0].state), "error": str(error)}
        return {"state": str(fleet.engines[0].state), "error": None}


if __name__ == "__main__":
    _, port_, url_, path_, version_ = sys.argv
    print(json.dumps(asyncio.run(window(int(port_), url_, FromDisk(path_, version_)))), flush=True)
