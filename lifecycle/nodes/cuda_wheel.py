"""The CUDA version that a torch wheel was built for, read without importing torch.

Of this interpreter, and of a running process.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

_CUDA_LINE = re.compile(r"^cuda\b[^=]*=\s*['\"]([0-9][0-9.]*)['\"]", re.MULTILINE)
_RUNTIME = re.compile(r"^nvidia-cuda-runtime(?:-cu(\d+))?\s*(?:\(?==\s*([0-9.]+))?")


def installed_cuda() -> str | None:
    """Returns the CUDA version of this interpreter's torch ("12.9"); None without torch, or where it names none."""
    loaded = getattr(sys.modules.get("torch"), "version", None)
    if loaded is not None:
        return getattr(loaded, "cuda", None)
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        version = _in_version_file(Path(spec.origin).parent)
        if version is not None:
            return version
    return _in_metadata()


def cuda_of_process(pid: int) -> str | None:
    """Returns the CUDA version of the torch that this process has loaded, found by the files that it maps.

    None where it has loaded no torch, torch names no version, or /proc does not show its maps.
    """
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return None
    found = re.search(r"(/\S*/torch)/lib/lib(?:torch|c10)\S*\.so", maps)
    return _in_version_file(Path(f"/proc/{pid}/root{found.group(1)}")) if found else None


def major_of(cuda: str | None) -> int | None:
    """Returns the major version; None where the version is unknown or cannot be parsed."""
    head = (cuda or "").split(".")[0]
    return int(head) if head.isdigit() else None


def _in_version_file(package: Path) -> str | None:
    """The version in torch/version.py, which has a line such as `cuda: Optional[str] = '12.9'`."""
    try:
        found = _CUDA_LINE.search((package / "version.py").read_text())
    except OSError:
        return None
    return found.group(1) if found else None


def _in_metadata() -> str | None:
    """The wheel's local version (2.11.0+cu130), else the CUDA runtime that it requires."""
    from importlib import metadata  # 16 ms, which only this needs

    try:
        local = re.search(r"\+cu(\d+)(\d)$", metadata.version("torch"))
        requires = metadata.requires("torch") or []
    except metadata.PackageNotFoundError:
        return None
    if local:
        return f"{local.group(1)}.{local.group(2)}"
    runtimes = [found for line in requires if (found := _RUNTIME.match(line))]
    return next((found.group(2) or found.group(1) for found in runtimes if found.group(2) or found.group(1)), None)
