"""After `python tests/real/build_env.py`, `.cache/real/sglang-0.5.23/` is an environment that runs SGLang on a CPU.

Any Python 3.11 runs this; it needs nothing but the standard library. It does nothing when the environment that is there
was finished with the same recipe: the stamp, written last, holds the hash of everything that decides what gets
installed. An environment without its stamp is half built and is made anew.

The order of the steps is the recipe: the CPU build of torch comes first and every later step is held to it by
`sglang-constraints.txt`, so that no step can replace it by a build that brings gigabytes of CUDA.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SGLANG = "sglang==0.5.23"
HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache" / "real"
ENV = CACHE / SGLANG.replace("==", "-")
PYTHON = ENV / "bin" / "python"
STAMP = ENV / "recipe.sha256"
CONSTRAINTS = HERE / "sglang-constraints.txt"
EMPTY_MODULES = HERE / "empty_modules.py"

# What the wheel of sglang asks for, less what needs CUDA. Versions are in the constraints.
REQUIREMENTS = """
transformers tokenizers fastapi uvicorn uvloop orjson msgspec pyzmq numpy pillow prometheus-client psutil pybase64
pydantic python-multipart requests aiohttp setproctitle tqdm xxhash zstandard einops interegular IPython
partial_json_parser packaging regex sentencepiece tiktoken scipy easydict openai openai-harmony llguidance gguf
distro nvidia-ml-py watchfiles huggingface-hub safetensors compressed-tensors httpx dill jsonschema soundfile
"""

# These ask for a CUDA build of torch, or for what only a GPU needs: installed alone.
WITHOUT_THEIR_REQUIREMENTS = ["triton", "apache-tvm-ffi", "xgrammar", "sglang"]

STEPS: tuple[tuple[str, ...], ...] = (
    ("torch",),
    tuple(REQUIREMENTS.split()),
    ("--no-deps", *WITHOUT_THEIR_REQUIREMENTS),
)

# A distribution whose name starts so carries CUDA libraries. `nvidia-ml-py` carries none.
CUDA_PREFIXES = ("nvidia-", "cuda-", "sgl-kernel", "flashinfer", "torchvision", "torchaudio")
HARMLESS = frozenset({"nvidia-ml-py"})


class EnvironmentNotBuilt(RuntimeError):
    """The environment could not be built, and has no stamp."""


def recipe() -> str:
    """The hash of everything that decides what gets installed."""
    parts = [json.dumps(STEPS), CONSTRAINTS.read_text(), EMPTY_MODULES.read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def is_built() -> bool:
    """True if the environment was finished with this recipe."""
    return PYTHON.exists() and STAMP.is_file() and STAMP.read_text().strip() == recipe()


def build() -> Path:
    """The environment is built; returns its interpreter. Two builders wait for each other.

    Raises `EnvironmentNotBuilt` if a step fails or CUDA came in.
    """
    with one_builder():
        if not is_built():
            _make_anew()
    return PYTHON


@contextlib.contextmanager
def one_builder() -> Iterator[None]:
    """Nobody else builds anything in the cache while the body runs."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_anew() -> None:
    if sys.version_info[:2] != (3, 11):
        raise EnvironmentNotBuilt(f"the recipe is for Python 3.11, this is {sys.version.split()[0]}")
    shutil.rmtree(ENV, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(ENV)])
    for step in STEPS:
        run(_pip("install", "-qq", "--constraint", str(CONSTRAINTS), *step))
    _install_empty_modules()
    refuse_cuda(PYTHON)
    STAMP.write_text(recipe() + "\n")


def _pip(*arguments: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]


def run(command: Sequence[str]) -> str:
    """What the command printed. Raises `EnvironmentNotBuilt` if it fails."""
    started = time.monotonic()
    print("+", " ".join(command)[:160], flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise EnvironmentNotBuilt(f"exit {done.returncode}: {' '.join(command)}\n{done.stdout[-2000:]}")
    print(f"  {time.monotonic() - started:.0f} s", flush=True)
    return done.stdout


def _install_empty_modules() -> None:
    """Every interpreter of the environment loads the finder of empty modules when it starts."""
    name = "engine_lifecycle_empty_modules"
    site = ENV / "lib" / "python3.11" / "site-packages"
    shutil.copyfile(EMPTY_MODULES, site / f"{name}.py")
    (site / f"{name}.pth").write_text(f"import {name}; {name}.install()\n")


def refuse_cuda(python: Path) -> None:
    """Nothing of CUDA is in the environment of this interpreter; raises `EnvironmentNotBuilt` otherwise."""
    listed = run([str(python), "-m", "pip", "--disable-pip-version-check", "list", "--format=json"])
    names = [package["name"].lower() for package in json.loads(listed)]
    intruders = sorted(name for name in names if name.startswith(CUDA_PREFIXES) and name not in HARMLESS)
    if intruders:
        raise EnvironmentNotBuilt(f"CUDA came in: {', '.join(intruders)}")
    cuda = run([str(python), "-c", "import torch; print(torch.version.cuda)"]).strip()
    if cuda != "None":
        raise EnvironmentNotBuilt(f"torch is a build for CUDA {cuda}")


if __name__ == "__main__":
    print(build())
