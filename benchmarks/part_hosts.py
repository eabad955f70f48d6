"""Connect of many engines on one host, the residual of 64 of them, and P9: what importing costs.

Every engine here is a small process of its own, so that processes, sockets and memory are those of a real host. A
connect runs in a process of its own, which is ended where it takes longer than `LIMIT_S`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from compileall import compile_dir
from pathlib import Path

import clients
import psutil
from fakes import MEASURED, Fakes
from results import ROOT, Row, median

from lifecycle import Fleet
from lifecycle.nodes.probes import probe_for

COUNTS = (64, 256, 1000)
LIMIT_S = 75.0
THREE = (clients.Ask("GET", "/server_info"), clients.Ask("POST", "/abort_request"), clients.Ask("GET", "/model_info"))


async def three_calls_and_a_scan(fakes: Fakes) -> None:
    """What is needed to know N engines of this host: three calls each, and one look at its sockets."""
    async with clients.bare() as session:
        scan = asyncio.to_thread(psutil.net_connections, "tcp")
        await asyncio.gather(scan, *(clients.one_after_another(session, base, THREE) for base in fakes.bases))


async def connecting(count: int, repeats: int) -> dict[str, float]:
    """Seconds of a connect, and of its floor."""
    ours, floor = list[float](), list[float]()
    with Fakes.start(count, apart=True) as fakes:
        for _ in range(repeats):
            begun = time.perf_counter()
            async with Fleet.connect(fakes.urls, policy=MEASURED, lease=None):
                ours.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            await three_calls_and_a_scan(fakes)
            floor.append(time.perf_counter() - begun)
    return {"ours": median(ours), "floor": median(floor)}


def connect(count: int, repeats: int) -> Row:
    """The row of one count, in a process of its own."""
    command = [sys.executable, __file__, "connect", str(count), str(repeats)]
    what = f"connect of {count} engines on one host by three calls and one scan"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said, complained = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()  # its fake engines end with it: their standard input is closed
            return Row("connect", what, target=2, why=f"not connected {repeats} times in {LIMIT_S:g} s")
    if process.returncode:
        return Row("connect", what, target=2, why=f"failed: {_reason(complained)}")
    took = json.loads(said)
    return Row("connect", what, took["ours"], took["floor"], target=2)


def _reason(complained: str) -> str:
    """The beginning of what a traceback ends with, without its module."""
    said = complained.strip().splitlines()[-1].rpartition("errors.")[2]
    return said if len(said) <= 90 else f"{said[:90]}..."


def read_once(pids: Sequence[int]) -> int:
    """What is needed to weigh these processes: one reading of the process table, and one file each."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


async def residual(count: int, repeats: int) -> Row:
    """The residual of so many engines of one host, asked at once as a phase does."""
    ours, floor = list[float](), list[float]()
    with Fakes.start(count, apart=True, tag_mib=16) as fakes:
        async with Fleet.connect(fakes.urls, policy=MEASURED, lease=None) as fleet:
            probe = probe_for(fleet.engines[0].capabilities, MEASURED)
            roots = [await each.adapter.processes() for each in fleet]
            for number in range(repeats + 1):
                begun = time.perf_counter()
                await asyncio.gather(*(probe.read(each or (), deadline_s=30) for each in roots))
                between = time.perf_counter()
                await asyncio.to_thread(read_once, fakes.pids)
                if number:
                    ours.append(between - begun)
                    floor.append(time.perf_counter() - between)
    what = f"of {count} engines on one host by one table and one smaps_rollup each"
    return Row("residual", what, median(ours), median(floor), target=1.5)


def imports(repeats: int) -> list[Row]:
    """P9: seconds beyond `python -c pass`, of the package as an installer leaves it: its bytecode is written.

    Whether this process writes bytecode (PYTHONDONTWRITEBYTECODE) says nothing of that.
    """
    codes = {
        "pass": "pass",
        "import lifecycle": "import lifecycle",
        "from lifecycle import Fleet": "from lifecycle import Fleet",
        "lifecycle --help": "import sys; from lifecycle.cli import main; sys.exit(main(['--help']))",
    }
    took: dict[str, list[float]] = {name: [] for name in codes}
    with tempfile.TemporaryDirectory() as folder:
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "lifecycle", Path(folder) / "lifecycle", ignore=skip)
        shutil.copytree(ROOT / "adapters", Path(folder) / "lifecycle" / "adapters", ignore=skip)
        compile_dir(folder, quiet=2)
        for number in range(repeats + 1):
            for name, code in codes.items():
                begun = time.perf_counter()
                command = [sys.executable, "-c", code]
                environment = {**os.environ, "PYTHONPATH": folder}
                subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
                if number:
                    took[name].append(time.perf_counter() - begun)
    floor = median(took.pop("pass"))
    targets = {"import lifecycle": 0.2, "from lifecycle import Fleet": 0.2, "lifecycle --help": 0.4}
    rows = []
    for name, seconds in took.items():
        more = median(seconds) - floor
        rows.append(Row("P9", f"`{name}`, seconds more", median(seconds), floor, value=more, target=targets[name]))
    return rows


def run(repeats: int = 3, counts: Sequence[int] = COUNTS) -> list[Row]:
    """The rows of connect, residual and P9."""
    connects = [connect(count, repeats) for count in counts]
    return [*connects, asyncio.run(residual(64, repeats)), *imports(2 * repeats + 1)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["connect"])
    parser.add_argument("count", type=int)
    parser.add_argument("repeats", type=int)
    chosen = parser.parse_args()
    print(json.dumps(asyncio.run(connecting(chosen.count, chosen.repeats))))
