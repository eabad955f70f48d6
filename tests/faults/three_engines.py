"""Three loopback engines that outlive many faults, what they must generate, and how one that was killed comes back."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lifecycle.adapters.loopback import LoopbackProcess, make_weights
from safetensors.numpy import load_file, save, save_file

from lifecycle import FromDisk, Kept, Pushed
from lifecycle.core.sources import Source

NAMES = ("e0", "e1", "e2")
PROMPT = {"text": "hello", "sampling_params": {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the tags of an engine hold, and above what its residual memory is refused."""

    name: str
    weights_mib: int
    kv_mib: int
    threshold_gib: float

    def __str__(self) -> str:
        return self.name


#: A tag that can be seen has 64 MiB. An engine keeps some 55 MiB beside its tags.
SIZES = (
    Sizes("unequal tags", 96, 128, 0.086),
    Sizes("equal tags", 96, 96, 0.086),
    Sizes("tags below the threshold", 96, 128, 3.0),
)


class ThreeEngines:
    """Running engines of one size, all launched with the weights of version `a`; `b` are others."""

    def __init__(self, sizes: Sizes, folder: Path, *, backup: bool, pushes: bool) -> None:
        self.sizes = sizes
        self._backup = backup
        self._paths = {
            version: make_weights(folder / f"{version}.safetensors", seed=seed, weights_mib=sizes.weights_mib)
            for version, seed in {"a": 0, "b": 7}.items()
        }
        self._pushed = {version: _to_push(path) for version, path in self._paths.items()} if pushes else {}
        with ThreadPoolExecutor(len(NAMES)) as pool:
            self.processes = list(pool.map(lambda name: self._started(), NAMES))
        self.truths = {version: self._truth_of(version) for version in ("b", "a")}
        assert self.truths["a"] != self.truths["b"], "the two versions cannot be told by what they generate"
        if backup:  # as it was launched, and not loaded since
            self.start_again(0)
        else:
            for index in range(len(NAMES)):
                self._load(index, "a")

    def __enter__(self) -> ThreeEngines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.stop()

    @property
    def urls(self) -> list[str]:
        """The URLs of all, for a fleet."""
        return [
            f"loopback://127.0.0.1:{process.port}?name={name}"
            for name, process in zip(NAMES, self.processes, strict=True)
        ]

    def source(self, kind: str, version: str) -> Source:
        """Where the weights of this version come from."""
        if kind == "Kept":
            return Kept()
        if kind == "FromDisk":
            return FromDisk(str(self._paths[version]), version)

        async def push(engines: Sequence[Any]) -> None:
            for engine in engines:
                for blob in self._pushed[version]:
                    await engine.push("tensor", serialized_named_tensors=[blob], load_format="safetensors")

        return Pushed(push, version)

    def serves(self, index: int) -> str:
        """The version whose tokens the engine generates; the tokens in words where they are of none."""
        tokens = self._tokens(index)
        return next((version for version, truth in self.truths.items() if truth == tokens), f"tokens {tokens}")

    def kill(self, index: int) -> None:
        """The engine's processes are killed, and have ended."""
        self.processes[index].kill()

    def start_again(self, index: int) -> None:
        """An engine runs at the URL of one that was killed, with the weights that it was launched with."""
        self.processes[index].kill()
        self.processes[index] = self._started(self.processes[index].port)

    def _started(self, port: int = 0) -> LoopbackProcess:
        return LoopbackProcess.start(
            weights_mib=self.sizes.weights_mib,
            kv_mib=self.sizes.kv_mib,
            weights=self._paths["a"],
            weights_backup=self._backup,
            port=port,
        )

    def _load(self, index: int, version: str) -> None:
        self._ask(
            index, "/update_weights_from_disk", {"model_path": str(self._paths[version]), "weight_version": version}
        )

    def _truth_of(self, version: str) -> tuple[int, ...]:
        self._load(0, version)
        return self._tokens(0)

    def _tokens(self, index: int) -> tuple[int, ...]:
        return tuple(self._ask(index, "/generate", PROMPT)["output_ids"])

    def _ask(self, index: int, path: str, body: object) -> Any:
        request = urllib.request.Request(self.processes[index].url + path, json.dumps(body).encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or b"null")


def _to_push(path: Path) -> tuple[str, ...]:
    """What a trainer pushes of this checkpoint, in two parts. Its large tables are made zero, and are not pushed:
    so they are where they were mapped anew, and a push of all of them would take seconds."""
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("ngram_table"):
            tensor[:] = 0
    save_file(tensors, path)
    small = [item for item in tensors.items() if not item[0].endswith("ngram_table")]
    return tuple(base64.b64encode(save(dict(part))).decode() for part in (small[::2], small[1::2]))
