"""A process that does nothing, for a stand-in of an engine whose processes are looked at."""

from __future__ import annotations

import subprocess
import sys


def idle_process() -> subprocess.Popen[bytes]:
    """A process that does nothing until it is killed."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
