"""Inside `with RealControlPlane() as plane:` a control plane serves at `plane.url`; afterwards it is gone."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from build_env import CACHE
from tokenspeed_env import VERSION, build

ENGINE = f"tokenspeed {VERSION}"
KEY = "control-key"
LOGS = CACHE / "logs"
SERVER = Path(__file__).with_name("tokenspeed_real.py")


@dataclass
class RealControlPlane:
    """One server with a key: real controllers and a real scheduler behind real routes. `stop()` kills it."""

    key: str = KEY
    url: str = ""
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        LOGS.mkdir(parents=True, exist_ok=True)
        with (LOGS / "tokenspeed.log").open("ab") as log:
            command = [build(), str(SERVER), self.key]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert self._process.stdout is not None
        for line in self._process.stdout:  # the scheduler logs there too
            if line.startswith(b"{"):
                self.url = json.loads(line)["url"]
                return self
        self.stop()
        raise RuntimeError(f"the control plane did not start; see {LOGS / 'tokenspeed.log'}")

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """It is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None
