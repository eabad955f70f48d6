"""The trainer: a process that allocates the memory that the engines released, and measures its own.

`python -m lifecycle.demo.trainer --mib N` maps and writes N MiB, prints one JSON line, and holds the memory until its
standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from ..core.units import MIB

_DEADLINE_S = 30.0


class TrainerFailed(RuntimeError):
    """Raised where the trainer could not allocate the memory."""


@dataclass(frozen=True, slots=True)
class Trainer:
    """A running trainer, and its own proportional set size in bytes."""

    pid: int
    pss_bytes: int


@asynccontextmanager
async def training(mib: int) -> AsyncIterator[Trainer]:
    """Starts a process that holds `mib` MiB, and ends it in the end. Raises TrainerFailed."""
    command = (sys.executable, "-m", __name__, "--mib", str(mib))
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), _DEADLINE_S)
        if not line:
            raise TrainerFailed(f"the trainer ended before it held {mib} MiB")
        yield Trainer(**json.loads(line))
        process.stdin.close()
        await asyncio.wait_for(process.wait(), _DEADLINE_S)
    except TimeoutError:
        raise TrainerFailed(f"the trainer neither took {mib} MiB nor ended in {_DEADLINE_S:.0f} s") from None
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def main() -> None:
    """Holds the memory until standard input ends."""
    from ..nodes.process_memory import pss_bytes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, required=True)
    memory = _allocate(parser.parse_args().mib * MIB)
    print(json.dumps({"pid": os.getpid(), "pss_bytes": pss_bytes(os.getpid())}), flush=True)
    sys.stdin.buffer.read()
    memory.close()


def _allocate(size_bytes: int) -> mmap.mmap:
    """Maps anonymous private memory and writes a byte into every page, since a mapping alone uses no memory."""
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, size_bytes, mmap.PAGESIZE):
        memory[start] = 1
    return memory


if __name__ == "__main__":
    main()
