"""What tests on a vLLM in this process share: its engine core, that core's process, and the modules named as vLLM's."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from idle_process import idle_process
from vllm_stand_in import Core, installed


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules that are imported of vLLM."""
    return installed(monkeypatch)


@pytest.fixture
def core() -> Core:
    """What the engine core knows and was sent."""
    return Core()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """The engine core's process."""
    running = idle_process()
    yield running
    running.kill()
    running.wait()
