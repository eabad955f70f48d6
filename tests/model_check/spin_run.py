"""Runs SPIN over the model of `spin_model.py`: what was searched, what was found, and the trail of an error.

SPIN and a C compiler are Debian packages (`spin`, `gcc`). `python tests/model_check/spin_run.py` prints a line for
each claim and each fault that is put in.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from spin_model import FAULTS, Bounds, promela

#: The claims of the model, by the name of their formula, and what each says.
CLAIMS = {
    "released": "what is released is unmapped, and what is given to the next tenant is free",
    "serving": "what serves has mapped and valid weights and a fresh cache",
    "comes_home": "a driver that wants it to serve brings it there, or to a dead end",
}

#: The one claim of liveness. It needs weak fairness; and a process that may die never has to come home.
LIVENESS = "comes_home"

#: States that a depth-first search may have open at once; the search is not complete where it was deeper.
_DEPTH = 1_000_000


@dataclass(frozen=True, slots=True)
class Searched:
    """What one search came to. `error` is what was violated, `trail` the steps that lead there, as SPIN prints them."""

    claim: str
    states: int
    depth: int
    seconds: float
    complete: bool
    error: str = ""
    trail: str = ""

    def __str__(self) -> str:
        found = f"1 error: {self.error}" if self.error else "0 errors"
        how = "" if self.complete else ", NOT complete"
        return f"SPIN, {self.claim}: {self.states:,} states, depth {self.depth}, {self.seconds:.2f} s{how}; {found}"


def lacking() -> list[str]:
    """The programs that are needed and are not installed."""
    return [name for name in ("spin", "gcc") if shutil.which(name) is None]


def searched(claim: str, bounds: Bounds, fault: str = "", *, limit_s: float = 120.0) -> Searched:
    """All states of the model within these bounds, searched for what denies a claim.

    Raises TimeoutExpired after `limit_s`, CalledProcessError where the model cannot be built.
    """
    live = claim == LIVENESS
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "model.pml").write_text(promela(bounds, fault))
        _ran(["spin", "-a", "model.pml"], place, limit_s)
        # Without optimisation: the generated C takes longer to optimise than to run.
        _ran(["gcc", *(["-DNFAIR=3"] if live else ["-DSAFETY"]), "-o", "pan", "pan.c"], place, limit_s)
        said = _ran(["./pan", *(["-a", "-f"] if live else []), f"-m{_DEPTH}", "-N", claim], place, limit_s)
        trail = _ran(["spin", "-t", "-p", "-g", "model.pml"], place, limit_s) if list(place.glob("*.trail")) else ""
    return _read(claim, said, trail)


def _ran(command: list[str], place: Path, limit_s: float) -> str:
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True, timeout=limit_s)
    return ended.stdout


def _read(claim: str, said: str, trail: str) -> Searched:
    error = re.search(r"pan:1: (.*) \(at depth", said)
    return Searched(
        claim,
        states=int(_found(r"(\d+) states, stored", said)),
        depth=int(_found(r"depth reached (\d+)", said)),
        seconds=float(_found(r"elapsed time ([\d.e+-]+) seconds", said)),
        complete="max search depth too small" not in said and "Search not completed" not in said,
        error=error.group(1) if error else "",
        trail=trail,
    )


def _found(pattern: str, said: str) -> str:
    found = re.search(pattern, said)
    if found is None:
        raise ValueError(f"SPIN did not say {pattern!r}: {said}")
    return found.group(1)


def main() -> int:
    """Prints a line for each claim, with and without sizes that tell the tags apart, and for each fault put in."""
    wrong = 0
    for tell in (True, False):
        print("sizes tell the tags apart:" if tell else "tags of one size:")
        for claim in CLAIMS:
            found = searched(claim, Bounds(bytes_tell=tell))
            wrong += bool(found.error) or not found.complete
            print(f"  {found}")
    for fault in FAULTS:
        found = searched("serving", Bounds(), fault)
        wrong += not found.error
        print(f"put in, {fault}: {found}; a trail of {len(found.trail.splitlines())} lines")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
