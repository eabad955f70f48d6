"""These tests need torch; without it each file is skipped with that reason. `make slow` installs torch."""

from __future__ import annotations

import gc
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

#: This folder is named torch too, and is found as an empty package where the real one is missing.
_TORCH = find_spec("torch")
HAS_TORCH = _TORCH is not None and _TORCH.origin is not None

#: How often each kind of tensor was staged by the property test.
KINDS: Counter[str] = Counter()


class _Skipped(pytest.Module):
    def collect(self):
        pytest.skip("torch is not installed; make slow installs it and runs this", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Where torch is missing, a module that only skips."""
    return None if HAS_TORCH else _Skipped.from_parent(parent, path=module_path)


@pytest.fixture(autouse=True)
def _no_garbage() -> None:
    """Collects garbage, so that memory of the test before does not count as this one's."""
    gc.collect()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls to torch_memory_saver and torch.cuda, which are replaced by stand-ins."""
    from cuda_stand_in import installed

    return installed(monkeypatch)


@pytest.fixture(scope="session")
def kinds() -> Counter[str]:
    """Where the property test counts what it staged."""
    return KINDS


def pytest_terminal_summary(terminalreporter) -> None:
    """Prints the counts."""
    if KINDS:
        counted = ", ".join(f"{kind} {count}" for kind, count in sorted(KINDS.items()))
        terminalreporter.write_line(f"staged by the property test: {counted}")
