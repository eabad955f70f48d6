"""A tiny engine: an HTTP server that really holds memory. Run it as `python tiny_engine.py [PORT]`; it prints its port.

Its weights are one byte, repeated. A checkpoint is a file that has this byte. A token depends on it, and on the prompt.
"""

import json
import mmap
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MIB = 1 << 20
SIZES = {"weights": 96 * MIB, "kv": 96 * MIB}
STEP_S = 0.002


class Engine:
    """Each method is an endpoint: POST /NAME with its arguments as JSON, answered with its result."""

    def __init__(self) -> None:
        self.memory = {tag: mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE) for tag, size in SIZES.items()}
        self.started, self.open, self.running = time.time_ns(), True, 0
        self.version, self.turn = "launched", threading.Condition()
        self.restore(["kv"])
        self.fill("weights", 7)

    def fill(self, tag: str, value: int) -> None:
        self.memory[tag].seek(0)
        self.memory[tag].write(bytes([value]) * SIZES[tag])

    def status(self) -> dict:
        return {"started": self.started, "open": self.open, "running": self.running, "version": self.version}

    def pause(self) -> None:
        """Admits no more; requests that run end early."""
        self.open = False

    def resume(self) -> None:
        with self.turn:
            self.open = True
            self.turn.notify_all()

    def free(self, tags: list) -> None:
        if self.open or self.running:
            raise ValueError("it is not paused and idle")
        for tag in tags:
            self.memory[tag].madvise(mmap.MADV_DONTNEED)

    def restore(self, tags: list) -> None:
        """Makes the memory resident; there is nothing in it."""
        for tag in tags:
            self.fill(tag, 1)

    def load(self, file: str, version: str) -> None:
        self.fill("weights", Path(file).read_bytes()[0])
        self.version = version

    def generate(self, prompt: str, tokens: int) -> list:
        with self.turn:
            self.turn.wait_for(lambda: self.open)
            self.running += 1
        made, state = [], sum(prompt.encode())
        try:
            while len(made) < tokens and self.open:
                state = (state * 31 + self.memory["weights"][4096]) % 50021
                made.append(state)
                time.sleep(STEP_S)
        finally:
            with self.turn:
                self.running -= 1
        return made


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
        try:
            status, answer = 200, getattr(self.server.engine, self.path[1:])(**given)
        except Exception as error:
            status, answer = 400, str(error)
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Handler)
    server.engine = Engine()
    print(json.dumps({"port": server.server_port, "pid": os.getpid()}), flush=True)
    server.serve_forever()
