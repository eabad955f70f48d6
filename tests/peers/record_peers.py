"""`make peers` runs every loop with the peer's own code and over its shim, and writes docs/measured/peers.md."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import peer_packages  # noqa: E402
import peers_page  # noqa: E402

PAGE = peers_page.ROOT / "docs" / "measured" / "peers.md"


def found_of(peer: str, *options: str, deadline_s: float = 300.0) -> dict[str, Any]:
    """What a run of this peer's loops came to. Raises RuntimeError with its output where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, str(HERE / "run_peer.py"), peer, "--out", str(out), *options]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s, check=False)
        if ended.returncode:
            raise RuntimeError(f"{peer}: exit code {ended.returncode}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def _facts() -> dict[str, str]:
    git = ["git", "-C", str(peers_page.ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", ".", f":(exclude){PAGE}"], capture_output=True, text=True, check=True
    )
    packages = peer_packages.PACKAGES.values()
    return {
        "commit": commit.stdout.strip() + (", with uncommitted changes" if changed.stdout.strip() else ""),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", f"torch {version('torch')}"]
            + [each.release.replace("==", " ") for each in packages]
        ),
        "licences": ", ".join(f"{each.release.partition('==')[0]}: {each.licence}" for each in packages),
        "notes": "; ".join(
            f"{each.release.partition('==')[0]}: {each.overlooks_python}" for each in packages if each.overlooks_python
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write")
    chosen = parser.parse_args()
    found = {peer: found_of(peer) for peer in peer_packages.PACKAGES}
    chosen.page.write_text(peers_page.page(found, _facts()))
    print(f"written: {chosen.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
