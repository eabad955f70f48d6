"""`python tests/peers/run_peer.py PEER` runs every fault with the peer's own code and with the shim.

A process of its own for each peer, since its requirements are replaced in it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "examples")]

import peer_packages  # noqa: E402
import peer_step  # noqa: E402
from functions_run import FunctionsRun, merged  # noqa: E402


def run(peer: str, faults: list[str], codes: list[str], traced: bool) -> dict[str, Any]:
    """The outcomes, the functions of the peer that ran by whose code (where `traced`), and the hollow modules."""
    folder = peer_packages.folder_of(peer)
    sys.path.append(str(folder))
    loop: Any = importlib.import_module(f"{peer}_loop")
    tokens = peer_step.vllm_tokens if str(loop.DIALECT).startswith("vllm") else peer_step.sglang_tokens
    known = peer_step.known_tokens(loop.DIALECT, tokens)
    ran, outcomes = {code: FunctionsRun(folder / peer) for code in codes}, []
    shim: Any = importlib.import_module(f"{peer}_managed")
    for name, (ways, step) in loop.LOOPS.items():
        for fault in (each for each in ways if each in faults):
            for code in codes:
                outcome = peer_step.Outcome(name, fault, code, traced=traced and fault == "none")
                if hasattr(loop, "prepare"):
                    loop.prepare()
                recording = ran[code].recording() if outcome.traced else nullcontext()
                with peer_step.engines(loop.DIALECT, fault, loop.ENGINES, known) as engines:
                    with recording, peer_step.recorded(outcome, engines):
                        step(engines, outcome, shim.managed(engines) if code == "ours" else None)
                    outcome.engines = engines.found(tokens)
                outcomes.append(asdict(outcome))
    elsewhere = loop.functions_run if hasattr(loop, "functions_run") else lambda code: []
    functions = {code: merged([*ran[code].found(), *elsewhere(code)]) for code in codes}
    if hasattr(loop, "close"):
        loop.close()
    return {
        "release": peer_packages.PACKAGES[peer].release,
        "outcomes": outcomes,
        "functions": {code: [asdict(each) for each in found] for code, found in functions.items()},
        "hollow": loop.HOLLOW.imported,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=sorted(peer_packages.PACKAGES))
    parser.add_argument("--fault", action="append", choices=sorted(peer_step.FAULTS))
    parser.add_argument("--code", action="append", choices=("theirs", "ours"))
    parser.add_argument("--functions", action="store_true", help="record which functions of the peer run")
    parser.add_argument("--out", type=Path, required=True, help="what was found, as JSON")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as state:
        os.environ["XDG_STATE_HOME"] = state
        found = run(
            asked.peer, asked.fault or list(peer_step.FAULTS), asked.code or ["theirs", "ours"], asked.functions
        )
    asked.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
