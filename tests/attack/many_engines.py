"""Many processes that answer reads as one serving engine did, each with a boot of its own. They end with stdin.

Run as `python many_engines.py ANSWERS.json COUNT`; prints the ports as JSON. Forked from one process, since 64 real
engines take a minute to start.
"""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def handler(answers: dict[str, Any], boot: int) -> type[BaseHTTPRequestHandler]:
    """Answers each recorded path with its status and body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = answers.get(self.path.partition("?")[0], (404, {}))
            if self.path == "/server_info":
                body = {**body, "random_seed": boot}
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

    return Handler


def serve(answers: dict[str, Any], boot: int, report: int) -> None:
    """Tells its port through `report` and serves until it is killed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(answers, boot))
    os.write(report, f"{server.server_address[1]}\n".encode())
    os.close(report)
    server.serve_forever()


def main() -> None:
    answers, count = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    reader, writer = os.pipe()
    children = []
    for boot in range(count):
        child = os.fork()
        if child == 0:
            os.close(reader)
            serve(answers, boot, writer)
        children.append(child)
    os.close(writer)
    with os.fdopen(reader) as ports:
        print(json.dumps([int(line) for line in ports]), flush=True)
    sys.stdin.read()
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
