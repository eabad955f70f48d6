"""The conformance suite on the tiny engine. `pytest tests` runs it, where the package is installed."""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import tiny_engine

from lifecycle import FromDisk, Policy
from lifecycle.testing.conformance import EngineConformance, Subject


def checkpoint(weight: int) -> FromDisk:
    """A checkpoint file with this byte."""
    path = Path(tempfile.gettempdir()) / f"tiny-{os.getpid()}-{weight}"
    path.write_bytes(bytes([weight]))
    return FromDisk(str(path), f"w{weight}")


@dataclass(frozen=True)
class Tiny:
    """A running tiny engine."""

    process: "subprocess.Popen[bytes]"
    port: int

    @property
    def url(self) -> str:
        """Where it is."""
        return f"tiny://127.0.0.1:{self.port}"

    def generate(self, text: str, tokens: int) -> list[int]:
        """The tokens that a client gets."""
        body = json.dumps({"prompt": text, "tokens": tokens}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/generate", body, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return list(json.loads(answer.read()))

    def kill(self) -> None:
        """No process of it is left."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    stop = kill


class TestTiny(EngineConformance):
    """The whole suite."""

    engine = "tiny"
    home = checkpoint(7)
    other = checkpoint(9)
    modes = frozenset({"abort"})
    tags = frozenset({"weights", "kv"})
    policy = Policy(residual_threshold_gib=0.1, settle_s=1.0, poll_s=0.02)

    def start(self) -> Subject:
        """A tiny engine on a free port, with its launch weights."""
        command = [sys.executable, tiny_engine.__file__]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        return Tiny(process, json.loads(process.stdout.readline())["port"])
