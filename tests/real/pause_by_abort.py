"""`python tests/real/pause_by_abort.py` measures a pause by abort of a real SGLang on a CPU, four streams in flight.

Its own abort (`abort=own`), and a retract with an abort of all requests, take turns on one server. Of each round it is
noted how long the pause and the drain after it took, when the last client had its end, and what every client got.
`--write` adds the result to docs/measured/pause-by-abort.json and makes the page beside it anew; `--overlap` turns
overlap scheduling on, `--tokenizers N` starts so many tokenizer workers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import server as servers
from lane import PROMPTS, Streams, ask, output
from lifecycle.adapters.sglang import SGLangAdapter
from server import RealSGLang

from lifecycle import Engine, Policy
from lifecycle.nodes.address import parse

PAGE = Path(__file__).resolve().parents[2] / "docs" / "measured" / "pause-by-abort.md"
WAYS = ("own", "retract")
TOKENS = 300

HEAD = """# A pause by abort of a real SGLang

Made by `python tests/real/pause_by_abort.py --write`; do not edit. Four streams are in flight on a CPU; the two ways
take turns on one server. *Own* is `pause_generation {mode: abort}`, *retract* the retract and the abort of all requests
that the adapter sends. Median (least to most) of the rounds, in milliseconds. What the clients got is their number by
the reason with which they ended; each had the first tokens of what it answers when it is left alone, and none hung.

| SGLang | date, commit | options | load | way | rounds | pause | pause and drain | last client ended | clients got |
|---|---|---|---|---|---|---|---|---|---|
"""


async def paused(server: RealSGLang, way: str, alone: dict[str, list[int]]) -> dict[str, Any]:
    """One round: what it took, and what the clients got."""
    policy = Policy(unprovable="warn", deadlines_s={"pause": 60, "drain": 60, "resume": 60})
    adapter = SGLangAdapter(parse(f"sglang://127.0.0.1:{server.port}?abort={way}"))
    engine = await Engine(adapter, name="e", lease=None, policy=policy).connect()
    try:
        streams = await asyncio.to_thread(Streams(server, tokens=TOKENS).start)
        begun = time.monotonic()
        ended = asyncio.create_task(_ended(streams, begun))
        await engine.pause("abort")
        pause_s = time.monotonic() - begun
        await engine.drain()
        drained_s = time.monotonic() - begun
        ends, clients_s = await ended
        await engine.resume()
    finally:
        await engine.aclose()
    for prompt, (ids, reason) in ends.items():
        assert ids, f"{prompt}: no token"
        assert ids == alone[prompt][: len(ids)], f"{prompt}: not what it answers when left alone"
        assert len(ids) < TOKENS, f"{prompt}: it had ended by itself"
        assert reason is not None
    got = Counter(f"{reason['type']}: {reason.get('message')}" for _, reason in ends.values() if reason)
    return {"pause_s": pause_s, "drained_s": drained_s, "clients_s": clients_s, "got": dict(got)}


async def _ended(streams: Streams, begun: float) -> tuple[dict[str, Any], float]:
    ends = await asyncio.to_thread(streams.join)
    return ends, time.monotonic() - begun


async def measured(server: RealSGLang, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """The rounds of both ways, which take turns; before them each way once, which is not counted."""
    alone = {prompt: await asyncio.to_thread(output, server, prompt, TOKENS) for prompt in PROMPTS}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(rounds + 1):
        for way in WAYS:
            result = await paused(server, way, alone)
            print(turn, way, json.dumps(result), flush=True)
            found[way] += [result] if turn else []
    return found


def row(run: dict[str, Any], way: str) -> str:
    """A line of the page."""
    rounds = run["rounds"][way]
    figures = [_median([each[name] for each in rounds]) for name in ("pause_s", "drained_s", "clients_s")]
    got: Counter[str] = Counter()
    for each in rounds:
        got.update(each["got"])
    clients = "; ".join(f"{count} x {reason}" for reason, count in got.items())
    parts = [run["sglang"], f"{run['date']}, {run['commit']}", run["options"], run["load"], way, str(len(rounds))]
    return f"| {' | '.join([*parts, *figures, clients])} |"


def _median(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e3:.0f} ({min(seconds) * 1e3:.0f} to {max(seconds) * 1e3:.0f})"


def write(run: dict[str, Any]) -> None:
    """The run stands in the page, in place of an earlier one with the same options."""
    path = PAGE.with_suffix(".json")
    before = json.loads(path.read_text()) if path.exists() else []
    runs = [each for each in before if (each["sglang"], each["options"]) != (run["sglang"], run["options"])] + [run]
    path.write_text(json.dumps(runs, indent=1) + "\n")
    PAGE.write_text(HEAD + "".join(f"{row(each, way)}\n" for each in runs for way in WAYS))


def main() -> None:
    """The server was measured and stopped."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--tokenizers", type=int, default=1)
    parser.add_argument("--start-s", type=float, default=300.0, help="how long the server may take to start")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    extra = ["--log-level", "warning"]
    extra += ["--tokenizer-worker-num", str(options.tokenizers)] if options.tokenizers > 1 else []
    if options.overlap:
        servers.ARGUMENTS = servers.ARGUMENTS.replace("--disable-overlap-schedule", "")
    with RealSGLang(extra=extra, deadline_s=options.start_s) as server:
        version = ask(server, "/server_info")["version"]
        found = asyncio.run(measured(server, options.rounds))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    said = f"overlap {'on' if options.overlap else 'off'}, {options.tokenizers} tokenizer"
    cores = f"{os.cpu_count()} cores of {platform.machine()}, load {os.getloadavg()[0]:.0f}"
    run = {"sglang": version, "date": time.strftime("%Y-%m-%d"), "commit": commit.stdout.strip(), "options": said}
    run |= {"load": cores, "rounds": found}
    print("\n".join(row(run, way) for way in WAYS))
    if options.write:
        write(run)


if __name__ == "__main__":
    sys.exit(main())
