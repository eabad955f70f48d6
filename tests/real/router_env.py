"""After `build(kind)`, `.cache/real/<package>-<version>/` is an environment that runs this router on a CPU.

The routers are compiled: no torch, no engine. Their packages are installed without what they ask for, and then what
their launchers import, held to the repository's constraints.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from build_env import CACHE, EnvironmentNotBuilt, one_builder

CONSTRAINTS = CACHE.parents[1] / "constraints.txt"


@dataclass(frozen=True)
class Package:
    """A router's package, what its launcher imports, and how it is started inside its environment."""

    name: str
    version: str
    imports: tuple[str, ...]
    command: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where its environment is."""
        return CACHE / f"{self.name}-{self.version}"

    def launch(self) -> list[str]:
        """The command line, without options."""
        return [str(self.folder / "bin" / self.command[0]), *self.command[1:]]


PACKAGES = {
    "sglang-router": Package(
        "sglang-router",
        "0.3.2",
        ("aiohttp", "fastapi", "orjson", "setproctitle", "uvicorn"),
        ("python", "-m", "sglang_router.launch_router"),
    ),
    "smg": Package("smg", "1.13.0", ("pyyaml", "setproctitle"), ("smg", "launch")),
    "vllm-router": Package(
        "vllm-router",
        "0.1.17",
        ("aiohttp", "fastapi", "orjson", "requests", "setproctitle", "uvicorn"),
        ("vllm-router",),
    ),
}


def build(kind: str) -> Package:
    """The environment of this router is there. Raises `EnvironmentNotBuilt` where a step fails."""
    package = PACKAGES[kind]
    stamp, recipe = package.folder / "recipe.sha256", _recipe(package)
    with one_builder():
        if not (stamp.is_file() and stamp.read_text() == recipe):
            shutil.rmtree(package.folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(package.folder)])
            pip = [str(package.folder / "bin" / "pip"), "--disable-pip-version-check", "install", "-qq"]
            _run([*pip, "--no-deps", f"{package.name}=={package.version}"])
            _run([*pip, "--constraint", str(CONSTRAINTS), *package.imports])
            stamp.write_text(recipe)
    return package


def _recipe(package: Package) -> str:
    return hashlib.sha256(f"{json.dumps(asdict(package))}{CONSTRAINTS.read_text()}".encode()).hexdigest()


def _run(command: list[str]) -> None:
    print("+", " ".join(command)[:160], flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise EnvironmentNotBuilt(f"exit {done.returncode}: {' '.join(command)}\n{done.stdout[-2000:]}")
