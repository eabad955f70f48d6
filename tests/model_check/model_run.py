"""`make model`: walks every scenario to its bound, and prints a line for each: states, transitions, depth, violations.

Each scenario runs in a process of its own, as many at once as there are cores (`--jobs`). `--trace FILE` writes the
shortest violation as a test that repeats it, `--page FILE` what came of all (docs/measured/model.md), with the faults
of `put_back.py` and what SPIN says. Exit code 1: something was violated, or a scenario that is to be walked to its end
was not, or a fault that was put back was not found.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), *(str(HERE.parent / name) for name in ("", "lanes", "properties"))]

from explore import Found, walk  # noqa: E402 - the folders of tests are no packages
from model_page import page  # noqa: E402
from put_back import PUT_BACK  # noqa: E402
from record_long import where  # noqa: E402
from scenarios import all_of  # noqa: E402
from spin_model import FAULTS, Bounds  # noqa: E402
from spin_run import CLAIMS, lacking, searched  # noqa: E402
from story import as_test  # noqa: E402


@dataclass(frozen=True, slots=True)
class Job:
    """One scenario. `bounded`: it need not come to its end in its time."""

    engines: int
    budget: int
    key: str
    limit_s: float
    bounded: bool = False

    @property
    def order(self) -> tuple[int, int]:
        """How the page orders them."""
        return self.engines, self.budget


def short() -> Iterator[Job]:
    """One engine, one deviation: to the end."""
    yield from (Job(1, 1, key, 120.0) for key in all_of(1, 1))


def long() -> Iterator[Job]:
    """Two engines too; and with a bound, three engines, and one engine with two deviations."""
    yield from (Job(2, 1, key, 500.0) for key in all_of(2, 1))
    yield from short()
    yield from (Job(3, 1, key, 60.0, bounded=True) for key in ("faults of calls", "a driver is killed"))
    yield from (Job(1, 2, key, 60.0, bounded=True) for key in ("faults of calls", "two drivers"))


def walked(job: Job) -> Found:
    """One scenario, walked."""
    logging.disable(logging.CRITICAL)
    return walk(all_of(job.engines, job.budget)[job.key], limit_s=job.limit_s)


def all_walked(jobs: Sequence[Job], workers: int, tell: Callable[[Found], None]) -> dict[Job, Found]:
    """What came of each."""
    found: dict[Job, Found] = {}
    with ProcessPoolExecutor(max_workers=workers) as pool:
        work = {pool.submit(walked, job): job for job in jobs}
        for done in as_completed(work):
            found[work[done]] = done.result()
            tell(done.result())
    return found


def with_fault(name: str) -> Found:
    """What came of the scenario in which this fault is found, with the fault put back."""
    logging.disable(logging.CRITICAL)
    fault = PUT_BACK[name]
    fault.put_back(_replaced)
    return walk(all_of(fault.engines, fault.budget)[fault.scenario], limit_s=200.0, to_the_first=True)


def _replaced(where: Any, what: str, value: Any, *, raising: bool = True) -> None:
    """As pytest's `setattr`: a name that is not there is an error, and no fault that was put back."""
    if raising:
        getattr(where, what)
    setattr(where, what, value)


def all_put_back(workers: int) -> dict[str, Found]:
    """What came of each fault, each in a process of its own."""
    with ProcessPoolExecutor(max_workers=workers, max_tasks_per_child=1) as pool:
        return dict(zip(PUT_BACK, pool.map(with_fault, PUT_BACK), strict=True))


def spin_says() -> list[str]:
    """A line for each claim, and for each fault that is put into the model of SPIN."""
    if lacking():
        return [f"not asked: {', '.join(lacking())} not installed"]
    told = {True: "sizes tell the tags apart", False: "tags of one size"}
    claims = [(tell, claim) for tell in told for claim in CLAIMS]
    lines = [f"{searched(claim, Bounds(bytes_tell=tell))} ({told[tell]})" for tell, claim in claims]
    found = {fault: searched("serving", Bounds(), fault) for fault in FAULTS}
    return [*lines, *(f"put in, {name}: {each}, with its trail" for name, each in found.items())]


def failed(job: Job, found: Found) -> bool:
    """Whether something was violated, or the scenario was to come to its end and did not."""
    return bool(found.broken) or not (found.complete or job.bounded)


def write_trace(found: dict[Job, Found], file: Path) -> bool:
    """The shortest violation, as a test; whether there was one."""
    broken = [(job, each) for job, came in found.items() for each in came.broken.values()]
    if broken:
        job, shortest = min(broken, key=lambda trace: len(trace[1].path))
        file.write_text(as_test(shortest, found[job].name, job.engines, job.budget, job.key))
    return bool(broken)


def main(arguments: Sequence[str] | None = None) -> int:
    """Walks all of them."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--short", action="store_true", help="one engine, one deviation")
    asked.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="how many at once")
    asked.add_argument("--trace", type=Path, help="writes the shortest violation as a test")
    asked.add_argument("--page", type=Path, help="writes what came of all of them")
    given = asked.parse_args(arguments)
    command = (
        f"`python tests/model_check/model_run.py --short`, {given.jobs} at once" if given.short else "`make model`"
    )
    facts, began = {**where(), "command": command}, time.monotonic()
    found = all_walked(list(short() if given.short else long()), given.jobs, lambda each: print(each, flush=True))
    seconds = time.monotonic() - began
    for job, each in found.items():
        for broken in each.broken.values() if failed(job, each) else ():
            print(f"\n{each.name}: {broken}")
    if given.trace is not None:
        print(f"written: {given.trace}" if write_trace(found, given.trace) else "there is no trace to write")
    missed: list[str] = []
    if given.page is not None:
        ordered, put_back = [found[job] for job in sorted(found, key=lambda job: job.order)], all_put_back(given.jobs)
        missed = [name for name, each in put_back.items() if not each.broken]
        given.page.write_text(page(ordered, seconds, facts, put_back=put_back, spin=spin_says()))
        print(f"faults put back: {len(put_back)}, not found: {', '.join(missed) or 'none'}; written: {given.page}")
    return int(bool(missed) or any(failed(job, each) for job, each in found.items()))


if __name__ == "__main__":
    sys.exit(main())
