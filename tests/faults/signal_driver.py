"""A trainer in Python: it opens a window, and stays in it for some seconds. Run as a program: seconds, path, URL..."""

from __future__ import annotations

import asyncio
import sys

from lifecycle import Fleet, FromDisk, Policy


async def train(seconds: float, path: str, urls: list[str]) -> None:
    """One step of training. Where it is interrupted it prints where its engines are by then."""
    async with Fleet.connect(urls, policy=Policy(residual_threshold_gib=0.125, poll_s=0.02)) as fleet:
        try:
            async with fleet.offloaded(weights=FromDisk(path, "step-1")):
                print("released", flush=True)
                await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            print(", ".join(f"{each.name} is {each.state}" for each in fleet), flush=True)
            raise


if __name__ == "__main__":
    try:
        asyncio.run(train(float(sys.argv[1]), sys.argv[2], sys.argv[3:]))
    except KeyboardInterrupt:
        sys.exit(130)
