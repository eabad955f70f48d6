"""After `python tests/real/tokenspeed_env.py`, `.cache/real/tokenspeed-0.1.1/` imports its control plane on a CPU.

As `build_env.py` for SGLang: any Python 3.11 runs this, and it does nothing where the environment was finished with the
same recipe. What the wheel asks for is mostly for a GPU. Installed is what its control plane imports, held to SGLang's
constraints (the CPU build of torch is in them), and then the two wheels alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys

from build_env import CACHE, CONSTRAINTS, EnvironmentNotBuilt, one_builder, refuse_cuda, run

VERSION, SCHEDULER = "0.1.1", "0.1.42"
ENV = CACHE / f"tokenspeed-{VERSION}"
PYTHON = ENV / "bin" / "python"
STAMP = ENV / "recipe.sha256"

REQUIREMENTS = """
msgspec numpy psutil pybase64 requests pyzmq pillow pydantic starlette fastapi uvicorn prometheus-client orjson
"""

STEPS: tuple[tuple[str, ...], ...] = (
    ("torch",),
    tuple(REQUIREMENTS.split()),
    ("--no-deps", f"tokenspeed=={VERSION}", f"tokenspeed-scheduler=={SCHEDULER}"),
)


def recipe() -> str:
    """The hash of everything that decides what gets installed."""
    return hashlib.sha256("\0".join([json.dumps(STEPS), CONSTRAINTS.read_text()]).encode()).hexdigest()


def build() -> str:
    """The environment is built; returns its interpreter. Raises `EnvironmentNotBuilt` if a step fails."""
    with one_builder():
        if not (PYTHON.exists() and STAMP.is_file() and STAMP.read_text().strip() == recipe()):
            _make_anew()
    return str(PYTHON)


def _make_anew() -> None:
    if sys.version_info[:2] != (3, 11):
        raise EnvironmentNotBuilt(f"the recipe is for Python 3.11, this is {sys.version.split()[0]}")
    shutil.rmtree(ENV, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(ENV)])
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-qq", "--constraint", str(CONSTRAINTS)]
    for step in STEPS:
        run([*pip, *step])
    refuse_cuda(PYTHON)
    STAMP.write_text(recipe() + "\n")


if __name__ == "__main__":
    print(build())
