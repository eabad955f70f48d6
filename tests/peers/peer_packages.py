"""The released packages of peers lie in `.cache/peers`, without what they require, once this was run as a program.

`make slow` and `make peers` run it. No test installs anything: a registry may be slow, and a test has a deadline.

Nothing of it is changed, and nothing of it is committed. What it requires and is small is installed with it; what is
heavy is empty (`hollow_modules.py`) or replaced by a few lines (`*_stand_ins.py`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "peers"
INSTALLS = "make slow and make peers install it (tests/peers/peer_packages.py)"


@dataclass(frozen=True, slots=True)
class Package:
    """A release of a peer, and the small packages that it is installed with."""

    release: str  # NAME==VERSION
    licence: str
    beside: tuple[str, ...] = ()
    #: Why pip is told to overlook which Python the release asks for; empty where it is not.
    overlooks_python: str = ""

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return CACHE / self.release.replace("==", "-")


_HTTP = ("requests==2.34.2", "urllib3==2.8.0", "certifi", "charset-normalizer")
PACKAGES = {
    "trl": Package("trl==1.16.0", "Apache-2.0"),
    "skyrl": Package(
        "skyrl==0.4.0",
        "Apache-2.0",
        ("orjson==3.13.0", "loguru==0.7.3", *_HTTP),
        overlooks_python="it asks for Python 3.12, of which what runs here needs only pydantic's TypedDict",
    ),
    "verl": Package(
        "verl==0.9.1",
        "Apache-2.0",
        (
            "ray==2.60.0",
            "omegaconf==2.4.0",
            "antlr4-python3-runtime==4.9.3",
            "tensordict==0.15.3",
            "codetiming==1.4.0",
            "msgpack==1.2.4",
            "pyyaml==6.0.4",
            "jsonschema==4.26.0",
            "jsonschema-specifications==2025.9.1",
            "referencing==0.37.0",
            "rpds-py==2026.9.1",
            "protobuf==7.36.2",
            "cloudpickle==3.1.3",
            "pyvers==0.2.3",
            "orjson==3.13.0",
            "importlib_metadata==10.2.0",
            "zipp==4.1.2",
            "hydra-core==1.3.8",
            *_HTTP,
        ),
    ),
}


def folder_of(peer: str) -> Path:
    """The folder in which the peer's package lies. FileNotFoundError where it is not installed."""
    package = PACKAGES[peer]
    if not _is_installed(package):
        raise FileNotFoundError(f"{package.release} is not installed: {INSTALLS}")
    return package.folder


def lacking() -> str:
    """Which packages are not installed, and what installs them; empty where all are."""
    away = [package.release for package in PACKAGES.values() if not _is_installed(package)]
    return f"not installed: {', '.join(away)}; {INSTALLS}" if away else ""


def install() -> None:
    """Every package is installed, those that were not."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for package in PACKAGES.values():
            if not _is_installed(package):
                subprocess.run([*_pip(package), package.release, *package.beside], check=True)
                _stamp(package).write_text(_recipe(package))


def _is_installed(package: Package) -> bool:
    stamp = _stamp(package)
    return stamp.exists() and stamp.read_text() == _recipe(package)


def _stamp(package: Package) -> Path:
    return package.folder / "recipe.sha256"


def _recipe(package: Package) -> str:
    return hashlib.sha256(json.dumps([package.release, *package.beside]).encode()).hexdigest()


def _pip(package: Package) -> list[str]:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--upgrade", "--target", str(package.folder), "--constraint", str(ROOT / "constraints.txt")]
    return command + (["--ignore-requires-python"] if package.overlooks_python else [])


if __name__ == "__main__":
    install()
