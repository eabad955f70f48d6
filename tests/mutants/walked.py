"""Whether the explorer finds a mutant: walks scenarios of one engine to the first violation, and prints it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "properties"), str(HERE.parent / "model_check")]

import hook  # noqa: E402, F401 - it breaks the library before anything of it is imported


def main(keys: list[str]) -> int:
    """1 where a scenario of these keys came to a violation, or to no end."""
    from explore import walk
    from scenarios import all_of

    logging.disable(logging.CRITICAL)
    for key in keys:
        found = walk(all_of(1, 1)[key], limit_s=120.0, to_the_first=True)
        if found.broken:
            print(f"{key}: {next(iter(found.broken.values())).what.splitlines()[0][:120]}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
