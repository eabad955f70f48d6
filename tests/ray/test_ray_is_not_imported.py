"""No module of the library imports Ray where it is installed: not its adapter either, before handles are given."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

IMPORTS_ALL = """
import importlib, pkgutil, sys
import lifecycle, lifecycle.adapters

tried = []
for package in (lifecycle, lifecycle.adapters):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
            tried.append(module.name)
        except Exception as error:
            assert any(name in str(error) for name in ("torch", "sglang", "vllm")), (module.name, error)
        assert "ray" not in sys.modules, module.name
assert "lifecycle.adapters.ray.adapter" in tried
assert len(tried) > 250, len(tried)
print("none")
"""


def test_nothing_imports_ray() -> None:
    ran = subprocess.run([sys.executable, "-c", IMPORTS_ALL], capture_output=True, text=True, timeout=100)
    assert ran.stdout.strip() == "none", ran.stdout + ran.stderr
