"""`make bench`: what a proved cycle costs, beside what is needed and what users write; docs/measured/bench.{json,md}.

    python benchmarks/bench.py                     # everything, under 15 minutes on 2 cores; writes both
    python benchmarks/bench.py --only P1 P5        # some parts; prints the table, and writes nothing
    python benchmarks/bench.py --check             # fails where a ratio is over twice the committed one; writes nothing
    python benchmarks/bench.py --counts [--write]  # counts alone, which are exact: benchmarks/counts.py

Each part is a module with a function `run` that returns rows. benchmarks/README.md says what each measures, against
what, and what the targets are. Times are of one machine, and only ratios of one run are compared.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import results
from results import Row

#: A fleet of 10,000 engines is cycled again only where the first time took no longer.
AGAIN_S = 40.0
#: What measures P3 and P4, where it is there.
COMMAND_COST = "command_cost"
HTTP_PACKAGES = ("requests", "httpx")


def _missing() -> list[str]:
    return [name for name in HTTP_PACKAGES if find_spec(name) is None]


def p1(repeats: int) -> list[Row]:
    """A cycle over engines that answer at once."""
    return list(import_module("part_cycle").run(repeats, http=not _missing()))


def p1b(repeats: int) -> list[Row]:
    """The same over loopback engines with real memory."""
    return list(import_module("part_memory").run(repeats))


def p2(repeats: int) -> list[Row]:
    """The same over slow engines."""
    return list(import_module("part_cycle").run_slow(repeats))


def p3(repeats: int) -> list[Row]:
    """One command of an adapter that does nothing."""
    cost = import_module(COMMAND_COST)
    found: list[dict[str, Any]] = sorted((cost.p3() for _ in range(repeats)), key=lambda each: each["ratio"])
    took = found[len(found) // 2]
    each = {"unit": "us", "floor": took["events_us"]}
    return [
        Row("P3", "one command by its `transitions` events", took["command_us"], target=5, **each),
        Row("P3", "one command with store by its `transitions` events", took["stored_us"], target=8, **each),
    ]


def p4(repeats: int) -> list[Row]:
    """Fleets of 1,000 and 10,000 engines."""
    cost, found = import_module(COMMAND_COST), list[dict[str, Any]]()
    for _ in range(repeats):
        begun = time.perf_counter()
        found.append(cost.p4((1000, 10_000)))
        if time.perf_counter() - begun > AGAIN_S:
            break
    took = sorted(found, key=lambda each: each["ratio"]["10000/1000"])[len(found) // 2]
    seconds = {count: each["cycle_s"] for count, each in took["seconds"].items()}
    calls = list(took["calls_per_engine"].values())
    ms, kib = took["ms_per_engine"], took["kib_after_a_cycle"]
    return [
        Row("P4", f"10,000 engines by 1,000, median of {len(found)}", seconds["10000"], seconds["1000"], target=12),
        Row("P4", "Python calls an engine, 200 engines by 20", calls[-1], calls[0], unit="calls", target=1.05),
        Row("P4", "an engine of 10,000, ms", ms, unit="ms", value=ms, target=3),
        Row("P4", "an engine after a cycle, KiB", kib, unit="KiB", value=kib, target=3.5),
    ]


def p5(repeats: int) -> list[Row]:
    """From the last request to drained."""
    return list(import_module("part_drain").run(repeats))


def hosts(repeats: int) -> list[Row]:
    """Connect and residual of many engines on one host, and P9."""
    return list(import_module("part_hosts").run(repeats))


PARTS: dict[str, Callable[[int], list[Row]]] = {
    "P1": p1,
    "P1b": p1b,
    "P2": p2,
    "P3": p3,
    "P4": p4,
    "P5": p5,
    "hosts": hosts,
}


def measure(chosen: Sequence[str], repeats: int) -> tuple[list[Row], list[str]]:
    """The rows of these parts, and what was left out."""
    rows, skipped = list[Row](), list[str]()
    if "P1" in chosen and _missing():
        skipped.append(f"the users' calls of P1: {', '.join(_missing())} not installed (pip install '.[bench]')")
    for name in chosen:
        if name in ("P3", "P4") and find_spec(COMMAND_COST) is None:
            skipped.append(f"{name}: there is no benchmarks/{COMMAND_COST}.py")
            continue
        begun = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        rows += PARTS[name](repeats)
        print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return rows, skipped


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table, and writes or checks it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="these parts; nothing is written")
    parser.add_argument("--repeats", type=int, default=3, help="of which medians are taken (%(default)s)")
    parser.add_argument("--check", action="store_true", help="compare ratios with the committed ones; write nothing")
    parser.add_argument("--counts", action="store_true", help="compare counts with the committed ones")
    parser.add_argument("--write", action="store_true", help="with --counts: commit to what there is now")
    options = parser.parse_args(arguments)
    logging.getLogger("lifecycle").setLevel(logging.ERROR)
    if options.counts:
        return int(import_module("counts").main(write=options.write))
    load, begun = results.load(), time.monotonic()
    rows, skipped = measure(options.only or list(PARTS), options.repeats)
    facts = results.about(load, time.monotonic() - begun, skipped)
    print(results.table(rows))
    print(f"load {results.load()} after, {load} before; {facts['seconds']} s; commit {facts['commit']}")
    for each in skipped:
        print(f"left out: {each}")
    if options.check:
        before = results.committed()
        worse = results.worse(rows, before)
        fine = f"no ratio is more than {results.WORSE:g} x the committed one"
        print("\n".join(worse) or (fine if before else f"nothing to compare with: there is no {results.JSON}"))
        return 1 if worse else 0
    if options.only is None:
        results.JSON.write_text(json.dumps(results.as_json(rows, facts), indent=1) + "\n")
        results.PAGE.write_text(results.page(rows, facts))
        calls = import_module("calls_page")
        calls.PAGE.write_text(calls.page())
        print(f"written: {results.JSON}, {results.PAGE}, {calls.PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
