"""An engine whose KV stays on the host through a release, as a process with real memory, driven over a pipe.

Requests go on from what their slot of the KV memory holds: one whose KV was lost gets other tokens.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any, Self

from lifecycle.adapters.loopback.memory import HostBackup, Region

MIB = 1 << 20
TAGS_MIB = 72
STEP_S = 0.002
WEIGHT = 7


def next_token(before: int, weight: int) -> int:
    """The token that follows another."""
    return (before * 1103515245 + weight + 12345) & 0x7FFFFFFF


def undisturbed(count: int) -> list[int]:
    """The first tokens of a request that nothing disturbs."""
    tokens = [int.from_bytes(b"\1" * 4, "little")]
    for _ in range(count):
        tokens.append(next_token(tokens[-1], WEIGHT))
    return tokens[1:]


class Engine:
    """What runs in the process. Its methods are its verbs."""

    def __init__(self) -> None:
        self._memory = {tag: Region(TAGS_MIB * MIB) for tag in ("weights", "kv_cache")}
        self._backup = HostBackup(TAGS_MIB * MIB)
        self._weights = HostBackup(TAGS_MIB * MIB)
        self._memory["weights"].bytes[:] = WEIGHT
        self._memory["kv_cache"].bytes[:] = 1
        self._released: set[str] = set()
        self._left: dict[int, int] = {}
        self._tokens: dict[int, list[int]] = {}
        self._open, self._lock, self._lies = True, threading.Lock(), False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(STEP_S)
            with self._lock:
                for slot in [slot for slot, left in self._left.items() if left and self._open]:
                    self._step(slot)

    def _step(self, slot: int) -> None:
        kv, weights = self._memory["kv_cache"].bytes, self._memory["weights"].bytes
        at = slice(slot * 4096, slot * 4096 + 4)
        token = next_token(int.from_bytes(kv[at].tobytes(), "little"), int(weights[slot * 4096]))
        kv[at] = list(token.to_bytes(4, "little"))
        self._tokens[slot].append(token)
        self._left[slot] -= 1

    def submit(self, tokens: int) -> int:
        with self._lock:
            slot = len(self._tokens) + 1
            self._tokens[slot], self._left[slot] = [], tokens
            self._memory["kv_cache"].bytes[slot * 4096 : slot * 4096 + 4] = 1
        return slot

    def tokens_of(self, slot: int) -> list[int]:
        return list(self._tokens[slot])

    def left_of(self, slot: int) -> int:
        return self._left[slot]

    def pause(self, mode: str) -> bool:
        with self._lock:
            self._open = False
            if mode == "abort":
                self._left = dict.fromkeys(self._left, 0)
        return True

    def resume(self) -> bool:
        self._open = True
        return True

    def admission(self) -> str:
        return "open" if self._open else "closed"

    def steps_run(self) -> int:
        return sum(1 for left in self._left.values() if left) if self._open else 0

    def lie(self) -> bool:
        self._lies = True
        return True

    def sleep(self, tags: list[str]) -> dict[str, Any]:
        """Keeps KV and weights on the host, and gives their memory back."""
        if self._released & set(tags):
            return {"success": False, "message": f"tags already released: {sorted(self._released & set(tags))}"}
        for tag in tags if not self._lies else []:
            (self._backup if tag == "kv_cache" else self._weights).save(self._memory[tag])
            self._memory[tag].drop()
        self._released |= set(tags)
        return {"success": True}

    def wake(self, tags: list[str]) -> dict[str, Any]:
        for tag in tags if not self._lies else []:
            self._memory[tag].touch()
            (self._backup if tag == "kv_cache" else self._weights).restore(self._memory[tag])
        self._released -= set(tags)
        return {"success": True}

    def reset_cache(self) -> bool:
        self._memory["kv_cache"].bytes[:] = 1
        return True

    def load(self, path: str, version: str) -> bool:
        self._memory["weights"].bytes[:] = int(path)
        return True

    def generate(self, tokens: int) -> list[int]:
        slot = self.submit(tokens)
        while self._left[slot]:
            time.sleep(STEP_S)
        return self.tokens_of(slot)

    def hang(self) -> None:
        threading.Event().wait()


class Rpc:
    """The engine from outside: one call at a time, as a sync actor's. No answer raises ConnectionError."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lock = threading.Lock()
        self.pid = self._process.pid
        #: The verbs that were called, in order.
        self.called: list[str] = []

    def call(self, name: str, **args: Any) -> Any:
        with self._lock:
            self.called.append(name)
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            try:
                self._process.stdin.write(json.dumps([name, args]) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except (OSError, ValueError) as error:
                raise ConnectionError(str(error)) from error
            if not line:
                raise ConnectionError("the pipe was closed")
            return json.loads(line)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        with self._lock:  # a call that hung has ended with the process
            self._process.communicate()


if __name__ == "__main__":
    engine = Engine()
    for request in sys.stdin:
        verb, given = json.loads(request)
        print(json.dumps(getattr(engine, verb)(**given)), flush=True)
